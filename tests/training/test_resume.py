"""A trial that was killed goes on from its checkpoint to the same numbers; a torn one starts over and says so."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from trials import mqar_slice, numbers, trial

import zoology.training.loop
from zoology.record import CHECKPOINTS, WEIGHTS
from zoology.train import fit
from zoology.training import checkpoint

SPEC = trial(
    "based",
    learning_rates=(1e-3, 1e-2),
    train=(mqar_slice(6400),),
    validate_every=10,
    embedding_dropout=0.1,
)

KILLED = """
import sys
from pathlib import Path
import torch
import zoology.training.loop
from zoology.record import TrialSpec
from zoology.train import fit
torch.set_num_threads(1)
zoology.training.loop.CHECKPOINT_SECONDS = 0.0
fit(TrialSpec.model_validate_json(sys.argv[1]), stacked=sys.argv[3] == "True", keep=Path(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("stacked", [False, True])
def test_a_killed_trial_goes_on_to_the_same_numbers(tmp_path, stacked):
    command = [sys.executable, "-c", KILLED, SPEC.model_dump_json(), str(tmp_path), str(stacked)]
    place = tmp_path / CHECKPOINTS / SPEC.id
    with subprocess.Popen(command, env=os.environ | {"PYTHONWARNINGS": "ignore"}) as process:
        deadline = time.monotonic() + 120
        while not _step(place) >= 30 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    assert 30 <= _step(place) < 200
    resumed, whole = fit(SPEC, stacked=stacked, keep=tmp_path), fit(SPEC, stacked=stacked)
    assert [numbers(r) for r in resumed.replicas] == [numbers(r) for r in whole.replicas]
    assert not (tmp_path / CHECKPOINTS).exists()
    tensors, words = checkpoint.read(tmp_path / WEIGHTS / f"{SPEC.id}.safetensors")
    assert [r["learning_rate"] for r in words["replicas"]] == [1e-3, 1e-2]
    assert {name.split(".")[0] for name in tensors} == {"0", "1"}


def test_what_is_finished_is_not_trained_again(tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoology.train._Trial.put_away", lambda trial: None)  # as if killed just before
        first = fit(SPEC, keep=tmp_path)
    monkeypatch.setattr("zoology.train._Trial._train", None)
    again = fit(SPEC, keep=tmp_path)
    assert again.replicas == first.replicas


def test_a_torn_checkpoint_is_refused_and_the_trial_starts_over(tmp_path, monkeypatch):
    monkeypatch.setattr(zoology.training.loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("zoology.training.loop.Loop._done", lambda loop: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(SPEC, stacked=False, keep=tmp_path)
    monkeypatch.undo()
    (saved,) = (tmp_path / CHECKPOINTS / SPEC.id).iterdir()
    assert saved.name == "0-0.safetensors"
    saved.write_bytes(saved.read_bytes()[:-100])
    result = fit(SPEC, keep=tmp_path)
    (note,) = result.notes
    assert note.startswith("checkpoint refused, training starts over: ")
    assert [numbers(r) for r in result.replicas] == [numbers(r) for r in fit(SPEC).replicas]


def test_a_disk_that_takes_nothing_costs_the_weights_and_not_the_results(tmp_path, monkeypatch):
    monkeypatch.setattr(zoology.training.loop, "CHECKPOINT_SECONDS", 0.0)
    (tmp_path / CHECKPOINTS).write_text("a file where a folder should be")
    (tmp_path / WEIGHTS).write_text("and another")
    result = fit(SPEC, keep=tmp_path)
    assert [numbers(r) for r in result.replicas] == [numbers(r) for r in fit(SPEC).replicas]
    assert [note.partition(":")[0] for note in result.notes] == [
        "no checkpoint could be written",
        "its weights could not be kept",
    ]


def _step(place: Path) -> int:
    """The step of the newest checkpoint that is there."""
    found = [0]
    for path in place.glob("[0-9]*.safetensors"):
        try:
            _, words = checkpoint.read(path)
        except (FileNotFoundError, checkpoint.Torn):
            continue
        found.append(words.get("step", 0))
    return max(found)
