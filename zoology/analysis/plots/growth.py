"""The picture of kernels: milliseconds over the length of the sequence, a line for each, both axes logarithmic."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from zoology.analysis.plots.lines import draw_lines, name_lines
from zoology.analysis.plots.page import PAGE, finish, new_page, plain, settings, settle
from zoology.registry import InputError


def plot_growth(rows: pd.DataFrame, what: str, *, size: tuple[float, float] = PAGE, note: str = "") -> Figure:
    """Time against length.

    Args:
        rows: with the columns `method`, `pass`, `length`, `milliseconds`; those without a time are not drawn.
        what: which pass.
        size: width and height in inches. A legend adds its own height.
        note: more to be said below.

    Raises:
        InputError: there is nothing to draw.
    """
    shown = rows[(rows["pass"] == what) & rows["milliseconds"].notna()].sort_values("length")
    if shown.empty:
        raise InputError(f"there is no time of {what} to draw")
    with settings(size):
        page = new_page(size)
        axes = page.figure.add_subplot()
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        lines = draw_lines(axes, page, {str(name): _line(part) for name, part in shown.groupby("method")})
        lengths = sorted({int(n) for n in shown["length"]})
        longest = max(len(name) for name in lines)
        axes.set_xlim(lengths[0] / 1.3, lengths[-1] * 1.3 * (lengths[-1] / lengths[0]) ** (longest / 40))  # for names
        axes.xaxis.set_major_locator(FixedLocator(lengths))
        axes.xaxis.set_major_formatter(FixedFormatter([length_name(n) for n in lengths]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("Tokens")
        axes.set_ylabel("Milliseconds")
        plain(axes, page)
        finish(page, f"{what.capitalize()}, batch 1, bfloat16; both axes are logarithmic. {note}".strip())
        name_lines(axes, page, lines)
        if page.figure.legends:
            axes.set_xlim(right=lengths[-1] * 1.3)
        return settle(page)


def _line(part: pd.DataFrame) -> pd.DataFrame:
    unknown = float("nan")
    return pd.DataFrame(
        {"x": part["length"].astype(float), "y": part["milliseconds"].astype(float), "low": unknown, "high": unknown}
    )


def length_name(tokens: int) -> str:
    """1024 -> 1k, 1000 -> 1000."""
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)
