"""How trials were trained: what each learning rate gave on validation, and the curves over the steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from zoology.analysis.frontier import accuracies, choose_learning_rate, learning_rates
from zoology.registry import InputError

TRIAL = ["trial", "architecture", "dials", "d_model", "task"]


def rate_table(rows: pd.DataFrame) -> pd.DataFrame:
    """What each learning rate of each trial gave on validation.

    Args:
        rows: of `records.load_runs`.

    Returns:
        A row per trial and learning rate, in rising order: the trial's columns, `state_bytes` (the largest over its
        slices), `learning_rate`, `accuracy` (the mean over seeds and slices), `low` and `high` over seeds, `n_seeds`,
        `n_diverged`; `chosen`, and `edge` ("low" or "high" at the chosen one where the grid ends there, else None).

    Raises:
        InputError: no trial finished.
    """
    valid = rows[rows["split"] == "valid"]
    if valid.empty:
        raise InputError("no trial finished: there is no learning rate to tell of")
    found: list[dict[str, Any]] = []
    for trial, part in valid.groupby("trial", sort=False):
        first = part.iloc[0]
        rates = learning_rates(part, str(trial))
        best, edge = choose_learning_rate(rates)
        part = part.assign(accuracy=accuracies(part))
        by_seed = part.groupby(["learning_rate", "seed"])["accuracy"].mean()
        diverged = part[part["status"] != "ok"].groupby("learning_rate")["seed"].nunique()
        for rate, accuracy in rates.items():
            of_rate = by_seed.loc[rate]
            found.append(
                {key: first[key] for key in TRIAL}
                | {
                    "state_bytes": int(part["state_bytes"].max()),
                    "learning_rate": rate,
                    "accuracy": accuracy,
                    "low": float(of_rate.min()),
                    "high": float(of_rate.max()),
                    "n_seeds": len(of_rate),
                    "n_diverged": int(diverged.get(rate, 0)),
                    "chosen": rate == best,
                    "edge": edge if rate == best else None,
                }
            )
    table = pd.DataFrame(found)
    return table.assign(edge=pd.Series([row["edge"] for row in found], dtype=object))


def curves(rows: pd.DataFrame, trials: Sequence[str] | None = None) -> pd.DataFrame:
    """Validation accuracy and training loss over the steps, at the chosen learning rate of each trial.

    Args:
        rows: of `records.load_runs`. Their `curve`, on validation rows, has (step, loss, accuracy), either of which may
            be None at a step.
        trials: only these, by default all.

    Returns:
        A row per trial, seed and step: the trial's columns, `seed`, `step`, `loss`, `accuracy` (NaN for None).

    Raises:
        InputError: no row has a curve.
    """
    valid = rows[rows["split"] == "valid"]
    if trials is not None:
        valid = valid[valid["trial"].isin(list(trials))]
    found = []
    for trial, part in valid.groupby("trial", sort=False):
        best, _ = choose_learning_rate(learning_rates(part, str(trial)))
        for row in part[part["learning_rate"] == best].drop_duplicates("seed").to_dict("records"):
            same = {key: row[key] for key in TRIAL} | {"seed": int(row["seed"])}
            found += [same | {"step": s, "loss": loss, "accuracy": a} for s, loss, a in row["curve"] or []]
    if not found:
        raise InputError("these runs have recorded no training curve: sweep again with this version")
    table = pd.DataFrame(found)
    return table.assign(**{key: pd.to_numeric(table[key]).astype(np.float64) for key in ("loss", "accuracy")})
