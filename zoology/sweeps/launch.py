"""A sweep from what is asked to what is on disk: expand, open the folder, audit, run."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from rich.console import Console

from zoology.architectures.audit import audit_many
from zoology.data import SliceData, load_data
from zoology.record import CHECKPOINTS, RESULTS, Record, TrialSpec
from zoology.registry import InputError
from zoology.sweeps.folder import RunFolder, run_name
from zoology.sweeps.progress import SweepProgress, TrialProgress, busy
from zoology.sweeps.space import Request, expand, flag
from zoology.tasks.base import IGNORE


class Place(Record):
    """Where a run lies, and whether one that is there may be taken up."""

    out: Path = Path("runs")
    name: str | None = None
    resume: bool = False
    retry_failed: bool = False


class Resources(Record):
    """What each trial gets, and where it runs. Every field is a flag of `sweep`."""

    cpus_per_trial: float = Field(1, ge=0.01, description="cores for each trial. Default: 1")
    gpus_per_trial: float = Field(
        0, ge=0, description="GPUs for each trial; 0.25 puts four on one. Default: 1 where there is one"
    )
    max_concurrent: int | None = Field(None, ge=1, description="trials at a time. Default: as many as fit")
    address: str | None = Field(
        None, description="a running Ray cluster: auto, or host:port. Default: this machine alone"
    )

    @property
    def gpu(self) -> bool:
        """Whether trials run on one."""
        return self.gpus_per_trial > 0

    def check(self) -> None:
        """Raise InputError for amounts that Ray does not count in: it shares one core or GPU, but no several."""
        for key in ("cpus_per_trial", "gpus_per_trial"):
            amount = getattr(self, key)
            if amount > 1 and amount != int(amount):
                raise InputError(f"{flag(key)} {amount:g}: give a whole number, or a part of 1")


def launch_sweep(request: Request, place: Place, resources: Resources, command: str, console: Console) -> Path:
    """Run a sweep through Ray Tune; returns its folder.

    Args:
        request: what is asked.
        place: where it goes.
        resources: what each trial gets.
        command: the command line, kept with the results.
        console: where progress is shown.

    Raises:
        InputError: the request is impossible, the folder cannot be used, or a mixer fails the audit.
        KeyboardInterrupt: the user stopped it. What was finished is on disk.
    """
    resources.check()
    trials = expand(request)
    with _open(request, place, trials, command, console) as folder:
        if folder.rest:
            refuse_impossible(folder, console)
            with ExitStack() as stack:
                with busy(console, "starting Ray"):
                    from zoology.sweeps.run import cluster, run_sweep

                    ray = stack.enter_context(cluster(resources))
                shown = SweepProgress(folder.rest, len(folder.done), ray.slots, console, resources.gpu)
                run_sweep(folder, resources, ray, stack.enter_context(shown))
        folder.finish()
        return folder.path


def launch_trial(request: Request, place: Place, command: str, console: Console) -> Path:
    """Train one trial in this process, with a progress bar; returns its folder. Raises as `launch_sweep` does."""
    trials = expand(request)
    if len(trials) > 1:
        raise InputError(
            f"train takes one point, and these flags make {len(trials)}: give one value each, or use sweep"
        )
    with _open(request, place, trials, command, console) as folder:
        if folder.rest:
            refuse_impossible(folder, console)
            from zoology.train import best_device, run_trial

            with TrialProgress(trials[0], console) as progress:
                folder.append(run_trial(trials[0], best_device(), progress, folder.path))
        folder.finish()
        return folder.path


def refuse_impossible(folder: RunFolder, console: Console) -> None:
    """Draw the data that the trials to run share, and audit their mixers, before any is trained.

    Raises:
        InputError: the task cannot be drawn or has no one right answer, or a mixer fails the audit.
    """
    first = folder.rest[0]
    task = first.task
    with busy(console, f"drawing {task}"):
        try:
            for part in (part for split in load_data(first) for part in split):
                check_solver(part)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"task {task} cannot be drawn: {type(error).__name__}: {error}") from error
    refuse_cheaters(folder, console)


def check_solver(part: SliceData, rows: int = 256) -> None:
    """See that a task has one right answer: its solver must give the labels of the first `rows` sequences.

    Raises:
        InputError: the solver says something else.
    """
    scored, targets = part.targets[:rows] != IGNORE, part.targets[:rows]
    answers = torch.from_numpy(part.task.solve(part.tokens[:rows].numpy().astype("int32"))).long()
    if not torch.equal(answers.gather(1, part.positions[:rows])[scored], targets[scored]):
        raise InputError(f"task {part.task.name} {part.name}: its solver gives other answers than its labels")


def refuse_cheaters(folder: RunFolder, console: Console) -> None:
    """Audit each mixer that the trials to run use, once, at its narrowest width, and keep what was found.

    Every replica is checked again after its training, at its own width and dials.

    Raises:
        InputError: a mixer fails, with what was found.
    """
    trials = folder.rest
    jobs: dict[str, tuple[str, int, dict[str, Any]]] = {}
    for spec in sorted(trials, key=lambda spec: spec.d_model):
        for layer in spec.layers:
            jobs.setdefault(layer.mixer, (layer.mixer, spec.d_model, layer.settings))
    with busy(console, f"auditing {', '.join(jobs)}"):
        verdicts = audit_many(list(jobs.values()), plugins=trials[0].plugins)
    folder.keep_audit(verdicts)
    for verdict in verdicts:
        if verdict.findings:
            more = f" (and {len(verdict.findings) - 1} more: zoology audit)" if len(verdict.findings) > 1 else ""
            raise InputError(f"{verdict.mixer} fails the audit: {verdict.findings[0]}{more}")


@contextmanager
def _open(
    request: Request, place: Place, trials: Sequence[TrialSpec], command: str, console: Console
) -> Iterator[RunFolder]:
    """The run's folder. One that is new, and has no result when something goes wrong, is taken away again."""
    if place.retry_failed and not place.resume:
        raise InputError("--retry-failed: goes with --resume")
    if place.name is not None and (place.name in ("", ".", "..") or Path(place.name).name != place.name):
        raise InputError(f"--name {place.name or repr('')}: must be the name of a folder in {place.out} (see --out)")
    path = place.out / (place.name or run_name(request, trials))
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        with RunFolder.open(path, request, trials, command, place.resume) as folder:
            for notice in folder.notices:
                console.print(f"notice: {notice}", style="yellow", soft_wrap=True)
            if place.retry_failed:
                folder.forget_failed()
            yield folder
    except BaseException:
        if path in new and not (path / RESULTS).exists() and not (path / CHECKPOINTS).exists():
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):  # another run has begun beside it
                for folder_above in new[1:]:
                    folder_above.rmdir()
        raise
