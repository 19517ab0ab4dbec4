"""What a report knows of a run beside its rows: read as the sweep wrote it, refused where it is not ours."""

import json

import pytest

from zoology.analysis.records import load_runs
from zoology.analysis.report.facts import asked, read_facts
from zoology.registry import InputError

ACCURACIES = {(1e-3, 0): (0.5, 0.4), (3e-3, 0): (0.6, 0.5), (1e-3, 1): (0.5, 0.4), (3e-3, 1): (0.6, 0.5)}

ODD_VERDICT = dict.fromkeys(("mixer", "d_model", "settings", "findings", "notes", "growth", "parameters"), "x") | {
    "state_bytes": [1, 2]
}


@pytest.fixture
def folder(run, trial):
    """A run with a spec, of two trials of three."""
    trials = trial(ACCURACIES), trial(ACCURACIES, dials={"feature_dim": 8})
    made = run("mine", *trials)
    request = {"scale": "small", "task_params": {"num_pairs": [4, 8]}, "training": {"seeds": [0, 1], "epochs": 2}}
    sweep = {
        "format": 1,
        "command": "zoology sweep",
        "request": request,
        "trials": [*(one.spec.id for one in trials), "c"],
    }
    (made / "sweep.json").write_text(json.dumps(sweep))
    return made


def test_what_was_asked_is_said_and_what_was_not_is_left_out(folder):
    (facts,) = read_facts([folder])
    assert dict(asked(facts, load_runs([folder]))) == {
        "architectures": "based",
        "feature dim": "8, 16",
        "d_model": "64",
        "learning rates": "0.001, 0.003",
        "model seeds": "0, 1",
        "scale": "small",
        "task settings": "num_pairs = 4, 8",
        "recipe": "epochs = 2",
        "trials": "2 of 3 finished",
    }


def test_rows_alone_are_a_run_too(folder):
    (folder / "sweep.json").unlink()
    (facts,) = read_facts([folder / "results.jsonl"])
    assert (facts.sweep, facts.environment, facts.verdicts, facts.command) == (None, None, None, "")
    assert dict(asked(facts, load_runs([folder])))["trials"] == "2 finished"


def test_a_trial_that_another_run_finished_first_is_finished_here_too(folder, run, trial):
    first = run("first", trial(ACCURACIES))
    rows = load_runs([first, folder])
    assert set(rows["run"]) == {"first", "mine"}
    facts = read_facts([first, folder])
    assert dict(asked(facts[1], rows))["trials"] == "2 of 3 finished"
    assert dict(asked(facts[0], rows))["trials"] == "1 finished"


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("sweep.json", '{"format": 99}', "sweep.json has the newer format 99; this version reads up to 1"),
        ("sweep.json", "{", "sweep.json is not JSON"),
        ("environment.json", "[]", "environment.json is no file of a run"),
        ("audit.json", '{"verdicts": [{"mixer": "x"}]}', "audit.json holds no verdicts of an audit"),
        ("audit.json", json.dumps({"verdicts": [ODD_VERDICT]}), "audit.json holds no verdicts of an audit"),
        ("sweep.json", '{"request": 3}', "sweep.json is no file of a run: its request is 3"),
        ("sweep.json", '{"request": {"plugins": {"path": 1}}}', "sweep.json is no file of a run: its plugins are"),
    ],
)
def test_a_file_that_is_not_ours_is_named(folder, file, text, said):
    (folder / file).write_text(text)
    with pytest.raises(InputError, match=said):
        read_facts([folder])
