"""What may go wrong on a GPU, on one: pytest -m gpu, and the name of this file."""

import gc
import os
import subprocess
import sys

import pytest
import torch
from trials import mqar_slice, numbers, trial

import zoology.train
import zoology.training.loop
from zoology.record import CHECKPOINTS
from zoology.train import fit

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SPEC = trial(
    "based",
    learning_rates=(1e-2, 3e-3, 1e-3),
    train=(mqar_slice(6400),),
    validate_every=10,
    embedding_dropout=0.1,
)


def test_nan_in_one_replica_leaves_the_others_bit_equal(monkeypatch):
    clean = fit(SPEC, "cuda")
    start = zoology.train.Loop.__init__

    def spoil(loop, stack, *args, **kwargs):
        start(loop, stack, *args, **kwargs)
        stack.flat[1] = torch.nan

    monkeypatch.setattr(zoology.train.Loop, "__init__", spoil)
    spoiled = fit(SPEC, "cuda")
    assert clean.notes == spoiled.notes == ()
    assert [replica.status for replica in spoiled.replicas] == ["ok", "diverged", "ok"]
    for index in (0, 2):
        assert numbers(clean.replicas[index]) == numbers(spoiled.replicas[index])


def test_a_group_that_does_not_fit_is_halved_and_goes_on():
    """The memory of this process is cut to less than all replicas have taken."""
    part = (mqar_slice(2560, vocab_size=8192, seq_len=256, num_pairs=16),)
    rates = (1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4, 7e-4, 8e-4)
    small = (mqar_slice(64, vocab_size=8192, seq_len=256, num_pairs=16),)
    spec = trial("attention", d_model=64, train=part, valid=small, test=small, batch_size=256, learning_rates=rates)

    def free():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    free()
    whole = fit(spec, "cuda")
    assert whole.notes == ()
    peak = torch.cuda.max_memory_allocated()
    free()
    torch.cuda.set_per_process_memory_fraction(0.75 * peak / torch.cuda.get_device_properties(0).total_memory)
    try:
        halved = fit(spec, "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert halved.notes[0] == "out of memory with 8 replicas together: went on with 4"
    eager = "validation is not captured in a CUDA graph: out of memory"
    assert [note for note in halved.notes if not note.startswith("out of memory with ") and note != eager] == []
    assert [r.status for r in halved.replicas] == ["ok"] * 8
    for one, other in zip(whole.replicas, halved.replicas, strict=True):
        assert one.scores[0].loss == pytest.approx(other.scores[0].loss, rel=0.02)


def test_a_gpu_without_bfloat16_trains_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: False)
    result = fit(SPEC, "cuda")
    assert result.notes == ("this GPU has no bfloat16: trained in float32",)
    assert {(r.status, r.precision) for r in result.replicas} == {("ok", "fp32")}


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # importing it raises
from zoology.record import TrialSpec
from zoology.train import fit
result = fit(TrialSpec.model_validate_json(sys.argv[1]), "cuda")
print(*[r.status for r in result.replicas])
print(*result.notes, sep="\\n")
"""


def test_without_triton_the_reference_is_trained_and_one_line_says_so():
    command = [sys.executable, "-c", WITHOUT_TRITON, SPEC.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    statuses, *notes = done.stdout.splitlines()
    assert statuses == "ok ok ok"
    assert notes[0].startswith("its steps are not compiled: ")
    assert done.stderr.count("UserWarning: Triton is not installed") == 1


@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_trial_goes_on_from_its_checkpoint_unless_that_is_torn(torn, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    put_down = zoology.training.loop.Loop._put_down

    def once(loop, path):
        put_down(loop, path)
        if loop.step >= 50:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoology.training.loop, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(zoology.training.loop.Loop, "_put_down", once)
        with pytest.raises(Killed):
            fit(SPEC, "cuda", keep=tmp_path)
    (saved,) = (tmp_path / CHECKPOINTS / SPEC.id).iterdir()
    if torn:
        saved.write_bytes(saved.read_bytes()[:-100])
    resumed, whole = fit(SPEC, "cuda", keep=tmp_path), fit(SPEC, "cuda")
    assert [numbers(r) for r in resumed.replicas] == [numbers(r) for r in whole.replicas]
    assert [note.partition(":")[0] for note in resumed.notes] == ["checkpoint refused, training starts over"] * torn
