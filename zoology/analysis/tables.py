"""The tables of a run: as numbers to go on computing with, as text to be read, and as Markdown, LaTeX or CSV."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd

from zoology.analysis.budgets import bytes_needed, leaders, recall_at
from zoology.analysis.frontier import points
from zoology.analysis.slices import beyond_training, by_order, by_passes, by_position, by_slice
from zoology.analysis.words import human_bytes, percent, points_table, spell_dials
from zoology.registry import InputError, did_you_mean

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Given:
    """What tables are made of.

    Attributes:
        rows: of `records.load_runs`, of one task.
        slices: the test slices to look at, by default all.
    """

    rows: pd.DataFrame
    slices: Sequence[str] | None = None

    @cached_property
    def points(self) -> pd.DataFrame:
        """Raises InputError where the trials cannot share a frontier."""
        return points(self.rows, self.slices)

    @property
    def scored(self) -> pd.DataFrame:
        """Every trial slice by slice. They may have been tested on different ones."""
        return _chosen(by_slice(self.rows), self.slices)


def _chosen(table: pd.DataFrame, slices: Sequence[str] | None) -> pd.DataFrame:
    return table[table["slice"].isin(list(slices))] if slices else table


class Table(NamedTuple):
    """A kind of table.

    Attributes:
        numbers: gives it with full precision, a number in each cell. Raises InputError where the rows do not hold it.
        text: makes text of that, to be read.
        note: says what its cells mean.
    """

    numbers: Callable[[Given], pd.DataFrame]
    text: Callable[[pd.DataFrame], pd.DataFrame]
    note: str


def budgets_table(found: pd.DataFrame) -> pd.DataFrame:
    """`budgets.recall_at` as text: an architecture in each row, a budget in each column."""
    cells: dict[str, dict[str, str]] = {}
    for row in found.to_dict("records"):
        cell = NOT_MEASURED
        if row["trial"] is not None:
            more = "+" if row["gap"] else ""
            cell = f"{percent(row['recall'])}{more}{_interval(row['ci_low'], row['ci_high'], percent)}"
        cells.setdefault(row["architecture"], {})[f"recall % at {human_bytes(row['budget'])}"] = cell
    return _by_architecture(cells)


def needed_table(found: pd.DataFrame) -> pd.DataFrame:
    """`budgets.bytes_needed` as text: an architecture in each row, a recall in each column."""
    cells: dict[str, dict[str, str]] = {}
    for row in found.to_dict("records"):
        if row["trial"] is None:
            cell = f"not reached with {human_bytes(row['above'])}"
        else:
            most = "" if row["above"] > 0 else "≤ "  # NaN: nothing smaller was measured
            cell = f"{most}{human_bytes(row['state_bytes'])}{_interval(row['ci_low'], row['ci_high'], _bytes_or_more)}"
        cells.setdefault(row["architecture"], {})[f"state for {100 * row['recall']:.0f} %"] = cell
    return _by_architecture(cells)


def leaders_table(found: pd.DataFrame) -> pd.DataFrame:
    """`budgets.leaders` as text: a budget in each row."""
    rows = []
    for row in found.to_dict("records"):
        alone = row["runner_up"] is None
        rows.append(
            {
                "state up to": human_bytes(row["budget"]),
                "leader": row["leader"] or NOT_MEASURED,
                "recall %": "" if row["leader"] is None else percent(row["recall"]),
                "with": "" if row["leader"] is None else human_bytes(row["state_bytes"]),
                "runner-up": "" if alone else row["runner_up"],
                "its recall %": "" if alone else percent(row["runner_up_recall"]),
                "lead": "" if alone else f"{100 * row['lead']:.1f}{_interval(row['ci_low'], row['ci_high'], _points)}",
                "beyond the spread": "" if alone else _CLEAR[row["clear"]],
                NOT_MEASURED: ", ".join(row["unmeasured"]),
            }
        )
    return pd.DataFrame(rows)


def differences_table(found: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """A difference between two recalls of each trial as text.

    Args:
        found: of `slices.by_order`, `by_passes` or `beyond_training`.
        names: what to call its columns, in their order; the last is the difference.
    """
    *shown, difference = names
    rows = []
    for row in found.to_dict("records"):
        cells = {
            "architecture": row["architecture"],
            "dials": spell_dials(row["dials"]),
            "d_model": str(row["d_model"]),
        }
        for key in shown:
            cells[names[key]] = percent(row[key]) if isinstance(row[key], float) else _words(row[key])
        cells[names[difference]] = f"{_points(row[difference])}{_interval(row['ci_low'], row['ci_high'], _points)}"
        rows.append(cells)
    return pd.DataFrame(rows)


def _beyond(given: Given) -> pd.DataFrame:
    found = beyond_training(given.scored)
    if found.empty:
        raise InputError("no trial was tested both within and beyond what it was trained on, as far as the rows say")
    return found


_ORDER = {"small": "smaller", "large": "larger", "small_first": "smaller first %", "large_first": "larger first %",
          "gain": "gain"}  # fmt: skip
_PASSES = {"slice": "slice", "passes": "shown", "once": "shown once %", "repeated": "shown so often %", "gain": "gain"}
_BEYOND = {"slices": "beyond", "within": "within training %", "beyond": "beyond it %", "loss": "loss"}
_PAIRED = "in points of recall, paired over seeds; in brackets its 95 % bootstrap interval."


def position_table(found: pd.DataFrame) -> pd.DataFrame:
    """`slices.by_position` as text: a trial and slice in each row, a stretch of positions in each column."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in found.to_dict("records"):
        key = (row["architecture"], spell_dials(row["dials"]), str(row["d_model"]), row["slice"])
        stretch = f"{row['first']}-{row['last']}" if row["first"] != row["last"] else str(row["first"])
        cells.setdefault(key, {})[f"at {len(cells.get(key, {})) + 1}"] = f"{percent(row['recall'])} ({stretch})"
    names = ("architecture", "dials", "d_model", "slice")
    return pd.DataFrame([dict(zip(names, key, strict=True)) | row for key, row in cells.items()]).fillna("")


_CLEAR = {True: "yes", False: "no", None: "unknown: too few seeds"}

TABLES: dict[str, Table] = {
    "points": Table(
        lambda given: given.points,
        points_table,
        "* no point of the same architecture is better; < or > the best learning rate is at the grid's lower or upper "
        "end; interval: 95 % bootstrap interval of the mean over seeds.",
    ),
    "budgets": Table(
        lambda given: recall_at(given.points),
        budgets_table,
        "Of each architecture the trial that is best on validation with no more state than that; in brackets the "
        "95 % bootstrap interval of its mean over seeds. + all that was measured is smaller, so more may be had.",
    ),
    "needed": Table(
        lambda given: bytes_needed(given.points),
        needed_table,
        "The smallest state that was measured to reach the recall; in brackets the 95 % bootstrap interval over seeds. "
        "≤ nothing smaller was measured.",
    ),
    "leaders": Table(
        lambda given: leaders(given.points),
        leaders_table,
        "The lead is in points of recall, paired over the seeds that both have; in brackets its 95 % bootstrap "
        "interval. It is beyond the spread where that interval excludes 0.",
    ),
    "beyond": Table(
        _beyond, lambda found: differences_table(found, _BEYOND), f"What is lost beyond training, {_PAIRED}"
    ),
    "order": Table(
        lambda given: by_order(given.scored),
        lambda found: differences_table(found, _ORDER),
        f"Two sets of so many elements. The gain of showing the smaller first is {_PAIRED}",
    ),
    "passes": Table(
        lambda given: by_passes(given.scored),
        lambda found: differences_table(found, _PASSES),
        f"What the repetition gains, {_PAIRED}",
    ),
    "position": Table(
        lambda given: _chosen(by_position(given.rows), given.slices),
        position_table,
        "Recall % over where the answers stand, in stretches of about as many answers; in brackets the tokens from 0.",
    ),
}
"""By the name that `table --kind` takes."""


def markdown(table: pd.DataFrame) -> str:
    """A table of text in Markdown, its columns aligned to be read as it is."""
    cells = [[_in_markdown(cell) for cell in row] for row in _cells(table)]
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(table.columns))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "".join(f"| {line} |\n" for line in lines)


def latex(table: pd.DataFrame) -> str:
    """A table of text as a `tabular` with the rules of the package booktabs."""
    head, *body = [[_in_latex(cell) for cell in row] for row in _cells(table)]
    lines = [" & ".join(row) + r" \\" for row in (head, *body)]
    return "\n".join(
        [
            "% \\usepackage{booktabs}",
            f"\\begin{{tabular}}{{{'l' * len(head)}}}",
            "\\toprule",
            lines[0],
            "\\midrule",
            *lines[1:],
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]
    )


def csv(table: pd.DataFrame) -> str:
    """A table of numbers as CSV. Cells that hold several things (dials, recall by seed) are JSON."""
    plain = {
        column: [json.dumps(cell) if isinstance(cell, dict | list | tuple) else cell for cell in table[column]]
        for column in table
    }
    return pd.DataFrame(plain).to_csv(index=False, lineterminator="\n")


FORMATS = ("markdown", "latex", "csv")


def render(kind: str, form: str, given: Given) -> str:
    """A table as text of a format.

    Args:
        kind: one of `TABLES`.
        form: one of `FORMATS`. CSV has the numbers with full precision, the others have them to be read.
        given: what it is made of.

    Raises:
        InputError: an unknown kind or format, or the rows do not hold what the table tells.
    """
    if kind not in TABLES:
        raise InputError(f"unknown table {kind!r}: {did_you_mean(kind, TABLES)}")
    if form not in FORMATS:
        raise InputError(f"unknown format {form!r}: {did_you_mean(form, FORMATS)}")
    numbers = TABLES[kind].numbers(given)
    if form == "csv":
        return csv(numbers)
    text = without_empty(TABLES[kind].text(numbers))
    return markdown(text) if form == "markdown" else latex(text)


def without_empty(table: pd.DataFrame) -> pd.DataFrame:
    """A table of text without the columns in which there is nothing."""
    return table[[column for column in table if (table[column] != "").any()]]


def _cells(table: pd.DataFrame) -> list[list[str]]:
    """All rows, that of the columns' names first. The mark of the frontier needs no name."""
    head = ["" if column == "frontier" else str(column) for column in table.columns]
    return [head, *([str(cell) for cell in row] for row in table.itertuples(index=False))]


def _in_markdown(cell: str) -> str:
    """Nothing of it is markup, and it stays on its line."""
    return "".join("\\" + c if c in "\\|*<`[" else c for c in " ".join(cell.split()))


_LATEX = {
    **{c: "\\" + c for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "≤": r"$\leq$",
    "|": "$|$",
}


def _in_latex(cell: str) -> str:
    return "".join(_LATEX.get(c, c) for c in " ".join(cell.split()))


def _by_architecture(cells: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    return pd.DataFrame([{"architecture": name, **row} for name, row in cells.items()])


def _interval(low: float, high: float, spell: Callable[[float], str]) -> str:
    """' (low to high)', or nothing where it is not known."""
    return "" if math.isnan(low) else f" ({spell(low)} to {spell(high)})"


def _bytes_or_more(size: float) -> str:
    return human_bytes(size) if math.isfinite(size) else "more than was measured"


def _words(cell: Any) -> str:
    return ", ".join(map(str, cell)) if isinstance(cell, tuple) else str(cell)


def _points(share: float) -> str:
    return f"{100 * share:.1f}"
