"""The picture of the frontier: recall against state, with what no model can do and what others have published."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zoology.analysis.frontier import frontier
from zoology.analysis.plots.labels import Line, label_lines
from zoology.analysis.plots.page import (
    GREY,
    PAGE,
    Page,
    cited,
    dashed_of,
    finish,
    legend,
    line_style,
    marker,
    new_page,
    ordered_looks,
    place_of_zero,
    plain,
    recall_axis,
    samples,
    settings,
    settle,
    size_axis,
)
from zoology.analysis.plots.style import Look, lighter
from zoology.analysis.words import human_bytes, spell_seeds
from zoology.registry import InputError

CROWD = 8
"""More architectures than these are drawn without what lies below their frontiers."""

_SHADE, _YARDSTICK = "#d9d9d9", "#8c8c8c"
_FORBIDDEN = "no model can be here"


def plot_frontier(
    points: pd.DataFrame,
    *,
    title: str | None = None,
    size: tuple[float, float] = PAGE,
    limit: pd.DataFrame | None = None,
    memory: pd.DataFrame | None = None,
    published: pd.DataFrame | None = None,
    comparable: bool = True,
) -> Figure:
    """Recall against state: every trial a point, the frontier of each architecture a line through its best points.

    Bars are the bootstrap interval over seeds. Points off the frontier are pale and hollow. Names stand beside their
    lines where there is room for all, otherwise in a legend. Text grows with the width, so that 3.3 inches (a paper's
    column) and 10 inches (a slide) both read.

    Args:
        points: of `zoology.analysis.frontier.points`.
        title: above the picture.
        size: width and height in inches. A legend adds its own height.
        limit: of `zoology.analysis.limits.task_limit`: shaded, or told of in the note where it lies too far left.
        memory: of `zoology.analysis.limits.outer_product`: a thin line.
        published: of `zoology.analysis.published.published`: small and hollow, on dotted lines.
        comparable: whether the published points are of the slices that `points` are of. Said in the note.

    Raises:
        InputError: there is no point.
    """
    if points.empty:
        raise InputError("there is no point to draw")
    best = frontier(points)
    others = published if published is not None else points.head(0)
    look = ordered_looks({*points["architecture"], *others["architecture"]})
    measured = {name: own for name, own in look.items() if name in set(points["architecture"])}
    dashed = dashed_of(measured)
    sizes = pd.concat([points["state_bytes"], others["state_bytes"]]).astype(float)
    x_of_zero = place_of_zero(sizes)
    note = [caption(points)]
    with settings(size):
        page = new_page(size)
        axes = page.figure.add_subplot()
        lines: dict[str, Line] = {}
        for name in measured:
            of_name, line = (p[p["architecture"] == name] for p in (points, best))
            lines[name] = _draw(axes, page, of_name, line, look[name], name in dashed, x_of_zero, len(measured) > CROWD)
        lines |= _draw_published(axes, page, others, look, lines)
        left = _leftmost(sizes.replace(0, x_of_zero), limit)
        size_axis(axes, sizes, x_of_zero, left)
        recall_axis(axes)
        axes.set_ylabel("Recall (%)")
        axes.set_xlabel("State kept after the context")
        plain(axes, page)
        note += _draw_limit(axes, page, limit) + _draw_memory(axes, page, memory)
        if len(others):
            where = ", ".join(dict.fromkeys(others["setting"]))
            note.append(
                f"On dotted lines: published ({where}), read off a figure, bytes as claimed there"
                + ("." if comparable else "; of other slices, so not comparable.")
            )
        finish(page, " ".join(note), title)
        if not label_lines(axes, lines, look, page.font):
            size_axis(axes, sizes, x_of_zero, left, ticks=5)
            heights = {name: line.frontier[-1][1] for name, line in lines.items()}
            legend(page, look, dashed, heights, only_cited=set(look) - set(measured))
        return settle(page)


def caption(points: pd.DataFrame) -> str:
    """What was measured, in a line: task, slices, sequences, seeds."""
    task = ", ".join(sorted(points["task"].unique()))
    examples: dict[str, int] = points["examples"].iloc[0]
    names = list(examples)
    shown = ", ".join(names if len(names) <= 8 else [*names[:7], f"{len(names) - 7} more"])
    counts = sorted(set(examples.values()))
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    parts = [
        f"Task {task}, {'mean over' if len(names) > 1 else 'slice'} {shown}",
        f"{each}\u00a0test sequences{' each' if len(names) > 1 else ''}",
        spell_seeds(points["n_seeds"]),
    ]
    if len(frontier(points)) < len(points):
        crowd = points["architecture"].nunique() > CROWD
        parts.append("points below the frontier are left out" if crowd else "hollow: below the frontier")
    return "; ".join(parts) + "."


def _draw(
    axes: Axes,
    page: Page,
    points: pd.DataFrame,
    best: pd.DataFrame,
    look: Look,
    dashed: bool,
    x_of_zero: float,
    crowd: bool,
) -> Line:
    """One architecture: its points, its bars, and the line through its frontier."""
    scale = page.scale
    pale = lighter(look.color)
    under = points[~points["trial"].isin(best["trial"])]
    inks = [np.empty((0, 2))]
    for part, color, fill, z in ((under, pale, "white", 2), (best, look.color, look.color, 4)):
        if crowd and part is under:
            continue
        x = part["state_bytes"].replace(0, x_of_zero).to_numpy(float)
        y, low, high = (part[key].to_numpy(float) for key in ("recall", "ci_low", "ci_high"))
        several = part["n_seeds"].to_numpy() > 1
        axes.vlines(x[several], low[several], high[several], color=color, linewidth=0.8 * scale, zorder=z - 0.5)
        edge = "white" if fill == look.color else color
        axes.plot(x, y, linestyle="none", markerfacecolor=fill, markeredgecolor=edge, zorder=z, **marker(look, scale))
        inks += [samples(x, y), samples(x[several], low[several]), samples(x[several], high[several])]
    axes.plot(x, y, color=look.color, linestyle=line_style(look, dashed), linewidth=1.2 * scale, zorder=3)
    return Line(samples(x, y), np.concatenate(inks))


def _draw_published(
    axes: Axes, page: Page, published: pd.DataFrame, look: dict[str, Look], lines: dict[str, Line]
) -> dict[str, Line]:
    """Small hollow marks on dotted lines. Gives the architectures' lines, with this ink among theirs."""
    found = {}
    for name, part in published.groupby("architecture"):
        part = part.sort_values("state_bytes")
        x, y = part["state_bytes"].to_numpy(float), part["accuracy"].to_numpy(float)
        axes.plot(x, y, zorder=2.2, **cited(look[name], page.scale))
        own = lines.get(name)
        found[name] = (
            Line(own.frontier, np.concatenate([own.marks, samples(x, y)]))
            if own
            else Line(samples(x, y), samples(x, y))
        )
    return found


def _leftmost(sizes: pd.Series, limit: pd.DataFrame | None) -> float | None:
    """How far left the axis must reach to show the limit; not so far that the points are pressed together."""
    if limit is None or limit.empty:
        return None
    low, high = math.log2(sizes.min()), math.log2(sizes.max())
    last = math.log2(limit["state_bytes"].iloc[-1])
    room = max(3.0, 0.7 * (high - low))
    return 2 ** (last - 0.3 * room) if last > low - room else None


def _draw_limit(axes: Axes, page: Page, limit: pd.DataFrame | None) -> list[str]:
    """Shades what no model can reach, where it is in view; otherwise a note says where it ends."""
    if limit is None or limit.empty:
        return []
    left = axes.get_xlim()[0]
    last = float(limit["state_bytes"].iloc[-1])
    if last <= left:
        return [f"What no model can do ends at {human_bytes(last)}, left of what is drawn."]
    x = np.concatenate([[min(left, float(limit["state_bytes"].iloc[0]))], limit["state_bytes"].to_numpy(float)])
    y = np.concatenate([limit["recall"].to_numpy(float), [1.0]])
    top = axes.get_ylim()[1]
    shade = {"facecolor": _SHADE, "edgecolor": "white", "hatch": "////", "linewidth": 0.0, "zorder": 0.5}
    axes.fill_between(x, y, top, step="post", **shade)
    axes.step(x, y, where="post", color=GREY, linewidth=0.7 * page.scale, zorder=0.6)
    # The words stand within the shade, if it is high enough near the left edge.
    near = left * (last / left) ** 0.3 if last > left else left
    foot = float(y[np.searchsorted(x, near, side="right") - 1])
    high = (top - foot) / (top - axes.get_ylim()[0]) * page.figure.get_figheight() * 72 * 0.7
    size = 0.85 * page.font
    if high > len(_FORBIDDEN) * size * 0.62 and math.log2(near / left) > 0.3:
        axes.text(
            near, (foot + top) / 2, _FORBIDDEN, rotation=90, ha="center", va="center", fontsize=size, color="#333333",
            zorder=0.7, bbox={"facecolor": _SHADE, "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip
        return []
    return [f"Shaded: {_FORBIDDEN}."]


def _draw_memory(axes: Axes, page: Page, memory: pd.DataFrame | None) -> list[str]:
    """The outer-product memory, where it is in view."""
    if memory is None or memory.empty or not memory["state_bytes"].between(*axes.get_xlim()).any():
        return []
    x, y = memory["state_bytes"].to_numpy(float), memory["recall"].to_numpy(float)
    axes.plot(x, y, color=_YARDSTICK, linestyle=(0, (1, 1)), linewidth=1.2 * page.scale, zorder=1)
    return ["Dotted grey: a linear outer-product memory with random keys, in one layer."]
