"""What lies beside a run's rows: what was asked, what it ran on, what the audit found of its mixers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from zoology.analysis.records import results_files, run_names
from zoology.record import AUDIT, ENVIRONMENT, FORMAT, SWEEP
from zoology.registry import InputError


class RunFacts(NamedTuple):
    """The files of one run folder, each None where it is not there: rows may have been copied without them.

    Attributes:
        name: as `records.load_runs` calls the run.
        sweep: `sweep.json`: command, request and the ids of its trials.
        environment: `environment.json`.
        verdicts: of `audit.json`, a dictionary for each mixer.
    """

    name: str
    sweep: dict[str, Any] | None
    environment: dict[str, Any] | None
    verdicts: list[dict[str, Any]] | None

    @property
    def command(self) -> str:
        """As it was typed, or nothing."""
        return str((self.sweep or {}).get("command", ""))

    @property
    def trials(self) -> list[str] | None:
        """The ids of all trials of the sweep, finished or not."""
        trials = (self.sweep or {}).get("trials")
        return trials if isinstance(trials, list) and all(isinstance(one, str) for one in trials) else None

    def rows(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Those of this run: its trials', where it says which they are, as another run may have finished one first."""
        return rows[rows["run"] == self.name] if self.trials is None else rows[rows["trial"].isin(self.trials)]


def read_facts(paths: Sequence[Path]) -> list[RunFacts]:
    """The facts of each run.

    Args:
        paths: run folders, or their `results.jsonl`.

    Raises:
        InputError: a path is no run, or one of its files is no file of ours or of a newer version.
    """
    files = results_files(paths)
    found = []
    for file, name in zip(files, run_names(files), strict=True):
        folder = file.parent
        sweep, environment, audit = (_read(folder / beside) for beside in (SWEEP, ENVIRONMENT, AUDIT))
        verdicts = None if audit is None else audit.get("verdicts")
        if verdicts is not None and not _are_verdicts(verdicts):
            raise InputError(f"{folder / AUDIT} holds no verdicts of an audit: mend or remove it")
        _check_request((sweep or {}).get("request", {}), folder / SWEEP)
        found.append(RunFacts(name, sweep, environment, verdicts))
    return found


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}): mend or remove it") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is no file of a run: mend or remove it")
    version = content.get("format", FORMAT)
    if not isinstance(version, int) or version > FORMAT:
        raise InputError(f"{file} has the newer format {version}; this version reads up to {FORMAT}: update zoology")
    return content


def _are_verdicts(verdicts: Any) -> bool:
    return isinstance(verdicts, list) and all(_is_verdict(verdict) for verdict in verdicts)


def _is_verdict(verdict: Any) -> bool:
    keys = {"mixer", "d_model", "settings", "findings", "notes", "growth", "state_bytes", "parameters"}
    if not isinstance(verdict, dict) or not keys <= verdict.keys() or not isinstance(verdict["settings"], dict):
        return False
    if not all(isinstance(verdict[key], list) and all(isinstance(x, str) for x in verdict[key]) for key in _LINES):
        return False
    try:
        sizes_after(verdict)
    except (AttributeError, TypeError, ValueError):
        return False
    return True


_LINES = ("findings", "notes")


def sizes_after(verdict: Mapping[str, Any]) -> dict[int, int]:
    """The bytes of the state, of whatever components and dtypes, by the number of tokens after which they were seen."""
    return {
        int(tokens): sum(int(size) for sizes in parts.values() for size in sizes.values())
        for tokens, parts in verdict["state_bytes"]
    }


def _check_request(request: Any, file: Path) -> None:
    if not isinstance(request, dict):
        raise InputError(f"{file} is no file of a run: its request is {str(request)[:40]}")
    for key, kind in (("task_params", dict), ("training", dict), ("plugins", list)):
        if not isinstance(request.get(key) or kind(), kind):
            raise InputError(f"{file} is no file of a run: its {key} are {str(request[key])[:40]}")


def asked(facts: RunFacts, rows: pd.DataFrame) -> list[tuple[str, str]]:
    """What a run was asked and how far it came, as (what, value) pairs to be read.

    Args:
        facts: of the run.
        rows: of `records.load_runs`, of this run and others.
    """
    rows = facts.rows(rows)
    request: dict[str, Any] = (facts.sweep or {}).get("request") or {}
    scored = rows[rows["split"].notna()]
    pairs = [
        ("architectures", _listed(rows["architecture"].unique())),
        *((key.replace("_", " "), _listed(values)) for key, values in _dials(rows).items()),
        ("d_model", _listed(sorted(rows["d_model"].unique()))),
        ("learning rates", _listed(f"{rate:.3g}" for rate in sorted(scored["learning_rate"].unique()))),
        ("model seeds", _listed(int(seed) for seed in sorted(scored["seed"].unique()))),
        ("scale", str(request.get("scale", ""))),
        ("task settings", _pairs(request.get("task_params"))),
        ("recipe", _pairs({k: v for k, v in (request.get("training") or {}).items() if k not in _SHOWN})),
        ("plugins", _plugins(request.get("plugins"))),
        ("trials", _progress(facts, rows)),
        ("begun", str((facts.environment or {}).get("started", ""))),
    ]
    return [(what, value) for what, value in pairs if value]


_SHOWN = ("seeds", "learning_rates")  # of the recipe, what stands on a line of its own


def _dials(rows: pd.DataFrame) -> dict[str, list[Any]]:
    """Each dial with the values that were tried of it, in order."""
    found: dict[str, dict[str, Any]] = {}
    for dials in rows["dials"]:
        for key, value in dials.items():
            found.setdefault(str(key), {}).setdefault(str(value), value)
    return {key: sorted(values.values(), key=_rank) for key, values in found.items()}


def _rank(value: Any) -> tuple[bool, Any]:
    """Numbers in their order, then all else by its letters."""
    number = isinstance(value, int | float)
    return (not number, value if number else str(value))


def _progress(facts: RunFacts, rows: pd.DataFrame) -> str:
    failed = rows[rows["split"].isna()]["trial"].nunique()
    done = rows["trial"].nunique() - failed
    parts = [f"{done} finished" if facts.trials is None else f"{done} of {len(facts.trials)} finished"]
    return ", ".join(parts + ([f"{failed} failed"] if failed else []))


def _plugins(plugins: Any) -> str:
    return _listed(Path(str(p.get("path", "?"))).name for p in plugins or () if isinstance(p, dict))


def _listed(values: Any) -> str:
    return ", ".join(str(value) for value in values)


def _pairs(settings: Any) -> str:
    if not isinstance(settings, dict):
        return ""
    return _listed(f"{key} = {_listed(v) if isinstance(v, list) else v}" for key, v in settings.items())
