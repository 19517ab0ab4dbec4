"""From the rows of runs to a picture by the name of its kind: which numbers each kind needs, and of which trials."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from zoology.analysis.budgets import within
from zoology.analysis.frontier import of_one_task, points
from zoology.analysis.learning import curves, rate_table
from zoology.analysis.limits import outer_product_of, task_limit
from zoology.analysis.plots.extrapolation import plot_extrapolation
from zoology.analysis.plots.frontier import plot_frontier
from zoology.analysis.plots.learning_rate import plot_learning_rate
from zoology.analysis.plots.order import plot_order
from zoology.analysis.plots.page import PAGE
from zoology.analysis.plots.slices import plot_slices
from zoology.analysis.plots.state import plot_state
from zoology.analysis.plots.training import plot_training
from zoology.analysis.published import published as published_points
from zoology.analysis.published import same_setting
from zoology.analysis.slices import by_order, by_slice
from zoology.registry import InputError, did_you_mean


class Wish(NamedTuple):
    """What is asked of a picture.

    Attributes:
        rows: of `records.load_runs`, of one task.
        points: of `frontier.points`, of those rows.
        slices: which test slices, or None for all.
        published: whether to overlay what others have published.
        title: above the picture.
        size: width and height in inches.
    """

    rows: pd.DataFrame
    points: pd.DataFrame
    slices: Sequence[str] | None
    published: bool
    title: str | None
    size: tuple[float, float]

    @property
    def best(self) -> list[str]:
        """Of each architecture the trial that is best on validation."""
        return [str(within(part)["trial"]) for _, part in self.points.groupby("architecture", sort=True)]

    @property
    def scored(self) -> pd.DataFrame:
        """The best trials, slice by slice."""
        table = by_slice(self.rows, self.best)
        return table[table["slice"].isin(list(self.slices))] if self.slices else table


def _frontier(wish: Wish) -> Figure:
    shown = wish.rows[wish.rows["slice"].isin(list(wish.slices))] if wish.slices else wish.rows
    others, comparable = None, True
    if wish.published:
        others = published_points(str(wish.points["task"].iloc[0]))
        comparable = all(same_setting(shown, setting) for setting in set(others["setting"]))
    return plot_frontier(
        wish.points,
        title=wish.title,
        size=wish.size,
        limit=task_limit(wish.rows, wish.slices),
        memory=outer_product_of(wish.rows, np.random.default_rng(0), wish.slices),
        published=others,
        comparable=comparable,
    )


KINDS: dict[str, Callable[[Wish], Figure]] = {
    "frontier": _frontier,
    "slices": lambda wish: plot_slices(wish.scored, title=wish.title, size=wish.size),
    "learning-rate": lambda wish: plot_learning_rate(rate_table(wish.rows), title=wish.title, size=wish.size),
    "training": lambda wish: plot_training(curves(wish.rows, wish.best), title=wish.title, size=wish.size),
    "extrapolation": lambda wish: plot_extrapolation(wish.scored, title=wish.title, size=wish.size),
    "order": lambda wish: plot_order(by_order(wish.scored), title=wish.title, size=wish.size),
    "state": lambda wish: plot_state(
        wish.points[wish.points["trial"].isin(wish.best)], title=wish.title, size=wish.size,
        note="Of each architecture the trial that is best on validation.",
    ),
}  # fmt: skip
"""The kinds of pictures, by name. Each draws from a wish, and raises an InputError where the rows do not hold it."""


def draw(
    kind: str,
    rows: pd.DataFrame,
    *,
    slices: Sequence[str] | None = None,
    task: str | None = None,
    published: bool = False,
    title: str | None = None,
    size: tuple[float, float] = PAGE,
) -> Figure:
    """A picture of some rows.

    Args:
        kind: one of `KINDS`.
        rows: of `records.load_runs`.
        slices: test slices to look at, by default all.
        task: which task, where the rows hold several.
        published: overlay what others have published; the frontier alone can.
        title: above the picture.
        size: width and height in inches; some kinds grow with what they show.

    Raises:
        InputError: an unknown kind, rows that cannot share a picture (see `frontier.points`), or rows that do not hold
            what the kind shows.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind {kind!r}: {did_you_mean(kind, KINDS)}")
    if published and kind != "frontier":
        raise InputError(f"published points can be laid over the frontier, not over {kind}")
    found = points(rows, slices=slices, task=task)
    return KINDS[kind](Wish(of_one_task(rows, task), found, slices, published, title, size))
