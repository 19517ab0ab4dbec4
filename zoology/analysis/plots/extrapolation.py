"""The picture of extrapolation: recall over the length of the sequences, to beyond what was trained on."""

import math

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from zoology.analysis.intervals import Bootstrap
from zoology.analysis.plots.lines import draw_lines, name_lines
from zoology.analysis.plots.page import GREY, PAGE, finish, new_page, plain, recall_axis, settings, settle
from zoology.analysis.slices import sizes
from zoology.analysis.words import spell_seeds
from zoology.registry import InputError

WORDS = {"seq_len": "Tokens in a sequence", "num_pairs": "Pairs in a sequence", "size_b": "Elements of the second set"}


def over(table: pd.DataFrame) -> str:
    """The parameter that a picture of extrapolation is drawn over: the length, or the first that the slices differ in.

    Raises:
        InputError: they do not differ in any size, or do not tell their sizes.
    """
    varying = sizes(table)
    if not varying:
        raise InputError("the slices do not differ in a size: there is nothing to extrapolate over")
    return "seq_len" if "seq_len" in varying else varying[0]


def plot_extrapolation(
    table: pd.DataFrame, *, title: str | None = None, size: tuple[float, float] = PAGE, note: str = ""
) -> Figure:
    """Recall over length: the mean over the slices of a length, and a band, the bootstrap interval over seeds.

    What lies beyond the greatest length of training is set on grey.

    Args:
        table: of `zoology.analysis.slices.by_slice`, of one trial for each architecture.
        title: above the picture.
        size: width and height in inches. A legend adds its own height.
        note: more to be said below.

    Raises:
        InputError: the slices do not differ in a size.
    """
    key = over(table)
    part = table.assign(x=[(params or {}).get(key) for params in table["params"]])
    part = part[part["x"].notna()]
    places = sorted(set(part["x"]))
    outside = sorted({x for x, beyond in zip(part["x"], part["beyond"], strict=True) if beyond == key})
    with settings(size):
        page = new_page(size)
        axes = page.figure.add_subplot()
        lines = draw_lines(axes, page, {str(n): mean_by_size(p) for n, p in part.groupby("architecture")})
        axes.set_xscale("log", base=2)
        room = max(0.06 * math.log2(places[-1] / places[0]), 0.2)
        axes.set_xlim(places[0] * 2**-room, places[-1] * 2**room)
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_major_formatter(FixedFormatter([f"{x:.0f}" for x in places]))
        axes.xaxis.set_minor_locator(NullLocator())
        recall_axis(axes)
        axes.set_ylabel("Recall (%)")
        axes.set_xlabel(WORDS.get(key, key))
        plain(axes, page)
        if outside and (inside := [x for x in places if x < outside[0]]):
            edge = math.sqrt(inside[-1] * outside[0])
            axes.axvspan(edge, axes.get_xlim()[1], facecolor="#efefef", zorder=0)
            axes.text(
                edge, axes.get_ylim()[0], " beyond training", fontsize=0.85 * page.font, color=GREY, va="bottom",
            )  # fmt: skip
        text = "Of each architecture the trial that is best on validation; mean over the slices of a size; "
        finish(page, f"{text}{spell_seeds(part['n_seeds'], 'bands')}. {note}".strip(), title)
        name_lines(axes, page, lines)
        return settle(page)


def mean_by_size(part: pd.DataFrame) -> pd.DataFrame:
    """The mean over the slices of each size `x`, with its interval over seeds: x, y, low, high."""
    bootstrap, rows = Bootstrap(), []
    for x, same in part.groupby("x", sort=True):
        by_seed = pd.DataFrame(list(same["recall_by_seed"])).mean(axis=0)
        low, high = bootstrap.of_mean(by_seed.tolist())
        rows.append({"x": x, "y": by_seed.mean(), "low": low, "high": high})
    return pd.DataFrame(rows)
