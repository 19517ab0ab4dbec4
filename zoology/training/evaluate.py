"""Accuracy and loss of every replica of a stack on every slice, with one transfer to the host for all."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from zoology.data import SliceData
from zoology.kernels.ahead import compile_ahead
from zoology.tasks.base import IGNORE
from zoology.training.capture import first_line, graph_of
from zoology.training.stack import Stack

EVALUATION_TOKENS, CPU_EVALUATION_TOKENS = 8 * 256 * 256, 64 * 64
"""Tokens in a step of evaluation, over all replicas. More leave a CPU's caches, and take it a quarter longer."""


BINS = 8
"""Parts into which the answers of a slice are cut by where they stand, of about as many answers each."""


class Place(NamedTuple):
    """Accuracy of the answers that stand from `first` to `last`, counted in tokens from 0."""

    first: int
    last: int
    answers: int
    accuracy: float


class Measured(NamedTuple):
    """Accuracy and mean loss over the labelled positions of a slice; None of a model that diverged. `places` is the
    accuracy by where the answers stand, where it was asked for."""

    accuracy: float | None
    loss: float | None
    places: tuple[Place, ...] = ()


def evaluate_all(
    stack: Stack, flat: Tensor, parts: tuple[SliceData, ...], places: bool = False
) -> list[list[Measured]]:
    """Each replica on each slice, for the weights in a flat buffer (R, P): by replica, then by slice.

    `places` asks for the accuracy by where the answers stand, too.
    """
    return _told(parts, _found(stack, flat, parts), places)


class Validation:
    """`evaluate_all` of a stack that is trained, again and again. On a GPU all of it is one CUDA graph from the second
    time on, as one small kernel after another, started from Python, leaves most of the GPU idle.

    Attributes:
        notes: what did not go as usual.
    """

    def __init__(self, stack: Stack, parts: tuple[SliceData, ...]):
        self.stack, self.parts = stack, parts
        self.notes: list[str] = []
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._sums: list[tuple[Tensor, Tensor]] = []

    def __call__(self) -> list[list[Measured]]:
        self._calls += 1
        if self.stack.flat.is_cuda and self._calls == 2:  # what is lazy was done in the first
            self._capture()
        if self._graph is None:
            return evaluate_all(self.stack, self.stack.flat, self.parts)
        self._graph.replay()
        return _told(self.parts, self._sums, places=False)

    def prepare(self, parts: tuple[SliceData, ...]) -> None:
        """Begin to compile the kernels of an evaluation, on other slices than these too."""
        compile_ahead(lambda: _found(self.stack, self.stack.flat, parts, steps=1))

    def _capture(self) -> None:
        def run() -> None:
            self._sums = _found(self.stack, self.stack.flat, self.parts)

        try:
            self._graph = graph_of(run)
        except RuntimeError as error:  # out of memory too: as before, then
            self.notes.append(f"validation is not captured in a CUDA graph: {first_line(error)}")


@torch.no_grad()
def _found(
    stack: Stack, flat: Tensor, parts: tuple[SliceData, ...], steps: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    stack.template.eval()
    leaves = stack.leaves_of(flat)
    return [_evaluate(stack, leaves, part, steps) for part in parts]


def _told(parts: tuple[SliceData, ...], found: list[tuple[Tensor, Tensor]], places: bool) -> list[list[Measured]]:
    """By replica, then by slice; `places` as in `evaluate_all`."""
    sums = torch.stack([each for each, _ in found], dim=1).tolist()
    told = [
        _cut(part, right.tolist()) if places else [()] * len(sums)
        for part, (_, right) in zip(parts, found, strict=True)
    ]
    return [
        [Measured(right / count, loss / count, told[s][r]) for s, (right, loss, count) in enumerate(replica)]
        for r, replica in enumerate(sums)
    ]


def _cut(part: SliceData, right: list[list[float]]) -> list[tuple[Place, ...]]:
    """Right answers by time, (R, T), in parts of about as many answers each: for each replica."""
    times = part.positions[part.targets != IGNORE]
    counts = torch.bincount(times, minlength=part.tokens.shape[1]).tolist()
    edges, total, so_far = [0], sum(counts), 0
    for time, count in enumerate(counts):
        so_far += count
        if count and so_far >= total * len(edges) / BINS:
            edges.append(time + 1)
    told = []
    for row in right:
        places = []
        for first, stop in itertools.pairwise(edges):
            held = [time for time in range(first, stop) if counts[time]]
            answers = sum(counts[time] for time in held)
            places.append(Place(held[0], held[-1], answers, sum(row[time] for time in held) / answers))
        told.append(tuple(places))
    return told


def _evaluate(stack: Stack, leaves: list[Tensor], part: SliceData, steps: int | None) -> tuple[Tensor, Tensor]:
    """(R, 3): right answers, summed loss and labels of a slice, and (R, T): right answers by where they stand; both in
    float64 on its device. Of the slice's first steps only, where they are counted."""
    sums = torch.zeros(stack.size, 3, dtype=torch.float64, device=part.tokens.device)
    by_time = torch.zeros(stack.size, part.tokens.shape[1], dtype=torch.float64, device=part.tokens.device)
    tokens = CPU_EVALUATION_TOKENS if sums.device.type == "cpu" else EVALUATION_TOKENS
    size = max(1, tokens // (part.tokens.shape[1] * stack.size))
    for start in itertools.islice(range(0, len(part.tokens), size), steps):
        rows = slice(start, start + size)
        targets = part.targets[rows]
        loss, right = stack.losses(leaves, part.tokens[rows], part.positions[rows], targets, part.task.prompt_length)
        by_time.index_add_(1, part.positions[rows].flatten(), right.double())
        sums[:, 0] += right.sum(1)
        sums[:, 1] += loss.double().sum(1)
        sums[:, 2] += (targets != IGNORE).sum()
    return sums, by_time
