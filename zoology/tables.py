"""Tables for the terminal: what is registered, what the audit found, what a run reached. They draw; others compute."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zoology.registry import first_line, paper

if TYPE_CHECKING:
    from zoology.architectures.audit import Verdict
    from zoology.architectures.overview import Overview
    from zoology.tasks.scoring import Score


def plain(title: str, *columns: str) -> Table:
    """A table without vertical lines, whose first column names its rows."""
    table = Table(
        title=title, title_justify="left", box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0)
    )
    for index, column in enumerate(columns):
        table.add_column(column, style="cyan" if index == 0 else "", no_wrap=index == 0)
    return table


def mixers_table(found: "Sequence[Overview]", d_model: int) -> Table:
    """Each mixer with its parameters, its state and how that grows, its dials and its first source.

    What could not be measured is a dash.
    """
    from zoology.analysis.plots import human_bytes

    lengths = next(([n for n, _ in each.state_bytes] for each in found if each.state_bytes), [])
    title = (
        f"Mixers: one layer at d_model = {d_model}, its state in float32 after {' and '.join(map(str, lengths))} tokens"
    )
    table = plain(title, "name", "parameters", "state", "dials", "source")
    table.columns[1].justify = "right"
    for column in table.columns[2:4]:
        column.no_wrap = True
    for each in found:
        state, growth = "-", each.bytes_per_token
        if each.state_bytes:
            sizes = dict.fromkeys(human_bytes(size) for _, size in each.state_bytes)
            state = ", ".join(sizes) + (f"\n+ {human_bytes(growth)} a token" if growth else ", constant")
        table.add_row(
            each.name,
            "-" if each.parameters is None else str(each.parameters),
            state,
            "\n".join(f"--{key.replace('_', '-')} {','.join(map(str, grid))}" for key, grid in each.dials.items()),
            each.paper.split(";")[0],
        )
    return table


def architectures_table() -> Table:
    """Every architecture with its settings, dials in bold with their default grid, and its source."""
    from zoology.architectures.base import architectures
    from zoology.architectures.config import dials

    table = plain("Architectures beside the default recipe", "name", "what", "dials and settings", "source")
    for name in architectures:
        thing = architectures.get(name)
        text, swept = Text(), dials(thing.Config)
        for key, field in thing.Config.model_fields.items():
            flag = "--" + key.replace("_", "-")
            text.append("\n" if text else "")
            if key in swept:
                text.append(f"{flag} {','.join(map(str, swept[key]))}", style="bold")
            else:
                text.append(f"{flag} {field.get_default()}", style="dim")
        table.add_row(name, first_line(thing), text, paper(thing))
    return table


def tasks_table() -> Table:
    """Every task with its parameters, its named slices, and its source."""
    from zoology.tasks.base import tasks

    table = plain("Tasks", "name", "what", "parameters", "slices", "source")
    for name in tasks:
        cls = tasks.get(name)
        lines = [f"--{key.replace('_', '-')} {field.get_default()}" for key, field in cls.model_fields.items()]
        table.add_row(name, first_line(cls), "\n".join(lines), "\n".join(grouped(cls.presets())), paper(cls))
    return table


def grouped(names: Iterable[str]) -> list[str]:
    """Names that differ in a last number only, as one: a-1, a-2, b -> a-{1, 2}, b."""
    ends: dict[str, list[str]] = {}
    for name in names:
        stem, _, end = name.rpartition("-")
        ends.setdefault(f"{stem}-" if stem and end[0].isdigit() else name, []).append(end)
    return [
        key if not key.endswith("-") else key + (found[0] if len(found) == 1 else "{" + ", ".join(found) + "}")
        for key, found in ends.items()
    ]


def scores_table(scores: "Sequence[Score]") -> Table:
    """Accuracy of each slice, and of all, in per cent with its standard error."""
    table = plain("", "slice", "sequences", "answers", "accuracy %", "± standard error")
    table.title = None
    for part in scores:
        error = f"{100 * part.error:.2f}" if part.error == part.error else "one sequence has none"
        table.add_row(part.slice, str(part.sequences), str(part.answers), f"{100 * part.accuracy:.2f}", error)
    return table


def growth_table(rows: "Sequence[dict[str, Any]]", what: str) -> Table:
    """Milliseconds of one pass of each method, a line for each length; a dash where there is none."""
    from zoology.analysis.plots.growth import length_name

    times = {(row["length"], row["method"]): row["milliseconds"] for row in rows if row["pass"] == what}
    names = list(dict.fromkeys(row["method"] for row in rows))
    table = plain(f"{what.capitalize()}: milliseconds", "tokens", *names)
    for length in sorted({length for length, _ in times}):
        shown = [times.get((length, name)) for name in names]
        table.add_row(length_name(length), *("-" if time is None else f"{time:.3g}" for time in shown))
    return table


def evaluation_table(rows: "Sequence[dict[str, Any]]") -> Table:
    """Accuracy of each trial on each slice, in per cent: the mean over seeds at the learning rate that validation
    prefers."""
    frame = pd.DataFrame(rows)
    frame["point"] = [
        " ".join([row["architecture"], *(f"{k}={v}" for k, v in row["dials"].items()), f"d_model={row['d_model']}"])
        for row in rows
    ]
    slices = list(dict.fromkeys(frame["slice"]))
    table = plain("", "point", "lr", *slices)
    table.title = None
    for (_, point), trial in frame.groupby(["trial", "point"], sort=False):
        by_rate = trial.groupby("learning_rate")["valid_accuracy"].mean()
        if by_rate.isna().all():
            table.add_row(point, "diverged", *[""] * len(slices))
            continue
        best = trial[trial["learning_rate"] == by_rate.idxmax()].groupby("slice")["accuracy"].mean()
        table.add_row(point, f"{by_rate.idxmax():g}", *(f"{100 * best[name]:.2f}" for name in slices))
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
