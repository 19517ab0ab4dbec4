"""What a person sees while a sweep runs: one live display on a terminal, plain lines anywhere else."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zoology.record import TrialResult, TrialSpec

if TYPE_CHECKING:
    from zoology.train import Progress as Where


class SweepProgress:
    """Counts what is done, running and failed, knows the best so far, and estimates the time left.

    Args:
        rest: the trials that are to run.
        done: how many were on disk before this run began.
        slots: trials that run at a time, for the estimate.
        console: where to draw.
        gpu: whether trials run on one, for the estimate.
    """

    def __init__(self, rest: Sequence[TrialSpec], done: int, slots: int, console: Console, gpu: bool = False):
        self.total, self.done, self.slots, self.gpu = done + len(rest), done, max(1, slots), gpu
        self.failed = self.diverged = 0
        self.running: dict[str, tuple[TrialSpec, float]] = {}
        self.best: tuple[float, str] | None = None
        self.begin = time.monotonic()
        self._rest = {spec.id: spec for spec in rest}
        self._paces: dict[str, list[float]] = {}
        self._console = console
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "SweepProgress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live.is_started:
            self._live.stop()

    def started(self, spec: TrialSpec) -> None:
        """A trial has begun (or begun again, after its worker died)."""
        self.running[spec.id] = (spec, time.monotonic())

    def died(self, spec: TrialSpec) -> None:
        """A trial's worker died; it will begin again."""
        self.running.pop(spec.id, None)
        line = Text.assemble(("worker died ", "yellow"), describe(spec), ("  runs again", "dim"))
        self._console.print(Text(f"[{self.done}/{self.total}] ", "dim") + line, soft_wrap=True)

    def finished(self, result: TrialResult) -> None:
        """A trial has ended and is on disk."""
        spec = result.spec
        _, begin = self.running.pop(spec.id, (spec, time.monotonic()))
        wall = time.monotonic() - begin
        if result.replicas:  # what training took, without the start of the worker, which only its first trial waits for
            seconds = sum(replica.seconds for replica in result.replicas)
            self._paces.setdefault(spec.architecture, []).append(seconds / cost(spec, self.gpu))
        self._rest.pop(spec.id, None)
        self.done += 1
        name = describe(spec)
        if result.status == "failed":
            self.failed += 1
            last = (result.error or "").strip().splitlines()[-1:]
            line = Text.assemble(("  failed ", "bold red"), f"{name}  ", (last[0] if last else "", "red"))
        else:
            recall, lost = best_recall(result), sum(r.status == "diverged" for r in result.replicas)
            self.diverged += lost
            if recall is not None and (self.best is None or recall > self.best[0]):
                self.best = (recall, name)
            shown = "diverged" if recall is None else f"{recall:7.2%}"
            line = Text.assemble((f"{shown:>8} ", "bold green"), name)
            if lost:
                line.append(f"  ({lost} of {len(result.replicas)} replicas diverged)", "yellow")
        line.append(f"  {wall:.1f} s", "dim")
        self._console.print(Text(f"[{self.done}/{self.total}] ", "dim") + line, soft_wrap=True)

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the trials that ended, None before the first.

        The long trials run first, so each is weighed by its expected cost, at the pace of its architecture where one
        of it has ended, and at the pace of all otherwise.
        """
        if not self._paces:
            return None
        everything = [pace for paces in self._paces.values() for pace in paces]
        now = time.monotonic()
        left = [0.0]
        for spec in self._rest.values():
            paces = self._paces.get(spec.architecture, everything)
            expected = cost(spec, self.gpu) * sum(paces) / len(paces)
            _, begin = self.running.get(spec.id, (spec, now))
            left.append(max(0.0, expected - (now - begin)))
        return max(sum(left) / self.slots, max(left))

    def render(self) -> RenderableType:
        """The live display."""
        table = Table.grid(padding=(0, 2))
        left = self.seconds_left
        counts = [Text(f"{self.done}/{self.total} done", "bold"), Text(f"{len(self.running)} running", "cyan")]
        if self.failed:
            counts.append(Text(f"{self.failed} failed", "bold red"))
        if self.diverged:
            counts.append(Text(f"{self.diverged} replicas diverged", "yellow"))
        counts.append(Text(f"{clock(time.monotonic() - self.begin)} elapsed", "dim"))
        if left is not None:
            counts.append(Text(f"about {clock(left)} left", "dim"))
        table.add_row(ProgressBar(total=self.total, completed=self.done, width=24), *counts)
        parts: list[RenderableType] = [table]
        if self.best:
            parts.append(Text.assemble("best so far  ", (f"{self.best[0]:.2%}", "bold green"), f"  {self.best[1]}"))
        for spec, begin in list(self.running.values())[:8]:
            parts.append(Text(f"running      {describe(spec)}  {clock(time.monotonic() - begin)}", "dim"))
        return Group(*parts)


class TrialProgress:
    """A progress bar for one trial, over the steps of all of its replicas."""

    def __init__(self, spec: TrialSpec, console: Console):
        self._spec = spec
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(describe(spec), total=None)
        self._last = -1

    def __enter__(self) -> "TrialProgress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, at: "Where") -> None:
        """Show where the trial is; where there is no terminal, a line for each group of replicas."""
        learning_rate, seed = self._spec.replicas[at.replica]
        text = f"lr {learning_rate:g}, seed {seed}" if at.together == 1 else f"{at.together} replicas as one"
        if not self._bar.console.is_terminal and at.replica != self._last:
            which = f"replica {at.replica + 1}" if at.together == 1 else f"replicas {at.replica + 1} and on"
            self._bar.console.print(f"{which} of {at.replicas}: {text}")
        self._last = at.replica
        accuracy = "" if at.accuracy is None else f"  {at.accuracy:.1%}"
        self._bar.update(
            self._task,
            description=text + accuracy,
            completed=at.replica * at.steps + at.together * at.step,
            total=at.replicas * at.steps,
        )


def cost(spec: TrialSpec, gpu: bool) -> float:
    """How long a trial takes compared with others of its sweep, roughly.

    Wide layers take longer, and narrow ones cost time by being there. But where replicas stop at a threshold, wide ones
    reach it early; not so on a GPU, where all go on until the last is done, and some learning rate never gets there.
    """
    work = len(spec.replicas) * len(spec.layers) * (spec.d_model + 32)
    return work if gpu or spec.training.threshold is None else work / (spec.d_model + 16)


def describe(spec: TrialSpec) -> str:
    """A trial in a few words: based d_model=64 feature_dim=16 window=0."""
    dials = " ".join(f"{key}={value}" for key, value in spec.dials.items())
    return f"{spec.architecture} d_model={spec.d_model} {dials}".rstrip()


def best_recall(result: TrialResult) -> float | None:
    """Test accuracy, the mean over slices, of the replica that validation prefers; None where all diverged."""

    def mean(replica_scores: list[float | None]) -> float | None:
        known = [score for score in replica_scores if score is not None]
        return sum(known) / len(known) if known else None

    scored = []
    for replica in result.replicas:
        valid = mean([s.accuracy for s in replica.scores if s.split == "valid"])
        test = mean([s.accuracy for s in replica.scores if s.split == "test"])
        if valid is not None and test is not None:
            scored.append((valid, test))
    return max(scored)[1] if scored else None


def clock(seconds: float) -> str:
    """1:05 or 2:03:10."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@contextmanager
def counted(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, moved by calls with (done, of)."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def busy(console: Console, what: str) -> AbstractContextManager[object]:
    """A spinner on a terminal, a plain line anywhere else."""
    if console.is_terminal:
        return console.status(f"{what} …")
    console.print(f"{what} ...", soft_wrap=True)
    return nullcontext()
