"""The data of a trial: every split drawn once, kept apart from the others, and laid out for a training loop.

Lives beside `train`: tasks make NumPy arrays, this turns them into tensors with the labelled positions picked out.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoology.model import LanguageModel
from zoology.record import Slice, TrialSpec
from zoology.registry import InputError
from zoology.tasks.base import IGNORE, Batch, Task, batch_hash, build_task, draw_splits, tasks


class SliceData(NamedTuple):
    """All sequences of one slice, with their labels gathered to the front.

    tokens: (n, seq_len) ids.
    positions: (n, labels) times that carry a label; rows with fewer labels repeat time 0.
    targets: (n, labels) what follows there; `IGNORE` in the padding.
    """

    name: str
    task: Task
    tokens: Tensor
    positions: Tensor
    targets: Tensor
    hash: str

    def to(self, device: torch.device) -> "SliceData":
        """The same on a device."""
        return self._replace(
            tokens=self.tokens.to(device), positions=self.positions.to(device), targets=self.targets.to(device)
        )

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, positions and targets of some sequences, as one batch."""
        return self.tokens[rows], self.positions[rows], self.targets[rows]

    def labelled(self) -> Tensor:
        """(n, seq_len) bool: the positions that carry a label."""
        mask = torch.zeros(self.tokens.shape, dtype=torch.bool, device=self.tokens.device)
        rows, columns = (self.targets != IGNORE).nonzero(as_tuple=True)
        mask[rows, self.positions[rows, columns]] = True
        return mask


class TrialData(NamedTuple):
    """The three splits, slice by slice. No sequence is in two of them."""

    train: tuple[SliceData, ...]
    valid: tuple[SliceData, ...]
    test: tuple[SliceData, ...]

    @property
    def vocab_size(self) -> int:
        return max(part.task.vocab_size for split in self for part in split)


def load_data(spec: TrialSpec) -> TrialData:
    """Draw what a spec asks for. The trials of a sweep share their data, so the last drawn is kept.

    The test set depends on its slice alone, never on a seed: it is frozen, and its hash is in every result.

    Raises:
        InputError: a slice is impossible, has too few sequences to keep the splits apart, or draws what `pack` refuses.
    """
    slices = json.dumps(spec.model_dump(mode="json", include={"train", "valid", "test"}), sort_keys=True)
    # The class itself is part of the key: a plugin may be loaded anew with another task under the same name.
    return _load(tasks.get(spec.task), spec.task, slices, spec.training.data_seed)


@lru_cache(maxsize=1)
def _load(_: type[Task], name: str, slices: str, data_seed: int) -> TrialData:
    splits = {split: [Slice(**part) for part in parts] for split, parts in json.loads(slices).items()}
    plan = {split: [(build_task(name, p.params), p.examples) for p in parts] for split, parts in splits.items()}
    drawn = draw_splits(plan, data_seed)
    return TrialData(
        **{
            split: tuple(
                pack(part.name, task, batch)
                for part, (task, _), batch in zip(parts, plan[split], drawn[split], strict=True)
            )
            for split, parts in splits.items()
        }
    )


def pack(name: str, task: Task, batch: Batch) -> SliceData:
    """Pick the labelled positions out of a batch, so that a step needs no search and no host sync.

    Raises:
        InputError: there is no label in it, a token or label is not in the vocabulary, or the context is not inside the
            sequence.
    """
    labelled = batch.labels != IGNORE
    _check(f"{task.name} {name}", task, batch, labelled)
    width = int(labelled.sum(axis=1).max())
    # A stable sort of "not labelled" brings the labelled times to the front, in order.
    positions = np.argsort(~labelled, axis=1, kind="stable")[:, :width]
    kept = np.take_along_axis(labelled, positions, axis=1)
    targets = np.where(kept, np.take_along_axis(batch.labels, positions, axis=1), IGNORE)
    return SliceData(
        name,
        task,
        torch.from_numpy(batch.tokens.astype(np.int64)),
        torch.from_numpy(np.where(kept, positions, 0)),
        torch.from_numpy(targets.astype(np.int64)),
        batch_hash(batch),
    )


def _check(name: str, task: Task, batch: Batch, labelled: NDArray[np.bool_]) -> None:
    if not labelled.any():
        raise InputError(
            f"{name}: none of {len(labelled)} sequences has a label, so there is nothing to learn or score"
        )
    for what, ids in (("token", batch.tokens), ("label", batch.labels[labelled])):
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= task.vocab_size:
            found = low if low < 0 else high
            raise InputError(f"{name}: the {what} {found} is not in the vocabulary, 0 to {task.vocab_size - 1}")
    length = batch.tokens.shape[1]
    if not 1 <= task.context_length <= length:
        raise InputError(
            f"{name}: context_length = {task.context_length} must be from 1 to the {length} tokens there are"
        )


def context_of(model: LanguageModel, task: Task) -> int:
    """Where a model's context ends: one that reads it whole is given the whole prompt."""
    return task.prompt_length if model.reads_context else task.context_length


def refuse_labels_in_contexts(data: TrialData) -> None:
    """For a model that reads its context whole: what is asked inside the context, it would see the answer to.

    Raises:
        InputError: a label stands before the context's last token.
    """
    for part in (part for split in data for part in split):
        first, context = int(part.positions[part.targets != IGNORE].min()), part.task.prompt_length
        if first < context - 1:
            raise InputError(
                f"{part.task.name} {part.name} asks at token {first + 1}, inside its context of {context} tokens: a "
                "model that reads the context whole would see the answer; choose another task or architecture"
            )


def batches(
    parts: tuple[SliceData, ...], batch_size: int, generator: torch.Generator
) -> Iterator[tuple[SliceData, Tensor]]:
    """One epoch, as (slice, rows): every slice shuffled and cut into batches, and the batches of all shuffled together.

    A batch holds one slice, so it has one length. What is left over after the last full batch of a slice waits for
    the next epoch's shuffle; a slice smaller than a batch is one batch.
    """
    plan = []
    for part in parts:
        # To the device once for all batches: a transfer in each step would make the host wait there.
        order = torch.randperm(len(part.tokens), generator=generator).to(part.tokens.device)
        count = steps_per_epoch((part,), batch_size)
        plan += [(part, rows) for rows in order[: count * batch_size].split(batch_size)]
    for index in torch.randperm(len(plan), generator=generator).tolist():
        yield plan[index]


def steps_per_epoch(parts: tuple[SliceData, ...], batch_size: int) -> int:
    """How many batches `batches` makes."""
    return sum(max(1, len(part.tokens) // batch_size) for part in parts)
