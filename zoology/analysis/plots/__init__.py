"""Points and tables -> pictures, one file for each kind. Draws with matplotlib's objects alone: no pyplot, no global
state. `kinds.draw` goes from rows to a picture by the name of its kind."""

from zoology.analysis.plots.frontier import caption, plot_frontier
from zoology.analysis.plots.page import COLUMN, PAGE, SLIDE, save
from zoology.analysis.words import human_bytes, points_table

__all__ = ["COLUMN", "PAGE", "SLIDE", "caption", "human_bytes", "plot_frontier", "points_table", "save"]
