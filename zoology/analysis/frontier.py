"""Numbers of the frontier: rows of results -> one point per trial -> the best recall at each state size.

The learning rate is chosen on validation; the test accuracy at that learning rate is what is reported. A replica that
diverged before its first validation has no accuracy and counts as 0, so that divergence is never averaged away.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from zoology.analysis.intervals import Bootstrap
from zoology.registry import InputError, did_you_mean

TIE = 0.001
"""Validation accuracies that differ by no more than this are taken as equal when a learning rate is chosen."""


def points(
    rows: pd.DataFrame,
    slices: Sequence[str] | None = None,
    task: str | None = None,
    bootstrap: Bootstrap | None = None,
) -> pd.DataFrame:
    """One row per finished trial: what it recalls, and the state that it keeps for that.

    Args:
        rows: of `records.load_runs`, or those of `TrialResult.rows`.
        slices: the test slices to average over, with equal weight. All by default. The learning rate is chosen on all
            validation slices in either case: a trial is one model, whichever of its slices is looked at.
        task: which task, where the rows hold several.
        bootstrap: what draws the intervals.

    Returns:
        Sorted by architecture and state, with the columns

        - `trial`, `architecture`, `dials`, `d_model`, `task`;
        - `learning_rate` (see `choose_learning_rate`) and `edge` ("low" or "high" where it is the end of a grid of
          several, else None); `valid`, the accuracy that chose it; `rates`, that of every learning rate;
        - `recall` in 0..1, the mean over seeds of each seed's mean over slices; `ci_low` and `ci_high`, its bootstrap
          interval (NaN for one seed); `recall_low` and `recall_high`, the worst and the best seed; `recall_std`
          (n - 1; NaN for one seed); `recall_by_seed`;
        - `n_seeds`, and of these `n_seeds_diverged` at that learning rate; `n_replicas`, all (learning rate, seed),
          and of these `n_diverged`. Of a trial that failed there is no point: `records.failures` has those;
        - `state_bytes` and `state_elements`, the largest over the slices: what a model needs to answer all of them;
          `state_parts`, the bytes of each component there;
        - by slice `slice_recall`, `test_hash`, `examples`.

    Raises:
        InputError: no trial finished, `task` or a slice is not there, or the trials cannot be compared: they hold
            several tasks, different slices, or different test sequences under the name of one slice.
    """
    rows = rows[rows["split"].notna()]
    if rows.empty:
        raise InputError("no trial finished: there is nothing to compare")
    rows = of_one_task(rows, task)
    test = rows[rows["split"] == "test"]
    chosen = _comparable_slices(test, slices)
    test = test[test["slice"].isin(chosen)]
    _same_sequences(test, chosen)
    valid = dict(list(rows[rows["split"] == "valid"].groupby("trial")))
    bootstrap = bootstrap or Bootstrap()
    found = [_point(valid.get(trial), part, chosen, bootstrap) for trial, part in test.groupby("trial", sort=False)]
    table = pd.DataFrame(found).sort_values(["architecture", "state_bytes", "recall"], kind="stable")
    # pandas reads a column of None and strings as strings with NaN; None is what `edge` promises.
    table["edge"] = table["edge"].astype(object).where(table["edge"].notna(), None)
    return table.reset_index(drop=True)


def choose_learning_rate(valid: Mapping[float, float]) -> tuple[float, str | None]:
    """The learning rate with the best validation accuracy, and the edge of the grid at which it is.

    Among those within `TIE` of the best, one inside the grid goes before one at its edge, because there the optimum is
    known to be bracketed; then the smaller one.

    Args:
        valid: mean validation accuracy of each learning rate of the grid.

    Returns:
        (learning rate, "low", "high" or None). A grid of one has no edge.
    """
    grid = sorted(valid)
    best = max(valid.values())
    near = [lr for lr in grid if valid[lr] >= best - TIE - 1e-12]
    inside = [lr for lr in near if grid[0] < lr < grid[-1]]
    lr = (inside or near)[0]
    if len(grid) == 1 or inside:
        return lr, None
    return lr, "low" if lr == grid[0] else "high"


def frontier(points: pd.DataFrame) -> pd.DataFrame:
    """Of each architecture the points that no other of its points beats: sorted by state, recall strictly rising."""
    parts = [overall_frontier(part) for _, part in points.groupby("architecture", sort=True)]
    return pd.concat(parts, ignore_index=True) if parts else points.copy()


def overall_frontier(points: pd.DataFrame) -> pd.DataFrame:
    """The points that no other point, of whatever architecture, beats.

    One point beats another where it recalls no less with no more state, and differs in one of them. Of points equal in
    both, the first is kept.
    """
    ordered = points.sort_values(["state_bytes", "recall"], ascending=[True, False], kind="stable")
    before = ordered["recall"].cummax().shift(fill_value=float("-inf"))
    return ordered[ordered["recall"] > before].reset_index(drop=True)


def learning_rates(valid: pd.DataFrame | None, trial: str) -> dict[float, float]:
    """The mean validation accuracy of each learning rate of a trial, from its validation rows, in rising order.

    Raises:
        InputError: it has none.
    """
    if valid is None or valid.empty:
        raise InputError(f"trial {trial} has no validation rows to choose a learning rate by")
    by_rate = valid.assign(accuracy=accuracies(valid)).groupby("learning_rate")["accuracy"].mean()
    return {float(rate): float(accuracy) for rate, accuracy in by_rate.items()}


def accuracies(rows: pd.DataFrame) -> pd.Series:
    """The accuracy of each row, 0 where a replica diverged before it had one."""
    return pd.to_numeric(rows["accuracy"]).fillna(0.0)


def _point(valid: pd.DataFrame | None, test: pd.DataFrame, slices: list[str], bootstrap: Bootstrap) -> dict[str, Any]:
    first = test.iloc[0]
    rates = learning_rates(valid, first["trial"])
    rate, edge = choose_learning_rate(rates)
    replicas = test.drop_duplicates(["learning_rate", "seed"])
    test = test.assign(accuracy=accuracies(test))
    used = test[test["learning_rate"] == rate]
    by_seed = used.groupby("seed")["accuracy"].mean()
    by_slice = used.groupby("slice")
    ci = bootstrap.of_mean(by_seed.tolist())
    diverged = replicas["status"] != "ok"
    largest = used.loc[used["state_bytes"].astype(int).idxmax()]
    return {
        "trial": first["trial"],
        "architecture": first["architecture"],
        "dials": first["dials"],
        "d_model": int(first["d_model"]),
        "task": first["task"],
        "learning_rate": rate,
        "edge": edge,
        "rates": rates,
        "valid": rates[rate],
        "recall": float(by_seed.mean()),
        "ci_low": ci.low,
        "ci_high": ci.high,
        "recall_low": float(by_seed.min()),
        "recall_high": float(by_seed.max()),
        "recall_std": float(by_seed.std()),
        "recall_by_seed": {int(seed): float(value) for seed, value in by_seed.items()},
        "n_seeds": len(by_seed),
        "n_seeds_diverged": int(diverged[replicas["learning_rate"] == rate].sum()),
        "n_replicas": len(replicas),
        "n_diverged": int(diverged.sum()),
        "state_bytes": int(largest["state_bytes"]),
        "state_elements": int(used["state_elements"].max()),
        "state_parts": part_bytes(largest.get("state_parts")),
        "slice_recall": {name: float(by_slice["accuracy"].mean()[name]) for name in slices},
        "test_hash": {name: by_slice["test_hash"].first()[name] for name in slices},
        "examples": {name: int(by_slice["examples"].first()[name]) for name in slices},
    }


def part_bytes(parts: Any) -> dict[str, int]:
    """Bytes of each component of a row's `state_parts`, whatever their dtypes; empty where a row does not say."""
    return {name: int(sum(sizes.values())) for name, sizes in parts.items()} if isinstance(parts, dict) else {}


def of_one_task(rows: pd.DataFrame, task: str | None = None) -> pd.DataFrame:
    """The rows of a task, or all of them where they are of one.

    Raises:
        InputError: `task` is not there, or none is chosen and there are several.
    """
    tasks = sorted(rows["task"].unique())
    if task is not None:
        if task not in tasks:
            raise InputError(f"no trial of task {task!r}: {did_you_mean(task, tasks)}")
        return rows[rows["task"] == task]
    if len(tasks) > 1:
        listed = "; ".join(f"{name}{_in_runs(rows[rows['task'] == name])}" for name in tasks)
        raise InputError(f"several tasks cannot share a frontier: {listed}; choose one with --task")
    return rows


def _comparable_slices(test: pd.DataFrame, wanted: Sequence[str] | None) -> list[str]:
    """The slices to average over, which every trial has."""
    if test.empty:
        raise InputError("no trial has test rows")
    known = list(dict.fromkeys(test["slice"]))
    for name in wanted or ():
        if name not in known:
            raise InputError(f"no slice {name!r}: {did_you_mean(name, known)}")
    of_trial = test.groupby("trial", sort=False)["slice"].agg(frozenset)
    if wanted:
        lacking = of_trial[[not set(wanted) <= has for has in of_trial]]
        if len(lacking):
            rows = test[test["trial"] == lacking.index[0]]
            raise InputError(
                f"{len(lacking)} trial(s) were not tested on all of {', '.join(wanted)}: the first, "
                f"{lacking.index[0]}{_in_runs(rows)}, has {', '.join(dict.fromkeys(rows['slice']))}"
            )
        return list(dict.fromkeys(wanted))
    sets = list(dict.fromkeys(of_trial))
    if len(sets) == 1:
        return known
    listed = []
    for names in sets[:3]:
        has = test[test["trial"].isin(of_trial.index[of_trial == names])]
        listed.append(", ".join(name for name in known if name in names) + _in_runs(has))
    common = [name for name in known if all(name in names for names in sets)]
    advice = (
        f"choose among those in common with --slice ({', '.join(common)})"
        if common
        else "they have none in common, so plot them apart"
    )
    raise InputError(f"trials were tested on different slices: {'; '.join(listed)}; {advice}")


def _same_sequences(test: pd.DataFrame, slices: list[str]) -> None:
    """Raises where two trials were tested on different sequences under the name of one slice."""
    differ = [name for name in slices if test.loc[test["slice"] == name, "test_hash"].nunique() > 1]
    if not differ:
        return
    part = test[test["slice"] == differ[0]]
    listed = "; ".join(f"{key}{_in_runs(rows)}" for key, rows in part.groupby("test_hash", sort=False))
    same = [name for name in slices if name not in differ]
    advice = f"choose others with --slice ({', '.join(same)})" if same else "plot them apart"
    raise InputError(f"slice {differ[0]!r} stands for different test sequences: {listed}; {advice}")


def _in_runs(rows: pd.DataFrame) -> str:
    """' (run a, b)' where the rows know their runs."""
    if "run" not in rows:
        return ""
    names = list(dict.fromkeys(rows["run"]))
    return f" (run {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
