"""Run the trials of a sweep through Ray Tune. The only file that imports Ray.

Ray Tune decides what runs where; the run folder, which the driver alone writes, decides what is done. So a sweep goes
on after any death by running what is missing, and needs nothing of Tune's own checkpoints.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

# Ray reads these when it is imported or started.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # stopping.py has one for every signal
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # workers run in the environment that the driver is in

import ray
from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.experiment import Trial

from zoology.record import TrialResult, TrialSpec
from zoology.registry import InputError
from zoology.sweeps.folder import RunFolder
from zoology.sweeps.progress import cost
from zoology.sweeps.stopping import Stopped, Stopping

if TYPE_CHECKING:
    from zoology.sweeps.launch import Resources

WORKER_DEATHS = 3
"""How often a trial is started again after its worker died (killed, out of memory) before it counts as failed."""

CONNECT_SECONDS = 5.0
"""How long the head of a cluster may take to accept a connection. Ray itself would try for minutes."""

OBJECT_STORE_BYTES = 100 * 2**20
"""Only specs and results pass through it; Ray would set aside 30 % of the memory."""

SILENT = logging.CRITICAL + 1
SCRATCH = "zoology-run-"
MINUTE = 60


class Watcher(Protocol):
    """Who is told how a sweep goes."""

    def started(self, spec: TrialSpec) -> None: ...
    def died(self, spec: TrialSpec) -> None: ...
    def finished(self, result: TrialResult) -> None: ...


class Cluster(NamedTuple):
    """Ray, running.

    slots: how many trials run at a time.
    scratch: a folder for Tune's own files.
    stopping: what turns signals into exceptions while it runs.
    """

    slots: int
    scratch: Path
    stopping: Stopping


class TrialActor(tune.Trainable):
    """A worker that runs one trial after another: torch is imported and the data drawn once."""

    def setup(self, config: dict[str, Any]) -> None:
        self.spec, self.keep = config["spec"], Path(config["keep"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        import torch

        from zoology.train import run_trial

        resources = self.trial_resources.required_resources
        torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
        share = resources.get("GPU", 0)
        if 0 < share < 1:  # a trial that wants more halves its group of replicas, and leaves its neighbours in peace
            torch.cuda.set_per_process_memory_fraction(share)
        spec = TrialSpec.model_validate_json(self.spec)
        result = run_trial(spec, "cuda" if share else "cpu", keep=self.keep)
        return {"result": result.model_dump_json(exclude={"spec"}), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a trial is whole or is run again."""


class _Driver(Callback):
    """Puts each result on disk as it comes in, and tells the watcher.

    Attributes:
        deaths: trial id -> how often its worker died.
        error: why a result could not be put on disk; Tune would raise it as the text of a traceback.
    """

    def __init__(self, folder: RunFolder, watcher: Watcher, stopping: Stopping):
        self.folder = folder
        self.watcher = watcher
        self.stopping = stopping
        self.deaths: Counter[str] = Counter()
        self.error: InputError | None = None

    def __reduce__(self) -> Any:
        """Tune pickles its callbacks to restore them; an open folder and a display belong to this process."""
        return Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.watcher.started(_spec(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self._finish(TrialResult(spec=_spec(trial), **json.loads(result["result"])))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._died(_spec(trial))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        # Tune gives up at once where a worker dies between two trials. Such a trial waits for the next round.
        spec = _spec(trial)
        if self.deaths[spec.id] < WORKER_DEATHS:
            self._died(spec)
        else:
            reason = f"its worker died {WORKER_DEATHS + 1} times (killed, out of memory, or a crash outside Python)"
            self._finish(TrialResult.failed(spec, f"{_last_words(trial)}\nWorkerDied: {reason}"))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self.stopping.check()

    def _died(self, spec: TrialSpec) -> None:
        self.deaths[spec.id] += 1
        self.watcher.died(spec)

    def _finish(self, result: TrialResult) -> None:
        try:
            self.folder.append(result)
        except InputError as error:
            self.error = error
            raise
        self.watcher.finished(result)


def run_sweep(folder: RunFolder, resources: "Resources", cluster: Cluster, watcher: Watcher) -> None:
    """Run what is left of a sweep. Every trial that ends is on disk before the next is looked at.

    Raises:
        InputError: the run folder cannot be written any more.
        Stopped: a signal asked for it.
    """
    driver = _Driver(folder, watcher, cluster.stopping)
    while rest := folder.rest:
        deaths = driver.deaths.total()
        # The long ones first, so that none is left alone at the end.
        rest.sort(key=lambda spec: cost(spec, resources.gpu), reverse=True)
        try:
            _tune(rest, driver, resources, cluster.scratch)
        except tune.TuneError:
            if driver.error is None:
                raise
            raise driver.error from None
        if folder.rest and driver.deaths.total() == deaths:
            raise RuntimeError(f"Ray Tune ended with {len(folder.rest)} trials that did not run and did not fail")


def _tune(rest: Sequence[TrialSpec], driver: _Driver, resources: "Resources", scratch: Path) -> None:
    trainable = tune.with_resources(TrialActor, {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial})
    Tuner(
        trainable,
        param_space={
            "spec": tune.grid_search([spec.model_dump_json() for spec in rest]),
            "keep": str(driver.folder.path.resolve()),
        },
        tune_config=TuneConfig(
            reuse_actors=True,
            max_concurrent_trials=resources.max_concurrent,
            trial_name_creator=lambda trial: _spec(trial).id,
            trial_dirname_creator=lambda trial: _spec(trial).id,
        ),
        run_config=RunConfig(
            name=f"round-{driver.deaths.total()}",
            storage_path=str(scratch),
            verbose=0,
            failure_config=FailureConfig(max_failures=WORKER_DEATHS),
            callbacks=[driver],
        ),
    ).fit()


@contextlib.contextmanager
def cluster(resources: "Resources") -> Iterator[Cluster]:
    """Ray, started here or joined at the address, quietly; put away at the end, however that comes.

    Raises:
        InputError: Ray does not start, no cluster answers at the address, or a trial asks for more than there is.
        Stopped: a signal came.
    """
    address = resources.address or os.environ.get("RAY_ADDRESS") or "local"
    if address not in ("auto", "local"):
        _knock(address)
    with Stopping() as stopping, _scratch() as scratch:
        try:
            stopping.ignore_hangups()
            _start(address, scratch)
            stopping.take()
            yield Cluster(_slots(resources), scratch, stopping)
        except KeyboardInterrupt:  # Ray raises one of its own where a signal comes while it waits
            stopping.check()
            raise
        finally:
            ray.shutdown()


def _start(address: str, scratch: Path) -> None:
    # Ray and Tune log and print the death of each worker at length. What matters of it is in the results.
    logging.getLogger("ray").setLevel(SILENT)
    ray._private.worker._worker_logs_enabled = False
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": SILENT}
    if address == "local":
        options |= {
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": str(scratch / "ray"),
        }
    group = os.getpgrp()
    try:
        ray.init(**options)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        why = (str(error).splitlines() or [repr(error)])[0]
        hint = "" if address in ("auto", "local") else " (one that asks for a token needs RAY_AUTH_MODE=token)"
        raise InputError(f"Ray does not start: {why}{hint}") from error
    except SystemExit as error:  # by the handler of SIGTERM that Ray puts in place of ours
        raise Stopped(signal.SIGTERM) from error
    finally:
        # Where no kernel binds Ray's processes to the driver (macOS), Ray moves the driver into a process group of its
        # own, and under a script a terminal's Ctrl-C would not reach it any more.
        if os.getpgrp() != group:
            with contextlib.suppress(OSError):
                os.setpgid(0, group)


def _knock(address: str) -> None:
    """See that somebody listens at host:port, before Ray waits for it.

    Raises:
        InputError: nobody does, or it is no address.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (host and colon and port.isdecimal() and int(port) < 2**16):
        raise InputError(f"--address {address}: is not allowed; auto, or host:port of a Ray cluster")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise InputError(f"--address {address}: no Ray cluster answers there ({error.strerror or error})") from error


def _slots(resources: "Resources") -> int:
    have = ray.cluster_resources()
    slots = [resources.max_concurrent or 10**6]
    for kind, wanted in (("CPU", resources.cpus_per_trial), ("GPU", resources.gpus_per_trial)):
        if wanted > have.get(kind, 0):
            raise InputError(
                f"--{kind.lower()}s-per-trial {wanted:g} is more than there is: {have.get(kind, 0):g} {kind}s"
            )
        if wanted:
            slots.append(int(have[kind] // wanted))
    return min(slots)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for Ray's sessions and Tune's files, removed at the end; with it those of drivers that were killed."""
    base = tempfile.gettempdir()
    if len(base) > 40:  # Ray's sockets lie some 65 characters deeper, and a socket's path has room for 107
        base = "/tmp"
    for old in Path(base).glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError):
            known = old.lstat()
            # One that is new may not be locked yet.
            if known.st_uid == os.getuid() and time.time() - known.st_mtime > MINUTE:
                with _hold(old):
                    shutil.rmtree(old, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=base))
    try:
        with _hold(scratch):
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _hold(folder: Path) -> Iterator[IO[str]]:
    """The lock of a scratch folder, which ends with the process. Raises OSError where another holds it."""
    with open(folder / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock


def _spec(trial: Trial) -> TrialSpec:
    return TrialSpec.model_validate_json(trial.config["spec"])


def _last_words(trial: Trial) -> str:
    """What Ray says of a trial's failures."""
    if trial.error_file and os.path.exists(trial.error_file):
        return Path(trial.error_file).read_text(encoding="utf-8", errors="replace").strip()
    return "Ray gave no reason"
