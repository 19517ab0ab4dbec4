"""Names beside the lines that they belong to, where there is room for every one of them."""

import itertools
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray

from zoology.analysis.plots.style import Look, ink

# Distances as shares of the text's size, so that they hold at any width of the figure.
_NEAR = 0.85  # from a point to its label
_OWN, _OTHER, _LABEL = 0.4, 0.7, 0.4  # clearance from what belongs to the label's own line, to others, to other labels
_FRAME = 0.2  # and from the axes
_SIDES = (
    (1.0, 0.0, "left", "center"),
    (0.0, 1.0, "center", "bottom"),
    (0.0, -1.0, "center", "top"),
    (-1.0, 0.0, "right", "center"),
    (0.8, 0.8, "left", "bottom"),
    (0.8, -0.8, "left", "top"),
    (-0.8, 0.8, "right", "bottom"),
    (-0.8, -0.8, "right", "top"),
)


class Line(NamedTuple):
    """What is drawn for one architecture, in data coordinates: rows of (x, y)."""

    frontier: NDArray[np.float64]  # in the order of the line
    marks: NDArray[np.float64]  # all other places with ink: dominated points, the ends of error bars


def label_lines(axes: Axes, lines: dict[str, Line], looks: dict[str, Look], size: float) -> bool:
    """Writes each name beside its line, or writes none and returns False where one would not read well.

    A name goes next to a point of its line: the last one if it can, otherwise the nearest to it. It lies on no ink, and
    keeps farther from the other lines than from its own. Call it when the layout is settled.

    Args:
        axes: where the lines are drawn; must belong to a figure.
        lines: what is drawn, by name.
        looks: the colour of each name.
        size: of the text, in points.
    """
    figure = axes.figure
    canvas = FigureCanvasAgg(figure)  # type: ignore[arg-type]
    figure.draw_without_rendering()
    em = size * figure.dpi / 72.0  # of the text, in pixels
    box = axes.get_window_extent().padded(-_FRAME * em)
    drawn = {name: _ink_of(axes, line) for name, line in lines.items()}
    placed: list[tuple[float, float, float, float]] = []
    texts = []
    # Those with the fewest places to go choose first.
    for name, line in sorted(lines.items(), key=lambda item: len(item[1].frontier)):
        text = axes.annotate(
            name,
            (0, 0),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=size,
            color=ink(looks[name].color),
            zorder=6,
            annotation_clip=False,
            path_effects=[Stroke(linewidth=0.3 * size, foreground="white"), Normal()],  # lifts it off the grid
        )
        text.set_in_layout(False)
        texts.append(text)
        others = np.concatenate([np.empty((0, 2)), *(p for other, p in drawn.items() if other != name)])
        for x, y in line.frontier[::-1]:
            for dx, dy, ha, va in _SIDES:
                text.xy = (x, y)
                text.set(ha=ha, va=va, position=(dx * _NEAR * size, dy * _NEAR * size))
                extent = text.get_window_extent(canvas.get_renderer()).extents
                if (
                    _inside(extent, box.extents)
                    and not _touches(extent, drawn[name], _OWN * em)
                    and not _touches(extent, others, _OTHER * em)
                    and not any(_overlap(extent, other, _LABEL * em) for other in placed)
                ):
                    break
            else:
                continue
            placed.append(tuple(extent))
            break
        else:
            for text in texts:
                text.remove()
            return False
    return True


def _ink_of(axes: Axes, line: Line) -> NDArray[np.float64]:
    """Pixels that the line covers: its points, others' marks, and samples 2 pixels apart between the points."""
    corners = axes.transData.transform(line.frontier)
    pieces = [corners, axes.transData.transform(line.marks) if len(line.marks) else np.empty((0, 2))]
    for a, b in itertools.pairwise(corners):
        steps = max(2, int(np.hypot(*(b - a)) / 2))
        pieces.append(a + np.linspace(0, 1, steps)[:, None] * (b - a))
    return np.concatenate(pieces)


def _inside(box: NDArray[np.float64], frame: NDArray[np.float64]) -> bool:
    return bool((box[:2] >= frame[:2]).all() and (box[2:] <= frame[2:]).all())


def _touches(box: NDArray[np.float64], pixels: NDArray[np.float64], room: float) -> bool:
    return bool(((pixels >= box[:2] - room) & (pixels <= box[2:] + room)).all(axis=1).any())


def _overlap(a: NDArray[np.float64], b: tuple[float, float, float, float], room: float) -> bool:
    return bool(a[0] < b[2] + room and b[0] < a[2] + room and a[1] < b[3] + room and b[1] < a[3] + room)
