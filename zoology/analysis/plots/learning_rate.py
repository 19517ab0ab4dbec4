"""The picture of the learning rates: validation accuracy over the grid, a panel for each architecture."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

from zoology.analysis.plots.page import PAGE, finish, new_page, ordered_looks, plain, recall_axis, settings, settle
from zoology.analysis.plots.style import lighter
from zoology.registry import InputError


def plot_learning_rate(
    rates: pd.DataFrame, *, title: str | None = None, size: tuple[float, float] = PAGE, note: str = ""
) -> Figure:
    """A line for each trial, darker with more state; the chosen rate is filled, and a triangle at an edge of the grid.

    A cross below a rate says that a replica diverged there. The figure is as high as its panels need.

    Args:
        rates: of `zoology.analysis.learning.rate_table`.
        title: above the picture.
        size: width and height in inches; the height is that of two rows of panels.
        note: more to be said below.

    Raises:
        InputError: there is nothing to draw.
    """
    if rates.empty:
        raise InputError("there is no learning rate to draw")
    look = ordered_looks(rates["architecture"])
    columns = min(len(look), 2 if size[0] < PAGE[0] else 3 if size[0] < 8 else 5)
    rows = math.ceil(len(look) / columns)
    grid = sorted(set(rates["learning_rate"]))
    with settings(size):
        page = new_page(size)
        scale, font = page.scale, page.font
        page.figure.set_figheight(max(size[1] * 0.75, size[1] * 0.42 * rows + 0.35 * scale))
        panels = page.figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, name in zip(panels.flat, look, strict=False):
            own = rates[rates["architecture"] == name]
            order = own.drop_duplicates("trial").sort_values("state_bytes", kind="stable")["trial"].tolist()
            for rank, trial in enumerate(order):
                part = own[own["trial"] == trial]
                color = lighter(look[name].color, 0.7 * (1 - (rank + 1) / len(order)))
                x, y = part["learning_rate"].to_numpy(float), part["accuracy"].to_numpy(float)
                axes.plot(x, y, color=color, linewidth=0.9 * scale, zorder=2 + rank / len(order))
                best = part[part["chosen"]].iloc[0]
                mark = {"low": "<", "high": ">"}.get(best["edge"], "o")
                axes.plot(
                    best["learning_rate"], best["accuracy"], marker=mark, markersize=(4 if mark == "o" else 5) * scale,
                    color=color, markeredgecolor="white" if mark == "o" else "black",
                    markeredgewidth=0.5 * scale, zorder=4,
                )  # fmt: skip
                lost = part[part["n_diverged"] > 0]["learning_rate"].to_numpy(float)
                axes.plot(lost, np.zeros(len(lost)), "x", color=color, markersize=4 * scale, zorder=3)
            axes.set_title(name, fontsize=font * (0.95 if len(name) < 18 else 0.75), loc="left", pad=2 * scale)
            axes.set_xscale("log")
            plain(axes, page)
        for axes in panels.flat[len(look) :]:
            axes.set_visible(False)
        bottom = [panels[min(rows - 1, (len(look) - 1 - k) // columns)][k] for k in range(columns)]
        first = panels[0][0]
        # A tick at each rate, as far apart as their names need.
        room, kept = (grid[-1] / grid[0]) ** 0.45, []
        for rate in grid:
            if not kept or rate / kept[-1] >= room * 0.99:
                kept.append(rate)
        first.xaxis.set_major_locator(FixedLocator(kept))
        first.xaxis.set_major_formatter(FixedFormatter([f"{rate:.2g}" for rate in kept]))
        first.xaxis.set_minor_locator(NullLocator())
        first.xaxis.set_minor_formatter(NullFormatter())
        first.set_xlim(grid[0] / 1.4, grid[-1] * 1.4)
        recall_axis(first, step=50)
        for axes in bottom:
            axes.tick_params(labelbottom=True)
        page.figure.supylabel("Validation accuracy (%)", fontsize=font)
        text = "Learning rate across; a line for each trial, darker with more state; mean over seeds. Filled: chosen"
        text += "; triangle: chosen at an edge of the grid" if rates["edge"].notna().any() else ""
        text += "; cross: a replica diverged" if (rates["n_diverged"] > 0).any() else ""
        finish(page, f"{text}. {note}".strip(), title)
        return settle(page)
