"""`zoology bench kernels`: what it says without a GPU, and what it makes of rows."""

import csv

import numpy as np
import pandas as pd
import pytest
import torch

from zoology import cli
from zoology.analysis.plots.growth import length_name, plot_growth
from zoology.kernels import growth
from zoology.registry import InputError

METHODS = {"based": 1e-4, "attention": 1e-6, "linear-attention": 5e-5}


def rows(lengths=(1024, 2048, 4096, 8192)):
    """Based and linear attention grow as T, attention as T^2 and not beyond 4096."""
    made = []
    for length in lengths:
        for name, rate in METHODS.items():
            for factor, what in zip((1, 3), growth.PASSES, strict=True):
                time = factor * rate * length ** (2 if name == "attention" else 1)
                lost = name == "attention" and length > 4096
                row = {"method": name, "pass": what, "length": length, "heads": 16, "error": "OOM" if lost else ""}
                machine = dict.fromkeys(growth.MACHINE, "x")
                made.append({**row, "milliseconds": None if lost else time, **machine})
    return made


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """run("bench", ...) -> (exit code, stdout, stderr), in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        out, err = capsys.readouterr()
        return end.value.code, out, err

    return call


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "bench kernels needs an NVIDIA GPU and a PyTorch built for CUDA"),
        (("--lengths", "1k"), "--lengths 1k: '1k' is not allowed; whole numbers from 1"),
        (("--heads", "0"), "--heads 0: '0' is not allowed; whole numbers from 1"),
        (("--hads", "1"), "No such option: --hads"),
    ],
)
def test_what_it_refuses(run, monkeypatch, tmp_path, arguments, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = run("bench", "kernels", *arguments)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_help_names_the_flags_and_the_command(run):
    code, out, _ = run("bench", "kernels", "--help")
    assert code == 0
    assert all(flag in out for flag in ("--lengths", "--heads", "--out"))
    assert " kernels " in run("bench", "--help")[1]
    assert " bench " in run("--help")[1]
    code, _, err = run("bench")
    assert code == 2
    assert "Missing command" in err


def test_rows_become_a_file_two_tables_and_two_pictures(run, monkeypatch, tmp_path):
    asked = []

    def measure(methods, lengths, heads):
        asked.append((lengths, heads))
        yield from rows(lengths)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(growth, "measure", measure)
    monkeypatch.setattr(growth, "methods", lambda: (dict.fromkeys(METHODS), "fla is left out"))
    code, out, _ = run("bench", "kernels", "--lengths", "8192,1024", "--heads", "4", "--out", "a/b")
    assert code == 0
    assert asked == [([1024, 8192], 4)]
    assert "fla is left out" in out
    assert "no time: attention forward at 8k: OOM" in out
    assert "Forward+backward: milliseconds" in out
    with open(tmp_path / "a/b/kernels.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == 12
    assert written[0]["method"] == "based"
    assert written[0]["milliseconds"] == "0.1024"
    assert [row["milliseconds"] for row in written if row["error"]] == ["", ""]
    for name in ("forward", "forward-backward"):
        assert (tmp_path / f"a/b/{name}.png").stat().st_size > 10_000


def test_the_picture_has_a_line_for_each_with_its_name_on_logarithmic_axes():
    figure = plot_growth(pd.DataFrame(rows()), "forward")
    (axes,) = figure.axes
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert {text.get_text() for text in axes.texts} == set(METHODS)
    drawn = [line for line in axes.lines if len(line.get_xdata()) > 1]
    slopes = sorted(np.polyfit(np.log(line.get_xdata()), np.log(line.get_ydata()), 1)[0] for line in drawn)
    assert slopes == pytest.approx([1, 1, 2])
    assert [len(line.get_xdata()) for line in drawn].count(3) == 1  # attention, without the length that failed
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1k", "2k", "4k", "8k"]
    with pytest.raises(InputError, match="no time of backward to draw"):
        plot_growth(pd.DataFrame(rows()), "backward")


def test_lengths_have_short_names():
    assert [length_name(n) for n in (1024, 65536, 1000)] == ["1k", "64k", "1000"]


def test_a_method_that_fails_leaves_the_others(monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(growth, "inputs", lambda width, length, heads: (torch.ones(1, length, heads, width),) * 4)
    monkeypatch.setattr(growth, "milliseconds", lambda function: function() or 1.5)
    monkeypatch.setattr(growth, "machine", dict)
    monkeypatch.setattr(torch.cuda, "empty_cache", broken)
    methods = {"broken": growth.Method(2, broken), "works": growth.Method(2, lambda *_: None)}
    found = [row for row in growth.measure(methods, (8, 16), 3) if row["pass"] == "forward"]
    assert [(row["method"], row["length"], row["milliseconds"]) for row in found] == [
        ("broken", 8, None), ("works", 8, 1.5), ("broken", 16, None), ("works", 16, 1.5),
    ]  # fmt: skip
    assert found[0]["error"] == "RuntimeError: no kernel"
