"""How an architecture looks: a colour and a marker that are its own in every figure.

The colours are those of Okabe and Ito (jfly.uni-koeln.de/color) and three of Paul Tol's muted ones
(personal.sron.nl/~pault), both made to be told apart by colour-blind readers. At most two listed architectures share a
colour, and those differ in marker and line style. Marker and line style together are never shared, for pages printed in
grey. Names that are not listed get colours and markers that no listed name has.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from matplotlib.colors import to_hex, to_rgb

from zoology.registry import InputError

Marker = str | tuple[int, int, int]


class Look(NamedTuple):
    """A colour as #rrggbb, a matplotlib marker, and a matplotlib line style."""

    color: str
    marker: Marker
    line: str | tuple[float, tuple[float, ...]] = "-"


_BLACK, _ORANGE, _SKY, _GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
_BLUE, _RED, _PURPLE, _GREY = "#0072b2", "#d55e00", "#cc79a7", "#7f7f7f"
_WINE, _INDIGO, _OLIVE = "#882255", "#332288", "#999933"
_DASH_DOT = (0, (5, 1.5, 1, 1.5))

KNOWN: dict[str, Look] = {
    "attention": Look(_BLACK, "s"),
    "based": Look(_RED, "o"),
    "jrt-rnn": Look(_RED, "P", _DASH_DOT),
    "sliding-window": Look(_SKY, "D"),
    "linear-attention": Look(_BLUE, "^"),
    "prefix-linear-attention": Look(_BLUE, "s", _DASH_DOT),
    "short-conv": Look(_GREY, "v"),
    "base-conv": Look(_GREY, "D", _DASH_DOT),
    "mamba": Look(_GREEN, "P"),
    "mamba2": Look(_GREEN, "X", _DASH_DOT),
    "h3": Look(_ORANGE, "<"),
    "s4d": Look(_ORANGE, "d", _DASH_DOT),
    "rwkv4": Look(_PURPLE, ">"),
    "rwkv7": Look(_PURPLE, "h", _DASH_DOT),
    "hyena": Look(_OLIVE, "p"),
    "long-conv": Look(_OLIVE, ">", _DASH_DOT),
    "retnet": Look(_INDIGO, "8"),
    "gla": Look(_INDIGO, "*", _DASH_DOT),
    "deltanet": Look(_WINE, "d"),
    "gated-deltanet": Look(_WINE, "<", _DASH_DOT),
}
"""Fixed for good: a figure of next year must not recolour one of today. Add to it; change nothing in it."""

_OTHER_COLORS = ("#44aa99", "#8c510a", "#aa4499", "#cc6677", "#6a51a3")
_OTHER_MARKERS: tuple[Marker, ...] = ((4, 1, 0), (6, 1, 0), (5, 0, 180), "H", (8, 1, 0), (4, 1, 45))

_OTHER_LOOKS = len(_OTHER_COLORS) * len(_OTHER_MARKERS)  # their numbers have no common divisor, so all pairs come up

MARKER_SIZE: dict[Marker, float] = {
    **dict.fromkeys(["8", "D"], 1.0),
    **dict.fromkeys(["p", "h", "H", (5, 0, 180)], 1.2),
    **dict.fromkeys(["^", "v", "<", ">", "d"], 1.35),
    **dict.fromkeys(["P", "X"], 1.45),
    **dict.fromkeys(["*", (4, 1, 0), (4, 1, 45), (6, 1, 0), (8, 1, 0)], 1.7),
}
"""What makes markers of one nominal size look equally large. 1 where a marker is not listed."""


def looks(names: Iterable[str]) -> dict[str, Look]:
    """The look of each architecture in one picture, no two the same.

    A listed name always has its own. Any other starts from its hash, so that it keeps its look from picture to picture,
    and moves on only where another such name of the same picture, alphabetically before it, has the colour already (or
    the very look, when there are more such names than colours).

    Raises:
        InputError: there are more unlisted names than looks for them.
    """
    names = sorted(set(names))
    found = {name: KNOWN[name] for name in names if name in KNOWN}
    others = [name for name in names if name not in KNOWN]
    if len(others) > _OTHER_LOOKS:
        raise InputError(f"{len(others)} architectures of one's own in one picture; it can tell {_OTHER_LOOKS} apart")
    used: set[Look] = set()
    for name in others:
        start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
        free = [look for k in range(_OTHER_LOOKS) if (look := _other(start + k)) not in used]
        colors = {look.color for look in used}
        found[name] = next((look for look in free if look.color not in colors), free[0])
        used.add(found[name])
    return found


def _other(index: int) -> Look:
    return Look(_OTHER_COLORS[index % len(_OTHER_COLORS)], _OTHER_MARKERS[index % len(_OTHER_MARKERS)])


def lighter(color: str, share: float = 0.55) -> str:
    """The colour mixed with white: for what stands behind."""
    return to_hex((1 - share) * np.array(to_rgb(color)) + share)


def ink(color: str) -> str:
    """The colour, darkened until text in it is readable on white (contrast of 4.5 to 1, as WCAG 2 asks)."""
    rgb = np.array(to_rgb(color))
    while (1 + 0.05) / (_luminance(rgb) + 0.05) < 4.5:
        rgb = rgb * 0.96
    return to_hex(rgb)


def _luminance(rgb: np.ndarray) -> float:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))
