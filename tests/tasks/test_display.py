import io

import numpy as np
import pytest
from rich.console import Console

from zoology.tasks.base import IGNORE, Batch, Task, draw
from zoology.tasks.display import look_of, render
from zoology.tasks.mqar import Mqar
from zoology.tasks.set_disjointness import SetDisjointness

TASKS = [
    Mqar(vocab_size=256, seq_len=60, num_pairs=5),
    Mqar(seq_len=40, num_pairs=3, fillers="papers"),
    SetDisjointness(size_a=3, size_b=5, passes=2),
]


def printed(task, batch, width=80, encoding="utf-8"):
    """The lines on a console that knows no colour."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, color_system=None)
    console.print(render(task, batch))
    file.flush()
    return file.buffer.getvalue().decode(encoding).splitlines()


def read_back(lines, arrow="→", bar="│"):
    """(marks, tokens, labels, where the bar stands) of each sequence, as a reader sees them by column."""
    lines = lines[lines.index("") + 1 :]  # after the heading
    found, current = [], None
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        plain = line.replace(bar, " ")
        if not plain.strip():
            current = None
        elif plain.replace(" ", "").isdigit():
            cell = current["cell"]
            tokens = [int(line[i + 1 : i + cell]) for i in range(0, len(line.rstrip()), cell)]
            answers = below.replace(bar, " ").ljust(len(line)) if arrow in below else " " * len(line)
            for i in range(0, len(tokens) * cell, cell):
                if line[i] == bar:
                    current["bar"].append(len(current["tokens"]) + i // cell)
                answer = answers[i + 1 : i + cell].strip()
                current["labels"].append(int(answer.removeprefix(arrow)) if answer else IGNORE)
            current["tokens"] += tokens
        elif all(len(word) == 1 for word in plain.split()):
            if current is None:
                current = {
                    "marks": [],
                    "tokens": [],
                    "labels": [],
                    "bar": [],
                    "cell": 1 + plain.index(plain.strip()[0]),
                }
                found.append(current)
            current["marks"] += plain.split()
    return found


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.slice_name)
@pytest.mark.parametrize("width", [30, 80, 1000])
def test_what_is_printed_can_be_read_back(task, width):
    batch = draw(task, 3, seed=("show",))
    lines = printed(task, batch, width)
    assert max(map(len, lines)) <= width
    sequences = read_back(lines)
    assert len(sequences) == 3
    roles = task.roles(batch.tokens)
    marks = {role: mark for role, (mark, _) in look_of(dict.fromkeys(roles.ravel().tolist())).items()}
    for sequence, tokens, labels, names in zip(sequences, batch.tokens, batch.labels, roles, strict=True):
        assert sequence["tokens"] == tokens.tolist()
        assert sequence["labels"] == labels.tolist()
        assert sequence["marks"] == [marks[name] for name in names]
        assert sequence["bar"] == [task.context_length]


def test_heading_and_legend_say_what_is_shown():
    lines = printed(TASKS[0], draw(TASKS[0], 1, seed=("show",)), width=120)
    assert lines[:2] == [
        "mqar T60-N5, 60 tokens, context 10, vocabulary 256",
        "Multi-query associative recall: after `k1 v1 k2 v2 ...`, answer each key that comes again with its value.",
    ]
    for words in ("k key", "v value", "q query", ". filler", "→ label", "│ the context ends"):
        assert words in lines[-1]


def test_a_console_without_unicode_gets_ascii():
    task = TASKS[0]
    batch = draw(task, 2, seed=("show",))
    lines = printed(task, batch, encoding="ascii")
    assert all(line.isascii() for line in lines)
    assert [sequence["labels"] for sequence in read_back(lines, arrow=">", bar="|")] == batch.labels.tolist()


def test_roles_have_colours_where_there_are_any():
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(render(TASKS[0], draw(TASKS[0], 1, seed=("show",))))
    coloured = console.export_text(styles=True)
    for code in ("\x1b[36m", "\x1b[35m", "\x1b[1;33m", "\x1b[1;32m"):  # key, value, query, label
        assert code in coloured


def test_rendering_prints_nothing(capsys):
    render(TASKS[0], draw(TASKS[0], 1, seed=("show",)))
    assert capsys.readouterr() == ("", "")


def test_roles_of_a_strangers_task_get_marks_of_their_own():
    looks = look_of(["kind", "key", "knob", "query", "kk", "set-a", "ant"])
    assert looks["key"][0] == "k"
    assert looks["query"][0] == "q"
    marks = [mark for mark, _ in looks.values()]
    assert len(set(marks)) == len(marks)
    assert all(len(mark) == 1 for mark in marks)


def test_a_task_with_the_default_roles_is_shown():
    class Echo(Task):
        @property
        def context_length(self):
            return 1

        def solve(self, tokens):
            return np.where(np.arange(self.seq_len) == 2, tokens, IGNORE)

    task = Echo(seq_len=4)
    tokens = np.array([[7, 8, 9, 6]], np.int32)
    [sequence] = read_back(printed(task, Batch(tokens, task.solve(tokens))))
    assert sequence["marks"] == [".", ".", "q", "."]
    assert sequence["labels"] == [IGNORE, IGNORE, 9, IGNORE]
