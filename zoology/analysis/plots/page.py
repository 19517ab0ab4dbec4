"""What all pictures share: the page and its size, axes of bytes and of recall, the note below, a legend, the file."""

import io
import math
import textwrap
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

from zoology.analysis.files import write_whole
from zoology.analysis.plots.style import MARKER_SIZE, Look, looks
from zoology.analysis.words import human_bytes
from zoology.registry import InputError

COLUMN, PAGE, SLIDE = (3.3, 2.6), (5.0, 3.5), (10.0, 5.6)
"""Inches: a column of a paper, its page, and a slide."""

REFERENCE = ("attention",)
"""Architectures that are there to compare with; their lines are dashed where others are drawn too."""

GREY, PALE = "#666666", "#e4e4e4"
_MAX_TICKS = 7
_METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}


class Page(NamedTuple):
    """A figure that is being made. `scale` is 1 at 3.4 inches; text and lines grow more slowly than the width."""

    figure: Figure
    scale: float

    @property
    def font(self) -> float:
        return 7.5 * self.scale


def scale_of(size: tuple[float, float]) -> float:
    """How large text and lines are at a size in inches, so that 3.3 (a paper's column) and 10 (a slide) both read."""
    return (size[0] / 3.4) ** 0.6


def size_of(width: float) -> tuple[float, float]:
    """Width and height of a picture of a width in inches, flatter where it is wide.

    Raises:
        InputError: it is not within 2 to 30 inches.
    """
    if not 2 <= width <= 30:
        raise InputError(f"width = {width}: must be from 2 to 30 inches")
    places = (COLUMN, PAGE, SLIDE)
    return width, width * float(np.interp(width, [w for w, _ in places], [h / w for w, h in places]))


def settings(size: tuple[float, float]) -> Any:
    """A context with the look of the page, whatever the reader's own matplotlib settings are."""
    scale = scale_of(size)
    font = 7.5 * scale
    # Not the backend: setting it would outlast the context and take the reader's windows away.
    return matplotlib.rc_context(
        {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
        | {
            "font.family": "DejaVu Sans",  # comes with matplotlib, so the same picture on every machine
            "font.size": font,
            "axes.titlesize": font,
            "axes.labelsize": font,
            "xtick.labelsize": font * 0.9,
            "ytick.labelsize": font * 0.9,
            "legend.fontsize": font * 0.9,
            "axes.linewidth": 0.7 * scale,
            "axes.edgecolor": "#333333",
            "hatch.linewidth": 0.4 * scale,
            "xtick.major.width": 0.7 * scale,
            "ytick.major.width": 0.7 * scale,
            "xtick.minor.width": 0.5 * scale,
            "xtick.minor.size": 1.5 * scale,
        }
    )


def new_page(size: tuple[float, float]) -> Page:
    """An empty figure. Call it, and all that draws on it, within `settings`."""
    return Page(Figure(figsize=size, dpi=100, layout="constrained"), scale_of(size))


def finish(page: Page, note: str, title: str | None = None) -> None:
    """The title above and the note below."""
    figure, font = page.figure, page.font
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=font * 1.1)
    width = int(figure.get_figwidth() * 72 / (font * 0.8 * 0.58))
    text = textwrap.fill(note, width, break_on_hyphens=False)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=font * 0.8, color=GREY, linespacing=1.3)


def settle(page: Page) -> Figure:
    """The figure, drawn once: text takes some settings only then."""
    FigureCanvasAgg(page.figure).draw()
    return page.figure


def plain(axes: Axes, page: Page, grid: str = "both") -> None:
    """No frame but the two axes, a pale grid behind."""
    axes.grid(True, axis=grid, which="major", color=PALE, linewidth=0.6 * page.scale)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def recall_axis(axes: Axes, which: str = "y", step: int = 20) -> None:
    """Per cent of 0 to 1, with room for the marks at both ends."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    (axes.set_ylim if which == "y" else axes.set_xlim)(-0.03, 1.06 if which == "y" else 1.03)
    ticks = range(0, 101, step)
    axis.set_major_locator(FixedLocator([p / 100 for p in ticks]))
    axis.set_major_formatter(FixedFormatter([f"{p}" for p in ticks]))


def place_of_zero(sizes: pd.Series) -> float:
    """Where on a log axis a state of nothing is drawn."""
    return float(sizes[sizes > 0].min()) / 4 if sizes.any() else 0.5


def size_axis(
    axes: Axes, sizes: pd.Series, x_of_zero: float, least: float | None = None, ticks: int = _MAX_TICKS
) -> None:
    """A log axis of bytes, with ticks at powers of two. A state of nothing has its own tick.

    Args:
        axes: whose x axis it is.
        sizes: what is drawn, in bytes.
        x_of_zero: where sizes of 0 are drawn.
        least: a size that must be in view too.
        ticks: how many at most.
    """
    axes.set_xscale("log", base=2)
    drawn = sizes.replace(0, x_of_zero)
    low, high = math.log2(drawn.min()), math.log2(drawn.max())
    room = max(0.35, 0.05 * (high - low), (2.5 - (high - low)) / 2)
    low, high = low - room, high + room
    if least is not None:
        low = min(low, math.log2(least))
    axes.set_xlim(2**low, 2**high)
    first = math.log2(x_of_zero) + 1 if (sizes == 0).any() else low
    powers = next(t for step in (1, 2, 4, 5, 10, 20) if len(t := _powers(max(first, 0), high, step)) <= ticks)
    named = [(2.0**k, human_bytes(2**k)) for k in powers]
    if (sizes == 0).any():
        named.insert(0, (x_of_zero, "none"))
    axes.xaxis.set_major_locator(FixedLocator([x for x, _ in named]))
    axes.xaxis.set_major_formatter(FixedFormatter([name for _, name in named]))
    axes.xaxis.set_minor_locator(FixedLocator([2.0**k for k in _powers(max(first, 0), high, 1)]))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _powers(low: float, high: float, step: int) -> list[int]:
    """10 and what lies whole steps from it, in [low, high]: so that 1 KB is among them wherever it is in view."""
    return [k for k in range(math.ceil(low), math.floor(high) + 1) if (k - 10) % step == 0]


def ordered_looks(names: Collection[str]) -> dict[str, Look]:
    """The look of each architecture, those of reference last."""
    found = looks(names)
    return {name: found[name] for name in sorted(found, key=lambda name: (name in REFERENCE, name))}


def dashed_of(names: Collection[str]) -> set[str]:
    """The architectures of reference, where others are drawn too."""
    return {name for name in names if name in REFERENCE} if not set(names) <= set(REFERENCE) else set()


def marker(look: Look, scale: float) -> dict[str, Any]:
    size = 4.4 * scale * MARKER_SIZE.get(look.marker, 1.0)
    return {"marker": look.marker, "markersize": size, "markeredgewidth": 0.6 * scale}


def line_style(look: Look, dashed: bool) -> Any:
    return (0, (4, 2)) if dashed else look.line


def cited(look: Look, scale: float) -> dict[str, Any]:
    """How published points are drawn: small and hollow, on a dotted line."""
    mark = marker(look, 0.8 * scale) | {"markeredgewidth": 0.9 * scale}
    dots = {"linestyle": (0, (1, 1.5)), "linewidth": 0.9 * scale, "color": look.color}
    return dots | mark | {"markerfacecolor": "white", "markeredgecolor": look.color}


def handles(
    look: Mapping[str, Look], dashed: Collection[str], scale: float, only_cited: Collection[str] = ()
) -> list[Line2D]:
    """A piece of each architecture's line with its marker, for a legend."""
    found = []
    for name, own in look.items():
        style = {"linestyle": line_style(own, name in dashed), "linewidth": 1.2 * scale, "color": own.color}
        style |= marker(own, scale) | {"markeredgecolor": "white"}
        found.append(Line2D([], [], label=name, **(cited(own, scale) if name in only_cited else style)))
    return found


def legend(
    page: Page,
    look: Mapping[str, Look],
    dashed: Collection[str],
    heights: Mapping[str, float],
    only_cited: Collection[str] = (),
) -> None:
    """Names with their lines, where names would not fit beside them.

    On a wide page at the right, in the order in which the lines end, highest first; in a column above the axes, where
    the figure grows by what it takes.
    """
    figure, scale = page.figure, page.scale
    names = sorted(look, key=lambda name: -heights[name])
    lines = handles({name: look[name] for name in names}, dashed, scale, only_cited)
    if figure.get_figwidth() >= PAGE[0]:
        need = len(lines) * 7.5 * scale * 0.9 * 1.45 / 72 + 0.5 * scale
        if need > figure.get_figheight():
            figure.set_figheight(need)
        figure.legend(handles=lines, loc="outside right upper", frameon=False, handlelength=3, labelspacing=0.4)
        return
    renderer = FigureCanvasAgg(figure).get_renderer()
    for columns in range(min(len(lines), 4), 0, -1):
        made = figure.legend(
            handles=lines, loc="outside upper left", ncols=columns, frameon=False, handlelength=3, columnspacing=1.2
        )
        if columns == 1 or made.get_window_extent(renderer).width <= figure.bbox.width:
            break
        made.remove()
    rows = math.ceil(len(lines) / columns)
    figure.set_figheight(figure.get_figheight() + rows * page.font * 1.5 / 72)


def samples(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rows of (x, y)."""
    return np.column_stack([np.asarray(x, float), np.asarray(y, float)])


def encode(figure: Figure, suffix: str, dpi: int = 300) -> bytes:
    """A figure as the content of a file, the same bytes each time.

    Args:
        figure: of this package.
        suffix: .png, .svg or .pdf.
        dpi: dots per inch, of PNG.

    Raises:
        InputError: another suffix.
    """
    if suffix not in _METADATA:
        raise InputError(f"a figure can be written as {', '.join(_METADATA)}, not as {suffix!r}")
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "zoology", "pdf.fonttype": 42}):
        figure.savefig(content, format=suffix[1:], dpi=dpi, metadata=_METADATA[suffix])
    return content.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG (300 dpi), SVG or PDF, by its suffix: whole or not at all, the same bytes each time.

    Raises:
        InputError: another suffix, or the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in _METADATA:
        raise InputError(f"figure {path.name!r}: the name must end in {', '.join(_METADATA)}")
    write_whole(path, encode(figure, kind), "figure")
