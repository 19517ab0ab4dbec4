"""Tables: the hand-worked numbers arrive in every format, and no cell breaks out of its format."""

import csv
import io
import json

import pandas as pd
import pytest

from zoology.analysis.tables import TABLES, Given, latex, markdown, render
from zoology.registry import InputError


@pytest.fixture
def table(rows, trial):
    """`mine` with 25 % and 50 % at 1 and 4 KB, `attention` with 99.5 % at 8 KB; two seeds, 2 points to each side."""

    def at(architecture, state, recall, **more):
        spread = {(1e-3, seed): (recall, recall + (0.02 if seed else -0.02)) for seed in (0, 1)}
        return trial(spread, architecture=architecture, state=state, **more)

    return Given(
        rows(
            at("mine", 1024, 0.25, dials={"my_dial": 4}),
            at("mine", 4096, 0.5, dials={"my_dial": 8}),
            at("attention", 8192, 0.97, dials={}),
        )
    )


def read_markdown(text):
    lines = [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in text.splitlines()]
    assert set("".join(lines[1])) == {"-"}
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_points_in_markdown(table):
    attention, small, large = read_markdown(render("points", "markdown", table))
    assert (attention["architecture"], attention["state"], attention["recall %"]) == ("attention", "8 KB", "97.0")
    assert (small["dials"], small["recall %"], small["interval"]) == ("my_dial=4", "25.0", "23.0 to 27.0")
    assert (large["dials"], large["state"], large["learning rate"]) == ("my_dial=8", "4 KB", "0.001")
    assert "notes" not in attention  # nothing diverged, so there is nothing to note


def test_budgets_say_what_was_not_measured_and_where_more_may_be_had(table):
    attention, mine = read_markdown(render("budgets", "markdown", table))
    assert attention["recall % at 4 KB"] == "not measured"
    assert mine["recall % at 1 KB"] == "25.0 (23.0 to 27.0)"
    assert mine["recall % at 4 KB"] == "50.0 (48.0 to 52.0)"
    assert mine["recall % at 16 KB"] == "50.0+ (48.0 to 52.0)"


def test_bytes_needed_say_between_what_they_lie(table):
    attention, mine = read_markdown(render("needed", "markdown", table))
    assert attention["state for 50 %"] == "≤ 8 KB (8 KB to 8 KB)"
    assert mine["state for 50 %"] == "4 KB (4 KB to more than was measured)"
    assert mine["state for 90 %"] == "not reached with 4 KB"


def test_leaders_are_compared_seed_by_seed(table):
    rows = read_markdown(render("leaders", "markdown", table))
    assert [row["leader"] for row in rows] == ["mine", "mine", "attention", "attention"]
    assert rows[0]["not measured"] == "attention"
    assert (rows[2]["lead"], rows[2]["beyond the spread"]) == ("47.0 (47.0 to 47.0)", "yes")


def test_one_seed_has_no_interval_and_decides_nothing(rows, trial):
    found = Given(rows(*(trial({(1e-3, 0): (r, r)}, architecture=name) for name, r in (("a", 0.5), ("b", 0.9)))))
    leader = read_markdown(render("leaders", "markdown", found))[1]
    assert (leader["lead"], leader["beyond the spread"]) == ("40.0", "unknown: too few seeds")
    assert "interval" not in render("points", "markdown", found)


def with_slices(trial, params, accuracies, train=()):
    """A trial of two seeds with these accuracies on slices of these parameters."""
    names = tuple(params)
    return trial(
        {(1e-3, 0): (accuracies, accuracies), (1e-3, 1): (accuracies, tuple(a + 0.1 for a in accuracies))},
        slices=names,
        params=params,
        train=train or None,
    )


def test_the_order_of_two_sets(rows, trial):
    slices = {"A2-B8": {"size_a": 2, "size_b": 8}, "A8-B2": {"size_a": 8, "size_b": 2}}
    table = Given(rows(with_slices(trial, slices, (0.8, 0.5))))
    assert read_markdown(render("order", "markdown", table)) == [
        {"architecture": "based", "dials": "feature_dim=16", "d_model": "64", "smaller": "2", "larger": "8",
         "smaller first %": "85.0", "larger first %": "55.0", "gain": "30.0 (30.0 to 30.0)"}
    ]  # fmt: skip
    assert "0.3" in render("order", "csv", table)


def test_one_pass_against_two(rows, trial):
    slices = {"T64-N4": {"num_pairs": 4, "passes": 1}, "T128-N4-P2": {"num_pairs": 4, "passes": 2}}
    (row,) = read_markdown(render("passes", "markdown", Given(rows(with_slices(trial, slices, (0.4, 0.7))))))
    assert (row["slice"], row["shown"]) == ("T128-N4-P2", "2")
    assert (row["shown once %"], row["shown so often %"], row["gain"]) == ("45.0", "75.0", "30.0 (30.0 to 30.0)")


def test_passes_may_come_from_two_runs_with_slices_of_their_own(rows, trial):
    once = with_slices(trial, {"T64-N4": {"num_pairs": 4, "passes": 1}}, (0.4,))
    twice = with_slices(trial, {"T128-N4-P2": {"num_pairs": 4, "passes": 2}}, (0.7,))
    table = Given(rows(once, twice))
    assert "30.0 (30.0 to 30.0)" in render("passes", "markdown", table)
    with pytest.raises(InputError, match="different slices"):
        render("points", "markdown", table)


def test_within_and_beyond_training(rows, trial):
    slices = {"T64-N4": {"seq_len": 64}, "T128-N4": {"seq_len": 128}}
    table = Given(rows(with_slices(trial, slices, (0.9, 0.2), train=({"seq_len": 64},))))
    (row,) = read_markdown(render("beyond", "markdown", table))
    assert (row["beyond"], row["within training %"], row["beyond it %"]) == ("T128-N4", "95.0", "25.0")
    assert row["loss"] == "70.0 (70.0 to 70.0)"


@pytest.mark.parametrize("kind", ["order", "passes", "beyond"])
def test_what_the_rows_do_not_hold_is_refused(table, kind):
    with pytest.raises(InputError, match=r"no trial was tested|nothing was shown both once"):
        render(kind, "csv", table)


def test_csv_has_the_numbers_themselves(table):
    first, *_ = csv.DictReader(io.StringIO(render("points", "csv", table)))
    assert float(first["recall"]) == table.points["recall"][0]
    assert json.loads(first["recall_by_seed"]) == {str(k): v for k, v in table.points["recall_by_seed"][0].items()}
    needed = pd.read_csv(io.StringIO(render("needed", "csv", table)))
    assert needed.loc[needed["architecture"] == "mine", "state_bytes"].iloc[0] == 4096


@pytest.mark.parametrize("kind", ["points", "budgets", "needed", "leaders"])
def test_latex_has_the_same_cells_in_every_row(table, kind):
    lines = render(kind, "latex", table).splitlines()
    assert lines[1].startswith("\\begin{tabular}{l")
    body = [line for line in lines if line.endswith("\\\\")]
    assert {line.count(" & ") + 1 for line in body} == {lines[1].split("{")[-1].count("l")}
    assert len(body) == len(TABLES[kind].text(TABLES[kind].numbers(table))) + 1


def test_what_would_be_markup_is_not(table):
    frame = pd.DataFrame({"a_b": ["50 % & #1 {x} \\y ~z^2 <3 |", "two\nlines"]})
    assert r"50 \% \& \#1 \{x\} \textbackslash{}y \textasciitilde{}z\textasciicircum{}2 $<$3 $|$ \\" in latex(frame)
    assert r"a\_b" in latex(frame)
    assert r"50 % & #1 {x} \\y ~z^2 \<3 \|" in markdown(frame)
    assert "two lines" in markdown(frame)


def test_an_unknown_table_or_format_is_refused(table):
    with pytest.raises(InputError, match="unknown table 'budget': did you mean budgets"):
        render("budget", "csv", table)
    with pytest.raises(InputError, match="unknown format 'html': known: csv, latex, markdown"):
        render("points", "html", table)
