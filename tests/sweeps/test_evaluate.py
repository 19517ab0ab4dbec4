"""The weights that a run keeps, scored on other slices."""

import json
import shutil

import pytest
from rich.console import Console

from zoology.cli import main
from zoology.registry import InputError
from zoology.sweeps.evaluate import evaluate_run
from zoology.sweeps.launch import Place, launch_trial
from zoology.sweeps.space import Request

REQUEST = Request(
    architectures=("attention",),
    settings={},
    d_model=(16,),
    task_params={"vocab_size": (32,), "seq_len": (16,), "num_pairs": (2, 4)},
    training={"learning_rates": (1e-2, 3e-2), "seeds": (0, 1), "validate_every": 10},
    train_examples=1280,
    test_examples=64,
    reference=False,
    grid=False,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trial of two learning rates and two seeds, trained once."""
    out = tmp_path_factory.mktemp("runs")
    return launch_trial(REQUEST, Place(out=out, name="run"), "zoology train", Console(quiet=True))


def test_the_same_slices_give_the_rows_of_the_run(run):
    rows = evaluate_run(run, {})
    told = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    want = {(r["learning_rate"], r["seed"], r["slice"]): r for r in told if r["split"] == "test"}
    assert len(rows) == len(want) == 8
    for row in rows:
        same = want[row["learning_rate"], row["seed"], row["slice"]]
        for key in ("trial", "architecture", "d_model", "accuracy", "test_hash", "examples", "state_bytes", "params"):
            assert row[key] == same[key]
        assert row["loss"] == pytest.approx(same["loss"], rel=1e-5)


def test_longer_contexts_and_other_sizes(run):
    rows = evaluate_run(run, {"seq_len": (64,), "num_pairs": (4, 8)}, n=10)
    assert {row["slice"] for row in rows} == {"T64-N4", "T64-N8"}
    assert {row["examples"] for row in rows} == {10}
    assert rows[0]["state_bytes"] < rows[1]["state_bytes"]


def test_the_command_writes_rows_and_a_table(run, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(run), "--seq-len", "32", "--n", "7"])
    assert not ended.value.code
    assert "T32-N4" in capsys.readouterr().out
    rows = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 2 * 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: (run / "sweep.json").unlink(), "is no run: it holds no sweep.json"),
        (lambda run: shutil.rmtree(run / "weights"), "holds no weights of its trials"),
        (lambda run: next((run / "weights").iterdir()).write_bytes(b"\0" * 40), "is torn"),
        (lambda run: (run / "sweep.json").write_text("{}"), "cannot be read"),
    ],
)
def test_what_is_no_run_is_refused(run, tmp_path, change, said):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    change(copy)
    with pytest.raises(InputError, match=said):
        evaluate_run(copy, {})


def test_slices_that_the_models_cannot_take_are_refused(run):
    with pytest.raises(InputError, match="trained on a vocabulary of 32, and these slices have 64"):
        evaluate_run(run, {"vocab_size": (64,)})
    with pytest.raises(InputError, match="seq_len = 8"):
        evaluate_run(run, {"seq_len": (8,)})
