"""The picture of the state: of what parts it is made, a bar for each architecture."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from zoology.analysis.plots.page import PAGE, finish, new_page, plain, recall_axis, settings, settle
from zoology.analysis.words import human_bytes
from zoology.registry import InputError

PARTS = {
    "recurrent": ("#0072b2", ""),
    "kv": ("#e69f00", "////"),
    "convolution": ("#cfcfcf", "...."),
}
"""Colour and hatch of each component, which grey print tells apart; another one is white."""

_WORDS = {"kv": "KV cache"}
_OTHER = ("#ffffff", "xxxx")


def plot_state(
    points: pd.DataFrame, *, title: str | None = None, size: tuple[float, float] = PAGE, note: str = ""
) -> Figure:
    """The share of each component in the bytes that a model keeps; the whole in words at the right.

    Bars are shares because sizes lie decades apart, and parts of a bar cannot be added up on a log axis.

    Args:
        points: of `zoology.analysis.frontier.points`; a bar for each. The figure is as high as they need.
        title: above the picture.
        size: width in inches; and a height, which is not used.
        note: more to be said below.

    Raises:
        InputError: there is no point, or none tells its parts.
    """
    told = points[
        [bool(parts) or size == 0 for parts, size in zip(points["state_parts"], points["state_bytes"], strict=True)]
    ]
    if told.empty or not any(told["state_parts"]):
        raise InputError("there is no point that tells the parts of its state")
    told = told.sort_values(["state_bytes", "architecture"], kind="stable")
    found = dict.fromkeys(name for parts in told["state_parts"] for name in parts)
    parts = [*(name for name in PARTS if name in found), *(name for name in found if name not in PARTS)]
    several = told["architecture"].duplicated().any()
    with settings(size):
        page = new_page(size)
        font = page.font
        page.figure.set_figheight((len(told) * 1.6 + 11) * font / 72)
        axes = page.figure.add_subplot()
        left = pd.Series(0.0, index=told.index)
        for name in parts:
            share = pd.Series([p.get(name, 0) / max(sum(p.values()), 1) for p in told["state_parts"]], index=told.index)
            color, hatch = PARTS.get(name, _OTHER)
            axes.barh(
                range(len(told)), share, left=left, height=0.72, color=color, hatch=hatch, edgecolor="black",
                linewidth=0.5 * page.scale,
            )  # fmt: skip
            left += share
        for row, total in enumerate(told["state_bytes"]):
            text = human_bytes(total) if total else "none"
            axes.text(1.02, row, text, va="center", fontsize=font * 0.9, transform=axes.get_yaxis_transform())
        names = [
            f"{p.architecture} d{p.d_model}" if several else p.architecture
            for p in told[["architecture", "d_model"]].itertuples()
        ]
        axes.set_yticks(range(len(told)), names, fontsize=font * 0.9)
        axes.set_ylim(len(told) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        recall_axis(axes, "x")
        axes.set_xlim(0, 1)
        axes.set_xlabel("Share of the state's bytes (%)")
        plain(axes, page, grid="x")
        axes.spines["left"].set_visible(False)
        patches = []
        for name in parts:
            color, hatch = PARTS.get(name, _OTHER)
            style = {"facecolor": color, "hatch": hatch, "edgecolor": "black", "linewidth": 0.5 * page.scale}
            patches.append(Patch(label=_WORDS.get(name, name), **style))
        page.figure.legend(handles=patches, loc="outside upper left", ncols=len(parts), frameon=False)
        finish(page, f"At the end of the context, in the slice where it is largest. {note}".strip(), title)
        return settle(page)
