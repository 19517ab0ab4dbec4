"""What a report says, gathered and not yet laid out: points, figures, tables, and what lies beside the rows."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from zoology.analysis.frontier import of_one_task
from zoology.analysis.limits import outer_product_of, task_limit
from zoology.analysis.plots.kinds import KINDS, Wish
from zoology.analysis.plots.page import encode, size_of
from zoology.analysis.published import published as published_points
from zoology.analysis.records import failures, load_runs
from zoology.analysis.report.facts import RunFacts, asked, read_facts, sizes_after
from zoology.analysis.report.interactive import Frame, interactive
from zoology.analysis.tables import TABLES, Given, without_empty
from zoology.analysis.words import human_bytes, spell_dials
from zoology.registry import InputError

WIDTH = 7.0
"""Inches of a figure on the page."""

_HEAVY = 400_000  # bytes of an SVG above which a PNG stands in for it
_PNG_DPI = 200

HEADINGS = {
    "frontier": "Recall against state",
    "slices": "Recall by slice",
    "extrapolation": "Over the sizes of the task, and beyond training",
    "order": "The order of the sets",
    "state": "What the state consists of",
    "learning-rate": "Learning rates",
    "training": "Training",
}
"""By the kinds of `plots.KINDS`, in the order of the page."""


class Picture(NamedTuple):
    """A figure as the content of a file, of a media type, that says what it shows."""

    heading: str
    media: str
    content: bytes


class Section(NamedTuple):
    """A table of text with a line that says how to read it."""

    heading: str
    note: str
    table: pd.DataFrame


class Contents(NamedTuple):
    """All that a report says.

    Attributes:
        title: of the page.
        note: what was measured, and what is drawn in the frontier beside it.
        asked: by run, what it was asked and how far it came.
        commands: by run, the command that it came from.
        frontier: the static figure; `interactive`, the same for plotly.js.
        pictures: the other figures.
        absent: by heading, why a figure is not there.
        tables: the points, and what they say at budgets.
        ends: tables of the end of the page: audit, failures, notes, test sequences, environment.
        command: that made the report.
    """

    title: str
    note: str
    asked: dict[str, list[tuple[str, str]]]
    commands: dict[str, str]
    frontier: Picture
    interactive: str
    pictures: list[Picture]
    absent: dict[str, str]
    tables: list[Section]
    ends: list[Section]
    command: str


def gather(
    paths: Sequence[Path],
    *,
    command: str = "",
    slices: Sequence[str] | None = None,
    task: str | None = None,
    published: bool = False,
    title: str | None = None,
) -> Contents:
    """Reads runs and computes all that their report says.

    Args:
        paths: run folders, or their `results.jsonl`.
        command: that made the report.
        slices: test slices to average over, by default all.
        task: which task, where the rows hold several.
        published: lay what others have published over the frontier.
        title: of the page, by default the task and its architectures.

    Raises:
        InputError: a path is no run, the runs cannot share a frontier, or what lies beside them cannot be read.
    """
    rows = of_one_task(load_runs(paths), task)
    given = Given(rows, slices)
    found = given.points
    facts = read_facts(paths)
    wish = Wish(rows, found, slices, published, None, size_of(WIDTH))
    figure = KINDS["frontier"](wish)
    pictures, absent = _pictures(wish)
    name = str(found["task"].iloc[0])
    return Contents(
        title=title or f"{name}: {', '.join(found['architecture'].unique())}",
        note=figure.get_supxlabel().replace("\n", " "),
        asked={each.name: asked(each, rows) for each in facts},
        commands={each.name: each.command for each in facts if each.command},
        frontier=_picture("frontier", figure),
        interactive=interactive(
            found,
            Frame.of(figure),
            limit=task_limit(rows, slices),
            memory=outer_product_of(rows, np.random.default_rng(0), slices),
            published=published_points(name) if published else None,
        ),
        pictures=pictures,
        absent=absent,
        tables=_tables(given),
        ends=[
            section
            for section in (_audits(facts), _failed(rows), _notes(rows), _sequences(found), _environments(facts))
            if len(section.table)
        ],
        command=command,
    )


_TITLES = {
    "leaders": "Who leads where",
    "budgets": "Recall at a budget",
    "needed": "State needed",
    "beyond": "Within and beyond training",
    "order": "The smaller or the larger set first",
    "passes": "Shown once or repeatedly",
    "points": "Every trial",
}
"""By the kinds of `tables.TABLES`, in the order of the page."""


def _tables(given: Given) -> list[Section]:
    """Those that the rows hold. Where one is missing, its figure has said why."""
    sections = []
    for kind, title in _TITLES.items():
        with suppress(InputError):
            text = without_empty(TABLES[kind].text(TABLES[kind].numbers(given)))
            sections.append(Section(title, TABLES[kind].note, text.rename(columns={"frontier": ""})))
    return sections


def _pictures(wish: Wish) -> tuple[list[Picture], dict[str, str]]:
    """Every kind but the frontier that the rows hold, and of the others why not."""
    made, absent = [], {}
    for kind in [*HEADINGS, *(kind for kind in KINDS if kind not in HEADINGS)]:
        if kind == "frontier":
            continue
        try:
            made.append(_picture(kind, KINDS[kind](wish)))
        except InputError as error:
            absent[HEADINGS.get(kind, kind)] = str(error)
    return made, absent


def _picture(kind: str, figure: Figure) -> Picture:
    heading, content = HEADINGS.get(kind, kind), encode(figure, ".svg")
    if len(content) <= _HEAVY:
        return Picture(heading, "image/svg+xml", content)
    return Picture(heading, "image/png", encode(figure, ".png", _PNG_DPI))


def _audits(facts: Sequence[RunFacts]) -> Section:
    """A row for each mixer that was audited; those of several runs that say the same once."""
    rows = []
    for each in facts:
        for verdict in each.verdicts or ():
            sizes = sizes_after(verdict)
            rows.append(
                {
                    "mixer": verdict["mixer"],
                    "settings": spell_dials(verdict["settings"]),
                    "d_model": str(verdict["d_model"]),
                    "verdict": "; ".join(verdict["findings"]) or "passed",
                    "notes": "; ".join(verdict["notes"]),
                    "state": verdict["growth"],
                    **{f"after {n} tokens": human_bytes(sizes[n]) for n in (16, 128) if n in sizes},
                }
            )
    table = pd.DataFrame(rows).fillna("").drop_duplicates(ignore_index=True)
    note = "Before training: that no output depends on a later token, and that nothing is kept outside the state."
    return Section("What the audit found", note, without_empty(table))


def _failed(rows: pd.DataFrame) -> Section:
    lost = failures(rows)
    table = pd.DataFrame(
        {
            "architecture": lost["architecture"],
            "dials": [spell_dials(dials) for dials in lost["dials"]],
            "d_model": lost["d_model"].astype(str),
            "error": lost["error"],
        }
    )
    return Section("Trials that failed", "They have no point; their tracebacks are in results.jsonl.", table)


def _notes(rows: pd.DataFrame) -> Section:
    """What rows note of their trials, each note once, with the trials that it is about."""
    trials: dict[str, dict[str, None]] = {}
    for row in rows.drop_duplicates("trial").to_dict("records"):
        notes = row.get("notes")
        for note in notes if isinstance(notes, list) else ():
            told = f"{row['architecture']} {spell_dials(row['dials'])} d_model={row['d_model']}"
            trials.setdefault(str(note), {})[told] = None
    table = pd.DataFrame([{"note": note, "trials": "; ".join(told)} for note, told in trials.items()])
    return Section("Notes of the trials", "As they were written when the trials ran.", table)


def _sequences(found: pd.DataFrame) -> Section:
    """The test sequences of each slice by their hash, which all points share."""
    first = found.iloc[0]
    table = pd.DataFrame(
        [
            {"slice": name, "sequences": str(first["examples"][name]), "hash": str(first["test_hash"][name])}
            for name in first["test_hash"]
        ]
    )
    return Section("Test sequences", "The hash is of the sequences themselves, and the same for every trial.", table)


def _environments(facts: Sequence[RunFacts]) -> Section:
    """A row for each thing, a column for each run."""
    columns = {each.name: dict(_flat(each.environment)) for each in facts if each.environment}
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    table = pd.DataFrame([{"": key, **{name: column.get(key, "") for name, column in columns.items()}} for key in keys])
    return Section("Environment", "Where the runs were made, with the versions.", table)


def _flat(environment: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = []
    for key, value in environment.items():
        if isinstance(value, dict):
            pairs += [(f"{name}" if key == "packages" else f"{key} {name}", str(v)) for name, v in value.items()]
        elif value not in (None, "", []):
            pairs.append((key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return pairs
