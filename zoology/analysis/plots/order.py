"""The picture of the order: set disjointness with the smaller set first and with the larger first."""

import pandas as pd
from matplotlib.figure import Figure

from zoology.analysis.intervals import Bootstrap
from zoology.analysis.plots.page import (
    PAGE,
    finish,
    marker,
    new_page,
    ordered_looks,
    plain,
    recall_axis,
    settings,
    settle,
)
from zoology.analysis.words import spell_seeds
from zoology.registry import InputError


def plot_order(
    orders: pd.DataFrame, *, title: str | None = None, size: tuple[float, float] = PAGE, note: str = ""
) -> Figure:
    """A row for each architecture: filled, recall with the smaller set first; hollow, with the larger first.

    Both are means over the pairs of sizes. The gap between them is what the order costs; it stands at the right, in
    points, with its bootstrap interval, paired over seeds. The figure is as high as its rows need.

    Args:
        orders: of `zoology.analysis.slices.by_order`, of one trial for each architecture.
        title: above the picture.
        size: width in inches; and a height, which is not used.
        note: more to be said below.

    Raises:
        InputError: there is nothing to draw.
    """
    if orders.empty:
        raise InputError("there is no pair of orders to draw")
    summed = mean_orders(orders)
    look = ordered_looks(summed["architecture"])
    pairs = orders[["small", "large"]].drop_duplicates()
    with settings(size):
        page = new_page(size)
        scale, font = page.scale, page.font
        page.figure.set_figheight((len(summed) * 1.9 + 12) * font / 72)
        axes = page.figure.add_subplot()
        for row, point in enumerate(summed.to_dict("records")):
            own = look[point["architecture"]]
            ends = [point["small_first"], point["large_first"]]
            axes.plot(ends, [row, row], color=own.color, linewidth=1.4 * scale, zorder=2)
            shape = marker(own, scale * 1.15)
            axes.plot(ends[1:], [row], color=own.color, markerfacecolor="white", zorder=3, **shape)
            axes.plot(ends[:1], [row], color=own.color, markeredgecolor="white", zorder=4, **shape)
            axes.text(
                1.05, row, _signed(point["gain"], point["ci_low"], point["ci_high"]), fontsize=font * 0.85,
                va="center", transform=axes.get_yaxis_transform(),
            )  # fmt: skip
        axes.text(1.05, -0.85, "gain, points", fontsize=font * 0.85, va="center", transform=axes.get_yaxis_transform())
        axes.set_yticks(range(len(summed)), summed["architecture"].tolist())
        axes.set_ylim(len(summed) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        recall_axis(axes, "x")
        axes.set_xlabel("Recall (%)")
        plain(axes, page, grid="x")
        axes.spines["left"].set_visible(False)
        shown = ", ".join(f"{a}/{b}" for a, b in pairs.itertuples(index=False))
        text = f"Filled: smaller set first; hollow: larger set first. Sizes {shown}"
        text += " (mean over them)" if len(pairs) > 1 else ""
        seeds = spell_seeds(orders["n_seeds"], "in brackets").replace("their mean", "the gain")
        finish(page, f"{text}. {seeds}. {note}".strip(), title)
        return settle(page)


def mean_orders(orders: pd.DataFrame) -> pd.DataFrame:
    """Each trial's mean over its pairs of sizes, with the interval of the mean gain over seeds; the greatest first."""
    bootstrap, rows = Bootstrap(), []
    for trial, part in orders.groupby("trial", sort=False):
        gains = pd.DataFrame(list(part["gain_by_seed"])).mean(axis=0)
        low, high = bootstrap.of_mean(gains.tolist())
        row = {"trial": trial, "architecture": part["architecture"].iloc[0], "gain": gains.mean()}
        rows.append(row | part[["small_first", "large_first"]].mean().to_dict() | {"ci_low": low, "ci_high": high})
    return pd.DataFrame(rows).sort_values("gain", ascending=False, kind="stable", ignore_index=True)


def _signed(gain: float, low: float, high: float) -> str:
    text = f"{100 * gain:+.0f}"
    return text if low != low else f"{text} ({100 * low:+.0f} to {100 * high:+.0f})"
