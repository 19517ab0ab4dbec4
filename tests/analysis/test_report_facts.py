"""What a report knows of a run beside its rows: read as the sweep wrote it, refused where it is not ours."""

import json

import pytest

from zoology.analysis.records import load_runs
from zoology.analysis.report.facts import asked, read_facts
from zoology.registry import InputError

ACCURACIES = {(1e-3, 0): (0.5, 0.4), (3e-3, 0): (0.6, 0.5), (1e-3, 1): (0.5, 0.4), (3e-3, 1): (0.6, 0.5)}


@pytest.fixture
def folder(run, trial):
    """A run with a spec, of two trials of three."""
    made = run("mine", trial(ACCURACIES), trial(ACCURACIES, dials={"feature_dim": 8}))
    request = {"scale": "small", "task_params": {"num_pairs": [4, 8]}, "training": {"seeds": [0, 1], "epochs": 2}}
    sweep = {"format": 1, "command": "zoology sweep", "request": request, "trials": ["a", "b", "c"]}
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


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("sweep.json", '{"format": 99}', "sweep.json has the newer format 99; this version reads up to 1"),
        ("sweep.json", "{", "sweep.json is not JSON"),
        ("environment.json", "[]", "environment.json is no file of a run"),
        ("audit.json", '{"verdicts": [{"mixer": "x"}]}', "audit.json holds no verdicts of an audit"),
    ],
)
def test_a_file_that_is_not_ours_is_named(folder, file, text, said):
    (folder / file).write_text(text)
    with pytest.raises(InputError, match=said):
        read_facts([folder])
