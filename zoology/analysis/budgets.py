"""What the frontier says in numbers: recall at a budget of bytes, bytes needed for a recall, and who leads where.

Nothing is interpolated. A budget is met by a trial that was trained, and where none was, the answer says so.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from zoology.analysis.intervals import Bootstrap, paired_difference
from zoology.registry import InputError

BUDGETS = (1024, 4096, 16_384, 65_536)
"""Bytes of state: 1, 4, 16 and 64 KB."""

RECALLS = (0.5, 0.9, 0.99)
_ROUNDING = 1e-9  # of a mean, by which it must not miss a recall


def recall_at(points: pd.DataFrame, budgets: Sequence[int] = BUDGETS) -> pd.DataFrame:
    """What each architecture recalls with no more state than a budget.

    Of its trials within the budget the one with the best validation accuracy counts (of equal ones the smallest), and
    what is told is that one's test recall: the test set chooses nothing here. So it may lie slightly below the line of
    `frontier`, which joins the best on the test set.

    Args:
        points: of `frontier.points`.
        budgets: bytes of state.

    Returns:
        A row per architecture and budget, in that order: `architecture`, `budget`; `trial`, its `recall`, `ci_low`,
        `ci_high`, `n_seeds` and `state_bytes`, all empty (None, NaN) where no trial is that small; `smallest` and
        `largest`, the least and the greatest state that was measured of the architecture; and `gap`: "nothing that
        small was measured", "nothing larger was measured" (the budget exceeds the largest, so more may be had), or "".

    Raises:
        InputError: there is no point, or a budget is no positive number of bytes.
    """
    _some(points)
    for budget in budgets:
        if not budget > 0:
            raise InputError(f"budget = {budget}: must be a positive number of bytes")
    rows: list[dict[str, Any]] = []
    for architecture, part in points.groupby("architecture", sort=True):
        smallest, largest = int(part["state_bytes"].min()), int(part["state_bytes"].max())
        for budget in budgets:
            best = within(part, budget)
            row: dict[str, Any] = {"architecture": architecture, "budget": int(budget)}
            for key in ("recall", "ci_low", "ci_high", "n_seeds", "state_bytes"):
                row[key] = math.nan if best is None else best[key]
            row["trial"] = None if best is None else best["trial"]
            gap = "nothing that small was measured" if best is None else ""
            gap = "nothing larger was measured" if budget > largest else gap
            rows.append(row | {"smallest": smallest, "largest": largest, "gap": gap})
    return _table(rows, "trial")


def within(points: pd.DataFrame, budget: float = math.inf) -> pd.Series | None:
    """The point with the best validation accuracy and no more state than the budget, the smallest of equal ones."""
    part = points[points["state_bytes"] <= budget]
    if part.empty:
        return None
    return part.sort_values(["valid", "state_bytes"], ascending=[False, True], kind="stable").iloc[0]


def bytes_needed(
    points: pd.DataFrame, recalls: Sequence[float] = RECALLS, bootstrap: Bootstrap | None = None
) -> pd.DataFrame:
    """The least measured state with which each architecture recalls so much.

    Its interval is over seeds that are drawn for all trials of the architecture at once: the least state whose mean
    over the drawn seeds reaches the recall. An end of it is infinite where the draws there reach it nowhere, and
    unknown with one seed, or where the trials do not have the same seeds.

    Args:
        points: of `frontier.points`.
        recalls: shares in 0..1.
        bootstrap: what draws the seeds.

    Returns:
        A row per architecture and recall: `architecture`, `recall`; `state_bytes`, `trial`, the smallest that reach it
        (NaN and None where none does); `ci_low`, `ci_high` in bytes; `above`, the largest measured state below
        `state_bytes`, which does not reach it (NaN where nothing smaller was measured), so that the true need lies in
        (above, state_bytes]; where it is reached nowhere, the largest that was measured. And `gap`: "not reached by
        what was measured", "nothing smaller was measured", or "".

    Raises:
        InputError: there is no point, or a recall is not within 0..1.
    """
    _some(points)
    for recall in recalls:
        if not 0 <= recall <= 1:
            raise InputError(f"recall = {recall}: must be from 0 to 1")
    bootstrap = bootstrap or Bootstrap()
    rows = []
    for architecture, part in points.groupby("architecture", sort=True):
        part = part.sort_values(["state_bytes", "recall"], ascending=[True, False], kind="stable")
        sizes, means = part["state_bytes"].to_numpy(float), part["recall"].to_numpy(float)
        resampled = _resampled(part, bootstrap)
        for recall in recalls:
            reached = np.flatnonzero(means >= recall - _ROUNDING)
            row: dict[str, Any] = {"architecture": architecture, "recall": float(recall)}
            if reached.size:
                state = sizes[reached[0]]
                smaller = sizes[sizes < state]
                row |= {"state_bytes": state, "trial": part["trial"].iloc[reached[0]]}
                row["above"] = smaller.max() if smaller.size else math.nan
                row["gap"] = "" if smaller.size else "nothing smaller was measured"
            else:
                row |= {"state_bytes": math.nan, "trial": None, "above": sizes.max()}
                row["gap"] = "not reached by what was measured"
            row["ci_low"], row["ci_high"] = math.nan, math.nan
            if resampled is not None:
                least = np.where(resampled >= recall - _ROUNDING, sizes, math.inf).min(axis=1)
                row["ci_low"], row["ci_high"] = bootstrap.interval(least)
            rows.append(row)
    columns = ["architecture", "recall", "state_bytes", "ci_low", "ci_high", "trial", "above", "gap"]
    return _table(rows, "trial")[columns]


def leaders(points: pd.DataFrame, budgets: Sequence[int] = BUDGETS, bootstrap: Bootstrap | None = None) -> pd.DataFrame:
    """Which architecture recalls most at each budget, and whether its lead exceeds the spread over seeds.

    Leader and runner-up are the first two of `recall_at`; the lead is paired over the seeds that both have.

    Args:
        points: of `frontier.points`.
        budgets: bytes of state.
        bootstrap: what draws the seeds.

    Returns:
        A row per budget: `budget`; `leader`, its `recall` and `state_bytes`; `runner_up`, its `runner_up_recall`;
        `lead`, the mean difference over the `n_seeds` seeds in common, with `ci_low` and `ci_high`; `clear`, whether
        that interval excludes 0 (None where it is unknown: fewer than two seeds in common, or nobody to lead); and
        `unmeasured`, the architectures without a trial that small.

    Raises:
        InputError: there is no point, or a budget is no positive number of bytes.
    """
    bootstrap = bootstrap or Bootstrap()
    table = recall_at(points, budgets)
    by_trial = dict(zip(points["trial"], points["recall_by_seed"], strict=True))
    rows = []
    for budget, part in table.groupby("budget", sort=False):
        measured = part[part["trial"].notna()].sort_values(
            ["recall", "state_bytes"], ascending=[False, True], kind="stable"
        )
        row: dict[str, Any] = {"budget": int(budget), "leader": None, "recall": math.nan, "state_bytes": math.nan}
        row |= {"runner_up": None, "runner_up_recall": math.nan, "lead": math.nan, "ci_low": math.nan}
        row |= {"ci_high": math.nan, "n_seeds": 0, "clear": None}
        if len(measured):
            first = measured.iloc[0]
            row |= {"leader": first["architecture"], "recall": first["recall"], "state_bytes": first["state_bytes"]}
        if len(measured) > 1:
            second = measured.iloc[1]
            row |= {"runner_up": second["architecture"], "runner_up_recall": second["recall"]}
            lead = paired_difference(by_trial[first["trial"]], by_trial[second["trial"]], bootstrap)
            row |= {"lead": lead.mean, "ci_low": lead.interval.low, "ci_high": lead.interval.high}
            row |= {"n_seeds": lead.n_seeds}
            row["clear"] = lead.interval.excludes_zero if lead.interval.known else None
        row["unmeasured"] = tuple(part.loc[part["trial"].isna(), "architecture"])
        rows.append(row)
    return _table(rows, "leader", "runner_up", "clear")


def _table(rows: list[dict[str, Any]], *maybe: str) -> pd.DataFrame:
    """The rows as a table. Columns that may hold None keep it, where pandas would make NaN of it."""
    return pd.DataFrame(rows).assign(**{key: pd.Series([row[key] for row in rows], dtype=object) for key in maybe})


def _resampled(part: pd.DataFrame, bootstrap: Bootstrap) -> np.ndarray | None:
    """(resamples, trials) mean recall over seeds drawn for all trials at once; None where that cannot be."""
    by_seed = list(part["recall_by_seed"])
    seeds = sorted(by_seed[0])
    if len(seeds) < 2 or any(sorted(other) != seeds for other in by_seed):
        return None
    return bootstrap.means(np.array([[of_trial[seed] for of_trial in by_seed] for seed in seeds]))


def _some(points: pd.DataFrame) -> None:
    if points.empty:
        raise InputError("there is no point to tell anything of")
