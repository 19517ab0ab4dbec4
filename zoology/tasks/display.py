"""Sequences for the eye: tokens in cells coloured by their role, with the labels under the tokens they belong to.

Returns renderables and prints nothing. Roles can be told without colour too, by the marks above the tokens.
"""

import string
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.text import Text

from zoology.registry import first_line
from zoology.tasks.base import IGNORE, Batch, Task

KNOWN = {
    "key": ("k", "cyan"),
    "value": ("v", "magenta"),
    "query": ("q", "bold yellow"),
    "filler": (".", "dim"),
    "token": (".", "dim"),
    "set-a": ("a", "cyan"),
    "set-b": ("b", "magenta"),
    "separator": ("s", "green"),
}
"""The mark and the style of the roles that our own tasks use. Others get what is left."""

STYLES = ("cyan", "magenta", "green", "blue", "red", "bright_cyan", "bright_magenta", "bright_green")
LABEL_STYLE = "bold green"


def render(task: Task, batch: Batch) -> Group:
    """Every sequence of a batch, wrapped to the width of the console that prints it.

    Args:
        task: the slice that the batch was drawn from.
        batch: tokens and labels (n, seq_len); give only as many sequences as are to be read.

    Returns:
        A heading with the slice, its length, where its context ends, and the task in a sentence; for each sequence
        rows of marks, tokens and labels; a legend of the roles.
    """
    roles = task.roles(batch.tokens)
    shown = list(dict.fromkeys(roles.ravel().tolist()))
    looks = look_of(shown)
    sequences = [_Sequence(task, *rows, looks) for rows in zip(batch.tokens, batch.labels, roles, strict=True)]
    spaced = [part for sequence in sequences for part in (sequence, Text(""))]
    return Group(_heading(task, batch), Text(""), *spaced, _Legend(looks, task))


def look_of(roles: Iterable[str]) -> dict[str, tuple[str, str]]:
    """A mark (one character, different for each) and a style for each role."""
    roles = list(roles)
    looks: dict[str, tuple[str, str]] = {}
    for role in sorted(roles, key=lambda role: role not in KNOWN):  # those that have a mark keep it
        used = {mark for mark, _ in looks.values()}
        wanted, style = KNOWN.get(role, ("", STYLES[len(looks) % len(STYLES)]))
        free = (mark for mark in (*wanted, *role.lower(), *string.ascii_letters, *string.digits) if mark not in used)
        looks[role] = (next((mark for mark in free if mark.isalnum() or mark == "."), "?"), style)
    return {role: looks[role] for role in roles}


def _heading(task: Task, batch: Batch) -> Text:
    parts = [
        f"{task.name} {task.slice_name}".strip(),
        f"{task.seq_len} tokens",
        f"context {task.context_length}",
        f"vocabulary {task.vocab_size}",
    ]
    heading = Text(", ".join(parts), style="bold")
    what = first_line(type(task))
    return heading.append(f"\n{what}", style="not bold") if what else heading


class _Sequence:
    """One sequence as rows of marks, tokens and labels that are broken where the console ends."""

    def __init__(self, task: Task, tokens: Iterable, labels: Iterable, roles: Iterable, looks: dict):
        self.tokens = [int(token) for token in tokens]
        self.labels = [int(label) for label in labels]
        self.roles = [str(role) for role in roles]
        self.looks = looks
        self.context = task.context_length
        # A bar or a blank, an arrow or a blank, then the number.
        self.cell = 2 + max(len(str(number)) for number in (*self.tokens, *self.labels, 0) if number != IGNORE)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bar, arrow = _signs(options)
        per_row = max(1, options.max_width // self.cell)
        for start in range(0, len(self.tokens), per_row):
            marks, tokens, labels = (Text(no_wrap=True, end="\n") for _ in range(3))
            columns = range(start, min(start + per_row, len(self.tokens)))
            for i in columns:
                mark, style = self.looks[self.roles[i]]
                answer = f"{arrow}{self.labels[i]}" if self.labels[i] != IGNORE else ""
                for line, cell, cell_style in (
                    (marks, mark, style),
                    (tokens, str(self.tokens[i]), style),
                    (labels, answer, LABEL_STYLE),
                ):
                    line.append(bar if i == self.context else " ", style="bold")
                    line.append(cell.rjust(self.cell - 1), style=cell_style)
            yield marks
            yield tokens
            if any(self.labels[i] != IGNORE for i in columns):
                yield labels


class _Legend:
    """What marks, arrows and the bar mean."""

    def __init__(self, looks: dict[str, tuple[str, str]], task: Task):
        self.looks, self.task = looks, task

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bar, arrow = _signs(options)
        legend = Text()
        for role, (mark, style) in self.looks.items():
            legend.append(f"{mark} {role}", style=style)
            legend.append("  ")
        legend.append(f"{arrow} label: what must follow the token above it", style=LABEL_STYLE)
        if self.task.context_length < self.task.seq_len:
            legend.append(f"  {bar} the context ends", style="bold")
        yield legend


def _signs(options: ConsoleOptions) -> tuple[str, str]:
    """The bar and the arrow, in what the console can print."""
    return ("|", ">") if options.ascii_only else ("│", "→")
