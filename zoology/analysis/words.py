"""Numbers as people read them: sizes, per cents, dials, and the points as a table of text."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from zoology.analysis.frontier import frontier
from zoology.analysis.intervals import LEVEL

SOLVED = 0.99
"""Recall from which a task counts as solved."""

_UNITS = ("B", "KB", "MB", "GB", "TB")


def human_bytes(n: float) -> str:
    """A size as people write it, in powers of 1024 and to three digits: 512 B, 4 KB, 1.5 MB.

    Raises:
        ValueError: it is negative or not finite.
    """
    if not (math.isfinite(n) and n >= 0):
        raise ValueError(f"a size in bytes is 0 or more, not {n}")
    size, unit = float(n), 0
    while round(size) >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    text = f"{size:.0f}" if size >= 100 else f"{size:.3g}"
    return f"{text} {_UNITS[unit]}"


def percent(share: float) -> str:
    """To a tenth, rounded down near the top: what is not solved must not read 100.0."""
    text = f"{100 * share:.1f}"
    return "99.9" if text == "100.0" and share < 1 else text


def spell_dials(dials: Mapping[str, Any]) -> str:
    """feature_dim=16 window=8."""
    return " ".join(f"{key}={value}" for key, value in dials.items())


def spell_seeds(counts: pd.Series, drawn: str = "bars") -> str:
    """How many seeds, and what the bars (or bands) over them are."""
    low, high = int(counts.min()), int(counts.max())
    seeds = f"{high}" if low == high else f"{low} to {high}"
    if high == 1:
        return f"{seeds}\u00a0seed"
    return f"{seeds}\u00a0seeds, {drawn}: {100 * LEVEL:.0f}\u00a0% bootstrap interval of their mean"


def points_table(points: pd.DataFrame) -> pd.DataFrame:
    """The points as text to be read: a row per trial, by architecture and state.

    Columns: `frontier` ("*" where no point of the same architecture is better), `architecture`, `dials`, `d_model`,
    `state`, `recall %`, `interval` (the bootstrap's; empty for one seed), one per slice where there are several,
    `learning rate` ("<" or ">" where the grid ends there), `notes`.
    """
    best = set(frontier(points)["trial"])
    ordered = points.sort_values(["architecture", "state_bytes", "recall"], kind="stable")
    rows = []
    for p in ordered.to_dict("records"):
        several = p["n_seeds"] > 1
        by_slice = {name: percent(a) for name, a in p["slice_recall"].items()} if len(p["slice_recall"]) > 1 else {}
        mark = {"low": "<", "high": ">"}.get(p["edge"], "")
        rows.append(
            {
                "frontier": "*" if p["trial"] in best else "",
                "architecture": p["architecture"],
                "dials": spell_dials(p["dials"]),
                "d_model": str(p["d_model"]),
                "state": human_bytes(p["state_bytes"]),
                "recall %": percent(p["recall"]),
                "interval": f"{percent(p['ci_low'])} to {percent(p['ci_high'])}" if several else "",
                **by_slice,
                "learning rate": f"{mark}{p['learning_rate']:.3g}",
                "notes": "; ".join(_notes(p)),
            }
        )
    return pd.DataFrame(rows)


def _notes(point: dict[str, Any]) -> list[str]:
    notes = []
    if point["n_diverged"]:
        notes.append(f"{point['n_diverged']} of {point['n_replicas']} diverged")
    if point["edge"] and point["recall"] < SOLVED:
        notes.append(f"try a {'smaller' if point['edge'] == 'low' else 'larger'} learning rate")
    return notes
