"""The frontier as an interactive figure: hover over a point for its numbers, click a name to hide its architecture.

Drawn by plotly.js, which comes with the package `plotly`. It is put into the page gzipped, a third of its size.
"""

import base64
import functools
import gzip
import html
import math
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from zoology.analysis.frontier import frontier
from zoology.analysis.plots.page import dashed_of, ordered_looks, place_of_zero
from zoology.analysis.plots.style import MARKER_SIZE, Look, lighter
from zoology.analysis.words import human_bytes, percent, spell_dials

_SYMBOLS: dict[Any, str] = {
    "s": "square",
    "o": "circle",
    "P": "cross",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "X": "x",
    "d": "diamond-tall",
    "p": "pentagon",
    "h": "hexagon2",
    "8": "octagon",
    "*": "star",
    (4, 1, 0): "star-diamond",
    (6, 1, 0): "hexagram",
    (5, 0, 180): "hourglass",
    "H": "hexagon",
    (8, 1, 0): "star-triangle-up",
    (4, 1, 45): "star-square",
}
"""The marker of plotly that is nearest to each of `style`."""

_LARGEST = 1.35  # of the factors in MARKER_SIZE, as plotly's stars are fuller than matplotlib's
_SHADE, _GREY, _GRID = "rgba(160,160,160,0.35)", "#666666", "#e4e4e4"


class Frame(NamedTuple):
    """The axis of bytes of a figure that was drawn, so that another drawing of it looks alike.

    Attributes:
        low, high: its ends, in bytes.
        ticks: (bytes, text).
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    @classmethod
    def of(cls, figure: Figure) -> "Frame":
        """That of the first axes of a figure."""
        axes = figure.axes[0]
        names = [text.get_text() for text in axes.get_xticklabels()]
        low, high = axes.get_xlim()
        return cls(float(low), float(high), tuple(zip(map(float, axes.get_xticks()), names, strict=True)))


def interactive(
    points: pd.DataFrame,
    frame: Frame,
    *,
    limit: pd.DataFrame | None = None,
    memory: pd.DataFrame | None = None,
    published: pd.DataFrame | None = None,
) -> str:
    """The figure as JSON for plotly.js: what it draws, in an array of traces, and its layout.

    All that belongs to one architecture is one group of the legend: the line through its frontier, the points below
    it, and what others have published of it.

    Args:
        points: of `frontier.points`.
        frame: of the same figure, drawn by `plots.plot_frontier`.
        limit: of `limits.task_limit`.
        memory: of `limits.outer_product`.
        published: of `published.published`.
    """
    from plotly.graph_objects import Figure as Interactive

    others = published if published is not None else pd.DataFrame(columns=["architecture", "state_bytes", "accuracy"])
    looks = ordered_looks({*points["architecture"], *others["architecture"]})
    dashed = dashed_of(set(points["architecture"]))
    zero = place_of_zero(pd.concat([points["state_bytes"], others["state_bytes"]]).astype(float))
    best = frontier(points)
    traces = [*_limit(limit, frame), *_memory(memory)]
    for name, look in looks.items():
        line, part, outside = (p[p["architecture"] == name] for p in (best, points, others))
        traces += _of_architecture(name, look, line, part, name in dashed, zero)
        if len(outside):
            traces.append(_of_others(name, look, outside, shown=part.empty))
    figure = Interactive(data=traces, layout=_layout(frame, len(looks)))
    # "</script>" within a string would end the script that holds it.
    return str(figure.to_json()).replace("<", "\\u003c")


@functools.cache
def library() -> str:
    """plotly.js as base64 of gzip, the same each time."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def hover_text(point: dict[str, Any]) -> str:
    """What is told of a point of `frontier.points`: HTML as plotly reads it, with what a name holds escaped."""
    several = point["n_seeds"] > 1
    spread = f" ({percent(point['ci_low'])} to {percent(point['ci_high'])})" if several else ""
    edge = {"low": ", the lowest of its grid", "high": ", the highest of its grid"}.get(point["edge"], "")
    dials = spell_dials({**point["dials"], "d_model": point["d_model"]})
    seeds = ", ".join(f"{seed}: {percent(recall)}" for seed, recall in sorted(point["recall_by_seed"].items()))
    parts = ", ".join(f"{name} {human_bytes(size)}" for name, size in point["state_parts"].items())
    lines = [
        f"recall {percent(point['recall'])} %{spread}",
        f"state {human_bytes(point['state_bytes'])}, {point['state_elements']} elements",
        *([parts] if len(point["state_parts"]) > 1 else []),
        f"learning rate {point['learning_rate']:.3g}{edge}",
        f"recall % by seed: {seeds}",
    ]
    if point["n_diverged"]:
        lines.append(f"{point['n_diverged']} of {point['n_replicas']} replicas diverged")
    lines.append(f"trial {point['trial']}")
    name = f"<b>{html.escape(point['architecture'])}</b> {html.escape(dials)}"
    return "<br>".join([name, *(html.escape(line) for line in lines)])


def _of_architecture(
    name: str, look: Look, line: pd.DataFrame, points: pd.DataFrame, dashed: bool, zero: float
) -> list[dict[str, Any]]:
    """The points below the frontier, then the frontier."""
    under = points[~points["trial"].isin(line["trial"])]
    pale, symbol = lighter(look.color), _SYMBOLS[look.marker]
    traces = []
    for part, color, on_line in ((under, pale, False), (line, look.color, True)):
        if part.empty:
            continue
        recall = 100 * part["recall"].astype(float)
        up, down = 100 * part["ci_high"].astype(float) - recall, recall - 100 * part["ci_low"].astype(float)
        traces.append(
            {
                "type": "scatter",
                "name": html.escape(name),
                "legendgroup": name,
                "showlegend": on_line,
                "mode": "lines+markers" if on_line else "markers",
                "x": part["state_bytes"].replace(0, zero).astype(float).tolist(),
                "y": recall.tolist(),
                "error_y": {
                    "type": "data",
                    "array": up.fillna(0).tolist(),
                    "arrayminus": down.fillna(0).tolist(),
                    "color": color,
                    "thickness": 1.2,
                    "width": 0,
                },
                "line": {"color": color, "width": 2, "dash": "dash" if dashed else _dash(look)},
                "marker": {
                    "symbol": symbol,
                    "size": 10 * min(MARKER_SIZE.get(look.marker, 1.0), _LARGEST),
                    "color": color if on_line else "white",
                    "line": {"color": "white" if on_line else color, "width": 1 if on_line else 1.5},
                },
                "text": [hover_text(point) for point in part.to_dict("records")],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    return traces


def _of_others(name: str, look: Look, published: pd.DataFrame, shown: bool) -> dict[str, Any]:
    part = published.sort_values("state_bytes")
    return {
        "type": "scatter",
        "name": html.escape(f"{name} (published)"),
        "legendgroup": name,
        "showlegend": shown,
        "mode": "lines+markers",
        "x": part["state_bytes"].astype(float).tolist(),
        "y": (100 * part["accuracy"]).tolist(),
        "line": {"color": lighter(look.color, 0.3), "width": 1.2, "dash": "dot"},
        "marker": {"symbol": "x-thin", "size": 8, "line": {"color": look.color, "width": 1.5}},
        "text": [_told(row) for row in part.to_dict("records")],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _told(row: dict[str, Any]) -> str:
    lines = [
        f"recall {percent(row['accuracy'])} % with {human_bytes(row['state_bytes'])}",
        f"{row['setting']}, {row['source']}",
        row["how"],
    ]
    head = f"<b>{html.escape(row['architecture'])}</b>, published"
    return "<br>".join([head, *(html.escape(str(line)) for line in lines)])


def _limit(limit: pd.DataFrame | None, frame: Frame) -> list[dict[str, Any]]:
    """The staircase and all above it."""
    if limit is None or limit.empty or limit["state_bytes"].iloc[-1] <= frame.low:
        return []
    sizes = limit["state_bytes"].astype(float).tolist()
    x = [min(frame.low, sizes[0]), *sizes]
    y = [*(100 * limit["recall"]).tolist(), 100.0]
    same = {"type": "scatter", "mode": "lines", "legendgroup": "limit", "hoverinfo": "skip"}
    top = {**same, "x": [x[0], x[-1]], "y": [106, 106], "line": {"width": 0}, "showlegend": False}
    stairs = {
        **same,
        "x": x,
        "y": y,
        "name": "no model can be here",
        "line": {"color": _GREY, "width": 1, "shape": "hv"},
        "fill": "tonexty",
        "fillcolor": _SHADE,
    }
    return [top, stairs]


def _memory(memory: pd.DataFrame | None) -> list[dict[str, Any]]:
    if memory is None or memory.empty:
        return []
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "outer-product memory",
            "x": memory["state_bytes"].astype(float).tolist(),
            "y": (100 * memory["recall"]).tolist(),
            "line": {"color": "#8c8c8c", "width": 2, "dash": "dot"},
            "text": [f"{human_bytes(size)}: {percent(recall)} %" for size, recall in _pairs(memory)],
            "hovertemplate": "a linear outer-product memory with random keys<br>%{text}<extra></extra>",
        }
    ]


def _pairs(memory: pd.DataFrame) -> list[tuple[float, float]]:
    return list(zip(memory["state_bytes"], memory["recall"], strict=True))


def _dash(look: Look) -> str:
    return "solid" if look.line == "-" else "dashdot"


def _layout(frame: Frame, names: int) -> dict[str, Any]:
    axis = {"gridcolor": _GRID, "linecolor": "#333333", "zeroline": False, "ticks": "outside", "fixedrange": False}
    return {
        "template": "none",
        "autosize": True,
        "height": 460 + 12 * names,
        "margin": {"l": 56, "r": 12, "t": 12, "b": 48},
        "font": {"family": "system-ui, sans-serif", "size": 14},
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "white", "font": {"color": "black", "size": 13}, "align": "left"},
        "xaxis": {
            **axis,
            "type": "log",
            "range": [math.log10(frame.low), math.log10(frame.high)],
            "tickvals": [size for size, _ in frame.ticks],
            "ticktext": [text for _, text in frame.ticks],
            "title": {"text": "State kept after the context", "font": {"size": 14}},
        },
        "yaxis": {
            **axis,
            "range": [-3, 106],
            "tickvals": list(range(0, 101, 20)),
            "title": {"text": "Recall (%)", "font": {"size": 14}},
        },
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "xanchor": "left", "x": 0},
    }
