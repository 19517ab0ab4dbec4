"""A run folder: the sweep's spec, its rows and its environment, written whole or not at all, by one sweep at a time."""

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from zoology import __version__
from zoology.architectures.audit import Verdict
from zoology.record import (
    AUDIT,
    CHECKPOINTS,
    ENVIRONMENT,
    FORMAT,
    RESULTS,
    SWEEP,
    TrialResult,
    TrialSpec,
    rows_expected,
)
from zoology.registry import InputError
from zoology.sweeps.space import Request

LOCK = ".lock"
TEMPORARY = ".writing-"


def sweep_id(trials: Sequence[TrialSpec]) -> str:
    """12 hex digits over the ids of all trials, in any order."""
    return hashlib.sha256("".join(sorted(spec.id for spec in trials)).encode()).hexdigest()[:12]


def run_name(request: Request, trials: Sequence[TrialSpec]) -> str:
    """A readable name that the same command always gets: based-mqar-1f3a9c."""
    names = list(dict.fromkeys(name.replace("+", "-") for name in request.architectures))
    head = "-".join(names[:3]) + (f"-and-{len(names) - 3}-more" if len(names) > 3 else "")
    return f"{head}-{request.task}-{sweep_id(trials)[:6]}"


class RunFolder:
    """The only writer of a run. Made by `open`, released by `close` or by the end of the process.

    Attributes:
        path: the folder.
        trials: what the sweep consists of.
        done: trial id -> status of what is on disk.
        notices: what was mended on opening, for the user to read.
    """

    def __init__(self, path: Path, trials: Sequence[TrialSpec], lock: IO[str]):
        self.path = path
        self.trials = {spec.id: spec for spec in trials}
        self.done: dict[str, str] = {}
        self.notices: list[str] = []
        self._lock = lock

    @classmethod
    def open(cls, path: Path, request: Request, trials: Sequence[TrialSpec], command: str, resume: bool) -> "RunFolder":
        """Begin a run, or take up an old one.

        Args:
            path: the folder, made where it is missing.
            request: what was asked, kept in `sweep.json`.
            trials: what it became.
            command: the command line, kept beside it.
            resume: whether to go on with what the folder holds.

        Raises:
            InputError: another sweep is writing there, the folder holds another sweep or something foreign, it holds
                this sweep and `resume` is not set, or it cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = open(path / LOCK, "a+")  # noqa: SIM115  (held for the life of the run)
        except OSError as error:
            raise InputError(f"run folder {str(path)!r} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            writer = lock.read().strip() or "unknown"
            lock.close()
            raise InputError(f"another sweep (process {writer}) is writing {path}: wait, or give --name") from None
        except OSError as error:
            lock.close()
            raise InputError(f"run folder {str(path)!r} cannot be locked: {error.strerror}") from error
        folder = cls(path, trials, lock)
        try:
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            folder._begin(request, command, resume)
        except OSError as error:
            folder.close()
            raise InputError(f"run folder {str(path)!r} cannot be written: {error.strerror}") from error
        except BaseException:
            folder.close()
            raise
        return folder

    def _begin(self, request: Request, command: str, resume: bool) -> None:
        sweep, results = self.path / SWEEP, self.path / RESULTS
        for left in self.path.glob(f"{TEMPORARY}*"):  # by a writer that was killed; the lock says that none is at it
            left.unlink()
        if not sweep.exists():
            if any(entry.name not in (LOCK, ENVIRONMENT) for entry in self.path.iterdir()):
                raise InputError(f"{self.path} holds files that are no run: give another --name or --out")
            if resume:
                self.notices.append(f"nothing to resume in {self.path}: starting from the beginning")
            content = {
                "format": FORMAT,
                "sweep": sweep_id(list(self.trials.values())),
                "command": command,
                "request": request.model_dump(mode="json"),
                "trials": list(self.trials),
            }
            write_whole(self.path / ENVIRONMENT, json.dumps(environment(), indent=2) + "\n")
            write_whole(sweep, json.dumps(content, indent=2) + "\n")
            return
        try:
            content = json.loads(sweep.read_text(encoding="utf-8"))
            held, version = content["sweep"], int(content["format"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{sweep} is no sweep's spec ({error}): give another --name") from error
        if version > FORMAT:
            raise InputError(
                f"{self.path} has the newer format {version}; this version writes {FORMAT}: update zoology, "
                "or give another --name"
            )
        if held != sweep_id(list(self.trials.values())):
            raise InputError(_other_sweep(self.path, content, request))
        self._load(results)
        if not resume:
            count = f"{len(self.done)} of {len(self.trials)} trials are done"
            raise InputError(f"{self.path} holds this sweep already ({count}): add --resume to go on, or give --name")

    def _load(self, results: Path) -> None:
        """Read what is done; drop torn lines and trials that are not whole, and say so.

        Raises:
            InputError: a line is no row of this sweep.
        """
        if not results.exists():
            return
        rows, torn = _read_rows(results)
        blocks: dict[str, list[dict[str, Any]]] = {}
        for number, row in enumerate(rows, 1):
            if row["trial"] not in self.trials:
                raise InputError(
                    f"{results}, line {number}: trial {row['trial']} is none of this sweep; mend or remove it"
                )
            blocks.setdefault(row["trial"], []).append(row)
        whole = {trial for trial, block in blocks.items() if _is_whole(self.trials[trial], block)}
        if torn or len(whole) < len(blocks):
            lost = len(blocks) - len(whole) or 1
            what = "1 trial that is" if lost == 1 else f"{lost} trials that are"
            self.notices.append(f"{results} was torn: {what} not whole will run again")
            write_whole(results, "".join(_line(row) for row in rows if row["trial"] in whole))
        self.done = {trial: _status(blocks[trial]) for trial in blocks if trial in whole}

    @property
    def rest(self) -> list[TrialSpec]:
        """The trials that are still to run, in order."""
        return [spec for key, spec in self.trials.items() if key not in self.done]

    def forget_failed(self) -> None:
        """Take failed trials out, so that they run again."""
        rows, _ = _read_rows(self.path / RESULTS) if (self.path / RESULTS).exists() else ([], False)
        failed = {row["trial"] for row in rows if row["status"] == "failed"}
        if failed:
            write_whole(self.path / RESULTS, "".join(_line(row) for row in rows if row["trial"] not in failed))
            self.done = {key: status for key, status in self.done.items() if key not in failed}

    def keep_audit(self, verdicts: Sequence[Verdict]) -> None:
        """Put what the audit found beside the rows. Of mixers that only an earlier part of the sweep used, it stays.

        Raises:
            InputError: the disk does not take it.
        """
        path = self.path / AUDIT
        try:
            kept = {verdict["mixer"]: verdict for verdict in json.loads(path.read_text(encoding="utf-8"))["verdicts"]}
        except (OSError, ValueError, KeyError, TypeError):  # there is none yet, or none of ours: it is made anew
            kept = {}
        kept |= {verdict.mixer: asdict(verdict) for verdict in verdicts}
        write_whole(path, json.dumps({"format": FORMAT, "verdicts": list(kept.values())}, indent=2) + "\n")

    def append(self, result: TrialResult) -> None:
        """Put a finished trial on disk: all of its rows in one write, synced before this returns.

        Raises:
            InputError: the disk does not take them. What it took of them is taken back.
        """
        if result.spec.id in self.done:
            return
        rows = result.rows()
        block = "".join(map(_line, rows)).encode()
        results = self.path / RESULTS
        try:
            with open(results, "ab", buffering=0) as file:
                size = file.tell()
                try:
                    if file.write(block) != len(block):
                        raise OSError(errno.ENOSPC, "the disk took only a part of a trial's rows")
                    os.fsync(file.fileno())
                except OSError:
                    os.ftruncate(file.fileno(), size)
                    raise
        except OSError as error:
            raise InputError(
                f"{results} cannot be written: {error.strerror}; mend that, and go on with --resume"
            ) from error
        self.done[result.spec.id] = _status(rows)

    def finish(self) -> None:
        """Sort the rows into the order of the sweep: two runs of a spec differ in their timings only."""
        rows, _ = _read_rows(self.path / RESULTS)
        place = {key: index for index, key in enumerate(self.trials)}
        ordered = sorted(rows, key=lambda row: place[row["trial"]])
        if ordered != rows:
            write_whole(self.path / RESULTS, "".join(map(_line, ordered)))
        if not self.rest:  # what is left there is of trials that failed, which would begin anew
            shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another sweep write here."""
        self._lock.close()


def _read_rows(results: Path) -> tuple[list[dict[str, Any]], bool]:
    """(rows, whether the end is torn). A line that is broken elsewhere is no work of ours.

    Raises:
        InputError: a line other than the last is no row.
    """
    lines = results.read_text(encoding="utf-8", errors="replace").split("\n")
    torn = lines.pop() != ""  # whole files end with a line feed
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["trial"], row["status"]
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                return rows, True
            raise InputError(f"{results}, line {number}: not a row of results; mend or remove it") from None
        rows.append(row)
    return rows, torn


def _is_whole(spec: TrialSpec, block: Sequence[dict[str, Any]]) -> bool:
    """Whether these are all of a trial's rows, each once."""
    if any(row["status"] == "failed" for row in block):
        return len(block) == 1
    keys = {tuple(row.get(key) for key in ("learning_rate", "seed", "split", "slice")) for row in block}
    return len(block) == len(keys) == rows_expected(spec)


def _status(block: Sequence[dict[str, Any]]) -> str:
    """The worst that befell a trial: failed, diverged or ok."""
    statuses = {row["status"] for row in block}
    return next((status for status in ("failed", "diverged") if status in statuses), "ok")


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _other_sweep(path: Path, content: dict[str, Any], request: Request) -> str:
    """Why a folder is not this sweep's: what of the request differs, as it is there and as it is here."""
    old, new = _flat(content.get("request", {})), _flat(request.model_dump(mode="json"))
    differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if differing == ["plugins"]:
        return f"{path} belongs to another version of the plugin file: give another --name, or restore the file"
    changes = [
        f"{key} is {_short(old.get(key))} there and {_short(new.get(key))} here"
        for key in differing
        if key != "plugins"
    ]
    changes += ["the plugin files differ"] if "plugins" in differing else []
    what = "; ".join(changes) or "the same command, by another version of zoology"
    return f"{path} belongs to another sweep ({what}): {content.get('command', '')!r}; give another --name"


def _flat(request: dict[str, Any]) -> dict[str, Any]:
    """A request with the keys of its dictionaries among its own, and plugins by what they say."""
    flat: dict[str, Any] = {}
    for key, value in request.items():
        if key == "plugins":
            flat[key] = sorted(plugin.get("source", "") for plugin in value)
        else:
            flat |= value if isinstance(value, dict) else {key: value}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return "not given" if value is None else text if len(text) <= 60 else text[:57] + "..."


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Raises:
        InputError: the disk does not take it. The old content is left.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def environment() -> dict[str, Any]:
    """What the numbers were made with: versions, machine, date."""
    packages = ("torch", "numpy", "ray", "pydantic", "pandas", "matplotlib", "triton")
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "zoology": __version__,
        "python": sys.version.split()[0],
        "packages": versions,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
