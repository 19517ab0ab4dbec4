"""The picture of the slices: recall of each architecture on each setting of the task, as a table of shades."""

import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from zoology.analysis.plots.page import PAGE, finish, new_page, settings, settle
from zoology.analysis.words import human_bytes
from zoology.registry import InputError

# From white to a dark blue, evenly in lightness: it reads the same in grey, and to every eye.
_SHADES = LinearSegmentedColormap.from_list("recall", ["#ffffff", "#9ec4e0", "#3c7fb5", "#08306b"])


def plot_slices(
    table: pd.DataFrame, *, title: str | None = None, size: tuple[float, float] = PAGE, note: str = ""
) -> Figure:
    """A row for each architecture, best at the top, and a column for each slice, with the recall in per cent.

    Slices beyond what was trained on stand to the right of a line. The figure is as high as its rows need.

    Args:
        table: of `zoology.analysis.slices.by_slice`, of one trial for each architecture.
        title: above the picture.
        size: width in inches; and a height, which is not used.
        note: more to be said below.

    Raises:
        InputError: there is nothing to draw.
    """
    if table.empty:
        raise InputError("there is no slice to draw")
    wide = table.pivot_table(index="architecture", columns="slice", values="recall", sort=False)
    beyond = {name for name, b in zip(table["slice"], table["beyond"], strict=True) if b}
    columns = sorted(wide.columns, key=lambda name: name in beyond)  # stable: otherwise as they come
    wide = wide[columns].loc[wide.mean(axis=1).sort_values(ascending=False, kind="stable").index]
    states = table.groupby("architecture")["state_bytes"].max()
    with settings(size):
        page = new_page(size)
        rows, font = len(wide), page.font * 0.9
        page.figure.set_figheight((rows * 1.75 + 11) * font / 72)
        axes = page.figure.add_subplot()
        axes.pcolormesh(wide.to_numpy(), cmap=_SHADES, vmin=0, vmax=1, edgecolors="white", linewidth=page.scale)
        room = size[0] * 72 * 0.6 / len(columns)  # points across a cell, about
        for i, values in enumerate(wide.to_numpy()):
            for k, value in enumerate(values):
                if value == value:
                    color = "white" if value > 0.55 else "black"
                    axes.text(
                        k + 0.5, i + 0.52, _short(value), ha="center", va="center", color=color,
                        fontsize=min(font, room / 2.2),
                    )  # fmt: skip
        within = len(columns) - sum(name in beyond for name in columns)
        if 0 < within < len(columns):
            axes.axvline(within, color="black", linewidth=1.2 * page.scale)
            axes.text(within + 0.06, -0.1, "beyond training", fontsize=0.85 * font, va="bottom", color="#333333")
        axes.invert_yaxis()
        axes.set_yticks([i + 0.5 for i in range(rows)], list(wide.index), fontsize=font)
        crowded = sum(map(len, columns)) * font * 0.62 > size[0] * 72 * 0.6
        axes.set_xticks(
            [k + 0.5 for k in range(len(columns))], columns, fontsize=font,
            rotation=45 if crowded else 0, ha="right" if crowded else "center",
            rotation_mode="anchor" if crowded else "default",
        )  # fmt: skip
        right = axes.secondary_yaxis("right")
        right.set_yticks([i + 0.5 for i in range(rows)], [human_bytes(states[name]) for name in wide.index])
        for axis in (axes, right):
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
        text = (
            "Recall in per cent. Of each architecture the trial that is best on validation; at the right its largest "
        )
        finish(page, f"{text}state. {note}".strip(), title)
        return settle(page)


def _short(share: float) -> str:
    """Whole per cents; 99 for what is not quite all."""
    return f"{int(100 * share + 0.5) if share < 0.995 else 100 if share == 1 else 99}"
