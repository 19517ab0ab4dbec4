"""Points and tables -> pictures, one file for each kind. Draws with matplotlib's objects alone: no pyplot, no global
state. `draw` goes from rows to a picture by the name of its kind."""

from zoology.analysis.plots.frontier import caption, plot_frontier
from zoology.analysis.plots.kinds import KINDS, draw
from zoology.analysis.plots.page import COLUMN, PAGE, SLIDE, save, size_of
from zoology.analysis.words import human_bytes, points_table

__all__ = [
    "COLUMN",
    "KINDS",
    "PAGE",
    "SLIDE",
    "caption",
    "draw",
    "human_bytes",
    "plot_frontier",
    "points_table",
    "save",
    "size_of",
]
