"""The training loop of a group of replicas: validate, keep the best, stop who is done, go on after a kill."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoology.data import SliceData, TrialData, batches, steps_per_epoch
from zoology.record import Training
from zoology.training import checkpoint
from zoology.training.adamw import AdamW
from zoology.training.evaluate import Measured, Validation
from zoology.training.stack import Stack
from zoology.training.steps import GraphSteps, Steps

CHECKPOINT_SECONDS = 30.0
"""Least time between two checkpoints: a kill costs no more than this, and writing no more than a few per cent."""
GONE = -1
"""In place of a replica's number: nobody looks at this row of the stack any more."""


class Point(NamedTuple):
    """A point of a replica's curve: steps so far, mean training loss since the last point, validation accuracy."""

    step: int
    loss: float | None
    accuracy: float | None


@dataclass
class Replica:
    """Where one replica is. Weights are rows of the group's buffers."""

    steps: int = 0
    best_step: int = 0
    best_score: tuple[float, float] | None = None
    best_valid: list[Measured] | None = None
    last_valid: list[Measured] | None = None
    status: str = "training"  # then "ok" or "diverged"
    curve: list[Point] = field(default_factory=list)


@dataclass
class Trained:
    """A group after training. `best` is worth something only where `best_valid` is there, `last` where it did not
    diverge. Both are (R, P). `seconds` are those of compiling, training and evaluating."""

    replicas: list[Replica]
    best: Tensor
    last: Tensor
    notes: list[str]
    seconds: dict[str, float]


class Loop:
    """Trains a group. All of its state is in tensors and plain values, so that it can be put down and taken up.

    Args:
        stack: the group, untrained.
        training: the recipe.
        data: what to train and validate on.
        learning_rates: one for each replica.
        report: told (step, steps, best accuracy) some times a second.
        saved: where its checkpoint is, or None to keep none.
    """

    def __init__(
        self,
        stack: Stack,
        training: Training,
        data: TrialData,
        learning_rates: Sequence[float],
        report: Callable[[int, int, float | None], None],
        saved: Path | None = None,
    ):
        self.stack, self.training, self.data, self.report, self.saved = stack, training, data, report, saved
        self.steps = training.epochs * steps_per_epoch(data.train, training.batch_size)
        optimiser = AdamW(stack, learning_rates, training.weight_decay, self.steps, training.warmup)
        dropout = training.embedding_dropout
        self._began, self._evaluating = time.perf_counter(), 0.0
        self.run = (
            GraphSteps(stack, optimiser, dropout, lengths=_shared_lengths(data.train))
            if stack.flat.is_cuda
            else Steps(stack, optimiser, dropout)
        )
        self.validation = Validation(stack, data.valid)
        self.replicas = [Replica() for _ in learning_rates]
        self.best, self.last = stack.flat.clone(), stack.flat.clone()
        self.rows = list(range(stack.size))  # row of the stack -> replica
        self.step = 0
        self.accuracy: float | None = None
        self.notes: list[str] = []
        self._written = time.monotonic()
        if stack.flat.is_cuda:
            self.run.compiling += time.perf_counter() - self._began  # the compiler is loaded

    def train(self) -> Trained:
        """Train to the end, from the checkpoint where there is one."""
        self._take_up()
        self.stack.template.train()
        if isinstance(self.run, GraphSteps):
            begin = time.perf_counter()
            self.run.prepare(self.data.train, self.training.batch_size)
            self.validation.prepare(self.data.valid + self.data.test)
            self.stack.template.train()
            torch.cuda.empty_cache()  # a capture cannot take what these have left
            self.run.compiling += time.perf_counter() - begin
        order = torch.Generator().manual_seed(self.training.data_seed)
        step = 0
        for _ in range(self.training.epochs):
            for part, rows in batches(self.data.train, self.training.batch_size, order):
                step += 1
                if step <= self.step:  # done before the checkpoint
                    continue
                if not self.rows:
                    return self._done()
                self.run(part, rows)
                self.step = step
                if step % self.training.validate_every == 0 or step == self.steps:
                    self._validate()
                if step % 20 == 0 or not self.rows:
                    self.report(step, self.steps, self.accuracy)
        return self._done()

    def _done(self) -> Trained:
        compiling = self.run.compiling
        training = time.perf_counter() - self._began - compiling - self._evaluating
        seconds = {"compiling": compiling, "training": training, "evaluating": self._evaluating}
        return Trained(
            self.replicas, self.best, self.last, self.notes + self.run.notes + self.validation.notes, seconds
        )

    def _validate(self) -> None:
        """Look at every replica that is still training. The one place where the host waits for the device."""
        flat = self.stack.flat
        if flat.is_cuda:
            torch.cuda.synchronize()  # or the steps before would be taken for a part of this
        begin = time.perf_counter()
        measured = self.validation()
        active = [(row, index) for row, index in enumerate(self.rows) if index != GONE]
        since = self.replicas[active[0][1]].steps
        losses = (self.run.take_losses() / max(1, self.step - since)).tolist()
        going = []
        for row, index in active:
            replica, found = self.replicas[index], measured[row]
            self._judge(replica, found, losses[row])
            if replica.best_step == self.step and replica.best_valid is found:
                self.best[index] = flat[row]
            self.last[index] = flat[row]
            if replica.status == "training":
                going.append(row)
        best = [r.best_score[0] for r in self.replicas if r.best_score]
        self.accuracy = max(best, default=None)
        if len(going) < len(active):
            self._drop_all_but(going)
        self._evaluating += time.perf_counter() - begin
        self.stack.template.train()
        if self.saved and self.rows and time.monotonic() - self._written > CHECKPOINT_SECONDS:
            try:
                self._put_down(self.saved)
            except OSError as error:
                self.notes.append(f"no checkpoint could be written: {error}")
                self.saved = None

    def _judge(self, replica: Replica, found: list[Measured], loss: float) -> None:
        replica.steps = self.step
        finite = math.isfinite(loss) and all(math.isfinite(m.loss) for m in found)  # type: ignore[arg-type]
        if not finite:
            replica.status = "diverged"
            replica.curve.append(Point(self.step, None, None))
            return
        accuracy = sum(m.accuracy for m in found) / len(found)  # type: ignore[misc]
        replica.last_valid = found
        replica.curve.append(Point(self.step, loss, accuracy))
        score = (accuracy, -sum(m.loss for m in found))  # type: ignore[misc]
        if replica.best_score is None or score > replica.best_score:
            replica.best_score, replica.best_valid, replica.best_step = score, found, self.step
        threshold = self.training.threshold
        if self.step == self.steps or (threshold is not None and accuracy >= threshold):
            replica.status = "ok"

    def _drop_all_but(self, going: list[int]) -> None:
        """Replicas that are done cost nothing from here on, where dropping them is cheap: a captured step is for all,
        so there they run on, unseen, until all are done."""
        if not going:
            self.rows = []
        elif isinstance(self.run, GraphSteps):
            self.rows = [index if row in going else GONE for row, index in enumerate(self.rows)]
        else:
            self.run.keep(torch.tensor(going))
            self.rows = [self.rows[row] for row in going]

    # --- Put down and taken up ---

    def _put_down(self, path: Path) -> None:
        o = self.run.optimiser
        random = {"random": torch.get_rng_state()}
        if self.stack.flat.is_cuda:
            random["random_gpu"] = torch.cuda.get_rng_state()
        tensors = {
            "flat": self.stack.flat, "mean": o.mean, "square": o.square, "count": o.count,
            "best": self.best, "last": self.last, **random,
        }  # fmt: skip
        words = {
            "step": self.step,
            "rows": self.rows,
            "accuracy": self.accuracy,
            "replicas": [vars(replica) for replica in self.replicas],
        }
        checkpoint.write(path, tensors, words)
        self._written = time.monotonic()

    def _take_up(self) -> None:
        if self.saved is None:
            return
        try:
            tensors, words = checkpoint.read(self.saved)
        except FileNotFoundError:
            return
        except checkpoint.Torn as error:
            self.notes.append(f"checkpoint refused, training starts over: {error}")
            return
        if len(words["rows"]) < self.stack.size:
            self.run.keep(torch.tensor(words["rows"]))
        o = self.run.optimiser
        with torch.no_grad():
            for name, to in (("flat", self.stack.flat), ("mean", o.mean), ("square", o.square), ("count", o.count)):
                to.copy_(tensors[name])
        self.best, self.last = (tensors[name].to(self.stack.flat.device) for name in ("best", "last"))
        self.step, self.rows, self.accuracy = words["step"], words["rows"], words["accuracy"]
        self.replicas = [_replica(old) for old in words["replicas"]]
        torch.set_rng_state(tensors["random"])
        if self.stack.flat.is_cuda and "random_gpu" in tensors:
            torch.cuda.set_rng_state(tensors["random_gpu"])


def _shared_lengths(parts: Sequence[SliceData]) -> set[int]:
    """Lengths of several slices, whose number of labels differs."""
    shapes = {(part.tokens.shape[1], part.targets.shape[1]) for part in parts}
    lengths = Counter(time for time, _ in shapes)
    return {time for time, slices in lengths.items() if slices > 1}


def _replica(words: dict[str, Any]) -> Replica:
    def measured(values: list[Any] | None) -> list[Measured] | None:
        return None if values is None else [Measured(*value) for value in values]

    return Replica(
        **words
        | {
            "best_score": tuple(words["best_score"]) if words["best_score"] else None,
            "best_valid": measured(words["best_valid"]),
            "last_valid": measured(words["last_valid"]),
            "curve": [Point(*point) for point in words["curve"]],
        }
    )
