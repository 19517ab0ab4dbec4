"""What a trial recalls slice by slice: over length and number of pairs, beyond training, by order, by passes.

Every function takes rows of `records.load_runs` and tells of each trial at the learning rate that validation chose, as
`frontier.points` does; but here trials need not have been tested on the same slices, as each is told of on its own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from zoology.analysis.frontier import accuracies, choose_learning_rate, learning_rates
from zoology.analysis.intervals import Bootstrap, paired_difference
from zoology.registry import InputError, did_you_mean

TRIAL = ["trial", "architecture", "dials", "d_model", "task"]


def by_slice(
    rows: pd.DataFrame, trials: Sequence[str] | None = None, bootstrap: Bootstrap | None = None
) -> pd.DataFrame:
    """Recall of every trial on every one of its test slices.

    Args:
        rows: of `records.load_runs`.
        trials: only these, in this order; by default all.
        bootstrap: what draws the intervals.

    Returns:
        A row per trial and slice, slices in the order of the rows: `trial`, `architecture`, `dials`, `d_model`, `task`;
        `slice`, `params` (the task's parameters there; None where the row does not say); `recall`, the mean over
        seeds, `ci_low`, `ci_high`, `recall_by_seed`, `n_seeds`; `state_bytes` in that slice; `beyond`, a parameter that
        exceeds all that was trained on (see `exceeds`; None where that is not known); `test_hash`, `examples`.

    Raises:
        InputError: no trial finished, or one of `trials` is not there.
    """
    bootstrap = bootstrap or Bootstrap()
    parts = dict(list(rows[rows["split"].notna()].groupby("trial", sort=False)))
    if not parts:
        raise InputError("no trial finished: there is nothing to tell of")
    found = []
    for trial in trials if trials is not None else parts:
        if trial not in parts:
            raise InputError(f"no trial {trial!r}: {did_you_mean(trial, parts)}")
        part = parts[trial]
        rate, _ = choose_learning_rate(learning_rates(part[part["split"] == "valid"], trial))
        test = part[(part["split"] == "test") & (part["learning_rate"] == rate)]
        for name, of_slice in test.assign(accuracy=accuracies(test)).groupby("slice", sort=False):
            first = of_slice.iloc[0]
            by_seed = {int(s): float(a) for s, a in zip(of_slice["seed"], of_slice["accuracy"], strict=True)}
            low, high = bootstrap.of_mean([by_seed[seed] for seed in sorted(by_seed)])
            found.append(
                {key: first[key] for key in TRIAL}
                | {
                    "slice": name,
                    "params": first["params"],
                    "recall": float(np.mean(list(by_seed.values()))),
                    "ci_low": low,
                    "ci_high": high,
                    "recall_by_seed": by_seed,
                    "n_seeds": len(by_seed),
                    "state_bytes": int(of_slice["state_bytes"].max()),
                    "beyond": exceeds(first["params"], first["trained"]),
                    "test_hash": first["test_hash"],
                    "examples": int(first["examples"]),
                }
            )
    table = pd.DataFrame(found)
    table["beyond"] = pd.Series([row["beyond"] for row in found], dtype=object)
    return table


def exceeds(params: Mapping[str, Any] | None, trained: Mapping[str, Sequence[int]] | None) -> str | None:
    """The first whole-numbered parameter that is greater than in all training slices, "" for none; None if unknown."""
    if params is None or trained is None:
        return None
    return next((key for key, (_, most) in trained.items() if type(params.get(key)) is int and params[key] > most), "")


def sizes(table: pd.DataFrame) -> list[str]:
    """The whole-numbered parameters that differ between the slices of `by_slice`: seq_len and num_pairs of MQAR."""
    known = [params for params in table["params"] if params is not None]
    names = dict.fromkeys(key for params in known for key, value in params.items() if type(value) is int)
    return [name for name in names if len({params.get(name) for params in known}) > 1]


def beyond_training(table: pd.DataFrame, bootstrap: Bootstrap | None = None) -> pd.DataFrame:
    """Recall on slices within and beyond what was trained on, and what is lost from one to the other.

    Args:
        table: of `by_slice`.
        bootstrap: what draws the intervals.

    Returns:
        A row per trial that has slices of both kinds: the columns of the trial; `within`, `beyond`, the mean recall
        over either's slices; `loss`, within - beyond, with `ci_low` and `ci_high` paired over seeds; `slices`, the
        names of those beyond.
    """
    bootstrap = bootstrap or Bootstrap()
    rows = []
    for _, part in table[table["beyond"].notna()].groupby("trial", sort=False):
        outside = part["beyond"] != ""
        if outside.all() or not outside.any():
            continue
        inner, outer = _mean_by_seed(part[~outside]), _mean_by_seed(part[outside])
        rows.append(_compared(part, inner, outer, ("within", "beyond", "loss"), bootstrap))
        rows[-1]["slices"] = tuple(part.loc[outside, "slice"])
    return pd.DataFrame(rows, columns=[*TRIAL, "within", "beyond", "loss", "ci_low", "ci_high", "n_seeds", "slices"])


def by_position(rows: pd.DataFrame, bootstrap: Bootstrap | None = None) -> pd.DataFrame:
    """Recall over where in the sequence the answers stand, the best checkpoint of the chosen learning rate.

    Args:
        rows: of `records.load_runs`.
        bootstrap: what draws the intervals.

    Returns:
        A row per trial, slice and stretch of positions: the columns of the trial; `slice`; `first` and `last`, the
        positions (tokens from 0); `answers`, how many stand there; `recall`, the mean over seeds, `ci_low`, `ci_high`,
        `n_seeds`.

    Raises:
        InputError: the rows do not hold it: they are of an older version.
    """
    bootstrap = bootstrap or Bootstrap()
    found = []
    for trial, part in rows[rows["split"].notna()].groupby("trial", sort=False):
        rate, _ = choose_learning_rate(learning_rates(part[part["split"] == "valid"], str(trial)))
        test = part[(part["split"] == "test") & (part["learning_rate"] == rate)]
        for name, of_slice in test.groupby("slice", sort=False):
            listed = [told for told in of_slice.get("by_position", []) if isinstance(told, list) and told]
            for stretch in zip(*listed, strict=True):
                first, last, answers, _ = stretch[0]
                recalls = [accuracy for *_, accuracy in stretch]
                low, high = bootstrap.of_mean(recalls)
                found.append(
                    {key: of_slice.iloc[0][key] for key in TRIAL}
                    | {"slice": name, "first": first, "last": last, "answers": answers}
                    | {"recall": float(np.mean(recalls)), "ci_low": low, "ci_high": high, "n_seeds": len(recalls)}
                )
    if not found:
        raise InputError("no row tells where the answers stand: these runs are of an older version")
    return pd.DataFrame(found)


def by_order(table: pd.DataFrame, bootstrap: Bootstrap | None = None) -> pd.DataFrame:
    """Set disjointness: recall with the smaller set first and with the larger first, for each pair of sizes.

    A model that reads from left to right must keep the first set and compare the second with it. Where the smaller
    comes first, that is the cheaper order: JRT, arXiv:2407.05483.

    Args:
        table: of `by_slice`, of trials that were tested on slices with `size_a` and `size_b`.
        bootstrap: what draws the intervals.

    Returns:
        A row per trial and pair of sizes that was tested in both orders: the columns of the trial; `small`, `large`,
        the sizes; `small_first`, `large_first`, the recalls; `gain`, small_first - large_first, with `ci_low` and
        `ci_high` paired over seeds, and `gain_by_seed`.

    Raises:
        InputError: no trial was tested on both orders of two sizes.
    """
    bootstrap = bootstrap or Bootstrap()
    rows = []
    for _, part in table.groupby("trial", sort=False):
        orders: dict[tuple[Any, ...], dict[int, float]] = {}
        for params, by_seed in zip(part["params"], part["recall_by_seed"], strict=True):
            if params is not None and {"size_a", "size_b"} <= set(params):
                rest = {key: value for key, value in params.items() if key not in ("size_a", "size_b")}
                orders[params["size_a"], params["size_b"], str(rest)] = by_seed
        for (a, b, rest), small_first in orders.items():
            large_first = orders.get((b, a, rest))
            if a < b and large_first is not None:
                names = ("small_first", "large_first", "gain")
                rows.append({"small": a, "large": b} | _compared(part, small_first, large_first, names, bootstrap))
                rows[-1]["gain_by_seed"] = {s: r - large_first[s] for s, r in small_first.items() if s in large_first}
    if not rows:
        raise InputError("no trial was tested on two sets in both orders: the order is told of set-disjointness only")
    columns = [*TRIAL, "small", "large", "small_first", "large_first", "gain", "ci_low", "ci_high", "n_seeds"]
    columns.append("gain_by_seed")
    return pd.DataFrame(rows)[columns]


def by_passes(table: pd.DataFrame, bootstrap: Bootstrap | None = None) -> pd.DataFrame:
    """Contexts that are shown once against the same shown twice or more: JRT, arXiv:2407.05483.

    Slices that differ in `passes` (and in `seq_len`, as what is repeated takes room) are compared, of one trial or of
    trials that are alike but for what they were trained on: the same architecture, dials and width.

    Args:
        table: of `by_slice`, of one or several runs.
        bootstrap: what draws the intervals.

    Returns:
        A row per architecture point, slice and number of passes: `architecture`, `dials`, `d_model`, `task`, `slice`
        (of the repeated one), `passes`; `once`, `repeated`, the recalls; `gain`, repeated - once, with `ci_low` and
        `ci_high` paired over seeds.

    Raises:
        InputError: nothing was shown both once and repeatedly.
    """
    bootstrap = bootstrap or Bootstrap()
    once: dict[tuple[str, ...], Mapping[int, float]] = {}
    keyed = []
    for row in table.to_dict("records"):
        passes = (row["params"] or {}).get("passes")
        if passes is None:
            continue
        same = {key: value for key, value in row["params"].items() if key not in ("passes", "seq_len")}
        key = (*(str(row[name]) for name in ("architecture", "dials", "d_model", "task")), str(sorted(same.items())))
        if passes == 1:
            once[key] = row["recall_by_seed"]
        else:
            keyed.append((key, passes, row))
    rows = []
    for key, passes, row in keyed:
        if key in once:
            pair = _compared(
                pd.DataFrame([row]), row["recall_by_seed"], once[key], ("repeated", "once", "gain"), bootstrap
            )
            rows.append(pair | {"slice": row["slice"], "passes": passes})
    if not rows:
        raise InputError("nothing was shown both once and more often: sweep with --passes 1 and with --passes 2")
    columns = [*TRIAL[1:], "slice", "passes", "once", "repeated", "gain", "ci_low", "ci_high", "n_seeds"]
    return pd.DataFrame(rows)[columns]


def _mean_by_seed(part: pd.DataFrame) -> dict[int, float]:
    """Each seed's mean over slices, of the seeds that have them all."""
    seeds = set.intersection(*(set(by_seed) for by_seed in part["recall_by_seed"]))
    return {seed: float(np.mean([by_seed[seed] for by_seed in part["recall_by_seed"]])) for seed in sorted(seeds)}


def _compared(
    part: pd.DataFrame,
    a: Mapping[int, float],
    b: Mapping[int, float],
    names: tuple[str, str, str],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """The trial's columns, the means of both, and a - b paired over seeds, under the given names."""
    difference = paired_difference(a, b, bootstrap)
    means = [float(np.mean(list(one.values()))) if one else math.nan for one in (a, b)]
    return {key: part.iloc[0][key] for key in TRIAL} | {
        names[0]: means[0],
        names[1]: means[1],
        names[2]: difference.mean,
        "ci_low": difference.interval.low,
        "ci_high": difference.interval.high,
        "n_seeds": difference.n_seeds,
    }
