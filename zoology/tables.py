"""Tables for the terminal: what is registered, what the audit found, what a run reached. They draw; others compute."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zoology.registry import paper

if TYPE_CHECKING:
    from zoology.architectures.audit import Verdict
    from zoology.tasks.scoring import Score


def plain(title: str, *columns: str) -> Table:
    """A table without vertical lines, whose first column names its rows."""
    table = Table(
        title=title, title_justify="left", box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0)
    )
    for index, column in enumerate(columns):
        table.add_column(column, style="cyan" if index == 0 else "", no_wrap=index == 0)
    return table


def first_line(thing: object) -> str:
    """The first sentence of a docstring, up to its source."""
    text = (getattr(thing, "__doc__", None) or "").strip().split("\n\n")[0]
    return " ".join(text.split()).split(" Source:")[0]


def registered_table() -> list[Table]:
    """Every mixer and every architecture with its settings, dials in bold with their default grid, and its source."""
    from zoology.architectures.base import architectures, mixers
    from zoology.architectures.config import MixerConfig, dials

    def settings(config: type[MixerConfig]) -> Text:
        text, swept = Text(), dials(config)
        for key, field in config.model_fields.items():
            if text:
                text.append("\n")
            name = "--" + key.replace("_", "-")
            if key in swept:
                text.append(f"{name} {','.join(map(str, swept[key]))}", style="bold")
            else:
                text.append(f"{name} {field.get_default()}", style="dim")
        return text

    tables = []
    for title, registry in (("Mixers", mixers), ("Architectures beside the default recipe", architectures)):
        table = plain(title, "name", "what", "dials and settings", "source")
        for name in registry:
            thing = registry.get(name)
            table.add_row(name, first_line(thing), settings(thing.Config), paper(thing))
        tables.append(table)
    return tables


def tasks_table() -> Table:
    """Every task with its parameters, its named slices, and its source."""
    from zoology.tasks.base import tasks

    table = plain("Tasks", "name", "what", "parameters", "slices", "source")
    for name in tasks:
        cls = tasks.get(name)
        lines = [f"--{key.replace('_', '-')} {field.get_default()}" for key, field in cls.model_fields.items()]
        table.add_row(name, first_line(cls), "\n".join(lines), "\n".join(cls.presets()), paper(cls))
    return table


def scores_table(scores: "Sequence[Score]") -> Table:
    """Accuracy of each slice, and of all, in per cent with its standard error."""
    table = plain("", "slice", "sequences", "answers", "accuracy %", "± standard error")
    table.title = None
    for part in scores:
        error = f"{100 * part.error:.2f}" if part.error == part.error else "one sequence has none"
        table.add_row(part.slice, str(part.sequences), str(part.answers), f"{100 * part.accuracy:.2f}", error)
    return table


def audit_table(verdicts: "Sequence[Verdict]") -> Table:
    """Each mixer's verdict: passed or what was found, how its state grows, and its size after some tokens."""
    from zoology.analysis.words import human_bytes

    table = plain("", "mixer", "verdict", "state", "bytes after", "parameters", "seconds")
    table.title = None
    for verdict in verdicts:
        found = Text("passed", "green") if verdict.passed else Text("\n".join(verdict.findings), "bold red")
        for note in verdict.notes:
            found.append(f"\n{note}", style="dim")
        sizes = {length: sum(sum(row.values()) for row in parts.values()) for length, parts in verdict.state_bytes}
        shown = "\n".join(f"{n} tokens: {human_bytes(sizes[n])}" for n in (16, 128) if n in sizes)
        table.add_row(verdict.mixer, found, verdict.growth, shown, str(verdict.parameters), f"{verdict.seconds:.1f}")
    return table


def results_table(frame: pd.DataFrame, width: int) -> Table:
    """A table of points, as `analysis.words.points_table` makes it, to fit a width.

    A column that is empty throughout is left out, and so are those of the slices where the table would be too wide.
    """
    frame = frame.astype(str).rename(columns={"learning rate": "lr"})
    columns = [column for column in frame.columns if (frame[column] != "").any()]
    full = _table_of(frame[columns])
    measure = Console(width=10_000).measure(full).maximum
    named = ("frontier", "architecture", "dials", "d_model", "state", "recall %", "interval", "lr", "notes")
    return full if measure <= width else _table_of(frame[[column for column in columns if column in named]])


def _table_of(frame: pd.DataFrame) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in frame.columns:
        words = [len(word) for cell in frame[column] for word in cell.split()]
        table.add_column(
            "" if column == "frontier" else column,
            justify="left" if column in ("architecture", "dials", "notes", "frontier") else "right",
            no_wrap=column not in ("dials", "notes"),
            min_width=max(words, default=0) if column == "dials" else None,
            style="cyan" if column == "architecture" else "",
        )
    for row in frame.itertuples(index=False):
        table.add_row(*row, style="bold" if row[0] == "*" else "")
    return table
