"""Lines over something that grows, one for each architecture, with a band over its seeds."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from zoology.analysis.plots.labels import Line, label_lines
from zoology.analysis.plots.page import Page, dashed_of, legend, line_style, marker, ordered_looks, samples

_CROWD = 8  # from here on bands are paler


def draw_lines(axes: Axes, page: Page, tables: Mapping[str, pd.DataFrame], marks: bool = True) -> dict[str, Line]:
    """Draws each architecture's `y` over `x`, with a band from `low` to `high` where they are known.

    Args:
        axes: where.
        page: of the figure.
        tables: by architecture, with the columns `x`, `y`, `low`, `high`, in the order of the line.
        marks: whether each point has its marker; a curve of many steps has but a few.

    Returns:
        What was drawn, for `name_lines`.
    """
    look, dashed = ordered_looks(tables), dashed_of(tables)
    lines = {}
    for rank, (name, own) in enumerate(look.items()):
        x, y, low, high = (tables[name][key].to_numpy(float) for key in ("x", "y", "low", "high"))
        if np.isfinite(low).any():
            alpha = 0.15 if len(look) <= _CROWD else 0.07
            axes.fill_between(x, low, high, color=own.color, alpha=alpha, linewidth=0, zorder=1.5)
        axes.plot(
            x, y, color=own.color, linestyle=line_style(own, name in dashed), linewidth=1.2 * page.scale, zorder=3,
            markeredgecolor="white", markevery=None if marks else _few(len(x), rank), **marker(own, page.scale),
        )  # fmt: skip
        lines[name] = Line(samples(x, y), samples(x, y))
    return lines


def _few(n: int, rank: int) -> list[int]:
    """The last of n points and four others, which are not the same for every line, so that marks seldom meet."""
    return sorted({*range(rank % 5 * n // 25, n, max(1, n // 5)), n - 1})


def name_lines(axes: Axes, page: Page, lines: dict[str, Line]) -> None:
    """Names beside the lines where all fit, otherwise in a legend. Call it when all else is on the page."""
    look = ordered_looks(lines)
    if not label_lines(axes, lines, look, page.font):
        legend(page, look, dashed_of(lines), {name: line.frontier[-1][1] for name, line in lines.items()})
