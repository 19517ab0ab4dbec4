"""The reading side of a run folder: `runs/NAME/` with `sweep.json` and `results.jsonl`. Nothing here writes."""

import json
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from zoology.record import FORMAT, RESULTS, SWEEP
from zoology.registry import InputError

_NUMBER = (int, float)
_ALWAYS: dict[str, tuple[type, ...]] = {
    "format": (int,),
    "trial": (str,),
    "architecture": (str,),
    "dials": (dict,),
    "d_model": (int,),
    "task": (str,),
    "status": (str,),
}
_WHERE_SCORED: dict[str, tuple[type, ...]] = {
    "split": (str,),
    "slice": (str,),
    "seed": (int,),
    "learning_rate": _NUMBER,
    "examples": (int,),
    "test_hash": (str,),
    "state_elements": (int,),
    "state_bytes": (int,),
}
_MAYBE: dict[str, tuple[type, ...]] = {
    "accuracy": (*_NUMBER, type(None)),
    "error": (str, type(None)),
}
COLUMNS = (*_ALWAYS, *_WHERE_SCORED, *_MAYBE)
"""What every row must have to be read here. Rows may have more."""

_SINCE: dict[str, type] = {"params": dict, "trained": dict, "limits": list, "curve": list, "state_parts": dict}
"""What rows of an older version lack: None there, once read."""

_NAMED = (
    re.compile(r"T(?P<seq_len>\d+)(-N(?P<num_pairs>\d+))?(-P(?P<passes>\d+))?"),
    re.compile(r"A(?P<size_a>\d+)-B(?P<size_b>\d+)(-P(?P<passes>\d+))?"),
)
"""What the name of a slice says of its sizes, for rows that do not."""

_CELL = ["learning_rate", "seed", "split", "slice"]


def load_runs(paths: Sequence[Path]) -> pd.DataFrame:
    """The rows of several runs as one table, each trial once.

    A last line that was torn, and a trial that lacks rows, are left out with a warning: a sweep may still be writing. A
    trial (same spec, so same id) that several runs hold is taken from the first of `paths` that finished it. One that
    failed keeps its single row, with `status` "failed", unless another run finished it.

    Args:
        paths: run folders, or their `results.jsonl`.

    Returns:
        The keys of `zoology.record.TrialResult.rows` as columns, and `run`, the name of the run folder. Of rows that an
        older version wrote, `params` is what the name of the slice says, and what they lack is None.

    Raises:
        InputError: a path is missing or is no run, it holds nothing yet, no trial finished, or a row cannot be read.
    """
    files = results_files(paths)
    tables = []
    for file, name in zip(files, run_names(files), strict=True):
        table = pd.DataFrame(_read(file))
        tables.append(_whole(table, name).assign(run=name))
    rows = pd.concat(tables, ignore_index=True)
    scored = rows["split"].notna()
    done = rows[scored]
    done = done[done["run"] == done.groupby("trial")["run"].transform("first")]
    failed = rows[~scored & ~rows["trial"].isin(done["trial"])].drop_duplicates("trial", keep="last")
    if done.empty:
        raise InputError(_nothing_finished(paths, failed))
    return completed(pd.concat([done, failed]).sort_index().reset_index(drop=True))


def completed(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of any version with the columns of today; see `load_runs`."""
    values = {
        key: [value if isinstance(value, kind) else None for value in rows[key]] if key in rows else [None] * len(rows)
        for key, kind in _SINCE.items()
    }
    values["params"] = [
        _params_of(name) if params is None and isinstance(name, str) else params
        for params, name in zip(values["params"], rows["slice"], strict=True)
    ]
    return rows.assign(**{key: pd.Series(value, index=rows.index, dtype=object) for key, value in values.items()})


def _params_of(name: str) -> dict[str, int] | None:
    found = next((match for pattern in _NAMED if (match := pattern.fullmatch(name))), None)
    return {"passes": 1} | {key: int(value) for key, value in found.groupdict().items() if value} if found else None


def failures(rows: pd.DataFrame) -> pd.DataFrame:
    """The trials that raised: one row each, with `error`, the last line of the traceback."""
    failed = rows[rows["split"].isna()]
    error = [_last_line(text) for text in failed["error"]]
    columns = [c for c in ("run", "trial", "architecture", "dials", "d_model", "task") if c in rows]
    return failed[columns].assign(error=error).reset_index(drop=True)


def notes(rows: pd.DataFrame) -> list[str]:
    """What did not go as usual in the trials, each thing once: rows of older versions have none."""
    found = [note for listed in rows.get("notes", []) if isinstance(listed, list) for note in listed]
    return list(dict.fromkeys(found))


def results_file(path: Path) -> Path:
    """Where the rows of a run are, given its folder or that file itself.

    Raises:
        InputError: there is no such path, or it is no run folder.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise InputError(f"run {str(path)!r}: there is no such folder")
    file = path / RESULTS
    if file.is_file():
        return file
    if (path / SWEEP).is_file():
        raise InputError(f"run {str(path)!r}: no trial has finished yet (there is no {RESULTS})")
    inside = sorted(str(found.parent) for found in path.glob(f"*/{RESULTS}"))
    hint = f"did you mean {' or '.join(inside[:3])}?" if inside else f"a run folder holds {RESULTS}"
    raise InputError(f"{str(path)!r} is no run folder: {hint}")


def results_files(paths: Sequence[Path]) -> list[Path]:
    """Where the rows of several runs are, each once.

    Raises:
        InputError: there is none, or one of them is no run.
    """
    if not paths:
        raise InputError("no run was given")
    return list(dict.fromkeys(results_file(path).absolute() for path in paths))


def run_names(files: Sequence[Path]) -> list[str]:
    """What to call each run: its folder's name, or the whole path where two folders share a name."""
    count = Counter(file.parent.name for file in files)
    return [file.parent.name if count[file.parent.name] == 1 else str(file.parent) for file in files]


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        lines = [(n, line) for n, line in enumerate(file.read_bytes().split(b"\n"), 1) if line.strip()]
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    rows = []
    for n, line in lines:
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as error:
            if n == lines[-1][0] and rows:
                warnings.warn(f"{file}: the last line is torn and was left out", stacklevel=3)
                break
            if n == lines[-1][0]:
                raise InputError(
                    f"{file} holds no whole row: its only line is torn, or it is no file of ours"
                ) from error
            raise InputError(f"{file}, line {n} is not JSON: {error}") from error
        _check(row, f"{file}, line {n}")
        rows.append(row)
    if not rows:
        raise InputError(f"{file} is empty: no trial has finished yet")
    return rows


def _check(row: Any, where: str) -> None:
    if not isinstance(row, dict):
        raise InputError(f"{where} is no row of results: {str(row)[:40]!r}")
    version = row.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise InputError(f"{where} has the newer format {version}; this version reads up to {FORMAT}: update zoology")
    missing = [column for column in COLUMNS if column not in row]
    if missing:
        raise InputError(f"{where} is no row of results: it lacks {', '.join(missing)}")
    types = _ALWAYS | _MAYBE
    if row["split"] is not None:
        types = types | _WHERE_SCORED
    for column, allowed in types.items():
        if not isinstance(row[column], allowed):
            raise InputError(f"{where}: {column} cannot be {str(row[column])[:40]!r}")


def _whole(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Leaves out trials of which some rows are missing: each replica must have the same splits and slices."""
    scored = table["split"].notna()
    # A block that was torn and then written again is there twice in part: the later rows belong to the whole block.
    done = table[scored].drop_duplicates(["trial", *_CELL], keep="last")
    torn = []
    for trial, part in done.groupby("trial", sort=False):
        replicas = part["learning_rate"].nunique() * part["seed"].nunique()
        scores = len(part[["split", "slice"]].drop_duplicates())
        if len(part) != replicas * scores or set(part["split"]) != {"valid", "test"}:
            torn.append(trial)
    if torn:
        listed = ", ".join(torn[:3]) + (" and more" if len(torn) > 3 else "")
        warnings.warn(f"run {name}: {len(torn)} trial(s) lack rows and were left out: {listed}", stacklevel=3)
    return pd.concat([done[~done["trial"].isin(torn)], table[~scored]]).sort_index()


def _nothing_finished(paths: Sequence[Path], failed: pd.DataFrame) -> str:
    where = ", ".join(str(path) for path in paths)
    if failed.empty:
        return f"{where}: no trial has finished yet"
    return f"{where}: no trial finished, {len(failed)} failed; the first with: {_last_line(failed['error'].iloc[0])}"


def _last_line(error: Any) -> str:
    lines = str(error).strip().splitlines() if isinstance(error, str) else []
    return lines[-1].strip() if lines else "no message"
