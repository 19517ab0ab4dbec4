"""The picture of training: validation accuracy over the steps, a line for each architecture."""

import pandas as pd
from matplotlib.figure import Figure

from zoology.analysis.plots.lines import draw_lines, name_lines
from zoology.analysis.plots.page import PAGE, finish, new_page, plain, recall_axis, settings, settle
from zoology.registry import InputError


def plot_training(
    curves: pd.DataFrame, *, title: str | None = None, size: tuple[float, float] = PAGE, note: str = ""
) -> Figure:
    """Validation accuracy over the steps: the mean over seeds, and a band from the worst to the best of them.

    A replica that stopped early keeps its last accuracy to the end, as its best checkpoint is what counts.

    Args:
        curves: of `zoology.analysis.learning.curves`, of one trial for each architecture.
        title: above the picture.
        size: width and height in inches. A legend adds its own height.
        note: more to be said below.

    Raises:
        InputError: there is nothing to draw, or an architecture has several trials.
    """
    shown = curves[curves["accuracy"].notna()]
    if shown.empty:
        raise InputError("there is no curve to draw")
    if (several := shown.groupby("architecture")["trial"].nunique()).max() > 1:
        raise InputError(f"{several.idxmax()} has {several.max()} trials: draw one for each architecture")
    with settings(size):
        page = new_page(size)
        axes = page.figure.add_subplot()
        lines = draw_lines(axes, page, {str(n): mean_curve(p) for n, p in shown.groupby("architecture")}, marks=False)
        recall_axis(axes)
        axes.set_xlim(left=0)
        axes.set_ylabel("Validation accuracy (%)")
        axes.set_xlabel("Step")
        plain(axes, page)
        seeds = shown.groupby("trial")["seed"].nunique().max()
        text = "Of each architecture the trial that is best on validation, at its chosen learning rate; "
        text += "1 seed." if seeds == 1 else f"mean of {seeds}\u00a0seeds, band: worst to best."
        finish(page, f"{text} {note}".strip(), title)
        name_lines(axes, page, lines)
        return settle(page)


def mean_curve(part: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds at every step that one of them has, with the worst and the best: x, y, low, high."""
    wide = part.pivot_table(index="step", columns="seed", values="accuracy").sort_index().ffill().bfill()
    several = wide.shape[1] > 1
    low, high = (wide.min(axis=1), wide.max(axis=1)) if several else (float("nan"),) * 2
    return pd.DataFrame({"x": wide.index, "y": wide.mean(axis=1), "low": low, "high": high}).reset_index(drop=True)
