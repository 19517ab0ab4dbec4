"""What must hold on a GPU. Left out unless asked for: pytest -m gpu tests/test_gpu.py"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zoology.sweeps.space import Request, expand, known_architectures
from zoology.train import fit

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

TINY = {
    "task_params": {"vocab_size": (32,), "seq_len": (16,), "num_pairs": (2,)},
    "train_examples": 12_800,
    "test_examples": 256,
    "training": {"learning_rates": (1e-2,)},
    "reference": False,
    "grid": False,
}


def trial(name, **changes):
    (spec,) = expand(Request(architectures=(name,), **TINY | changes))
    return spec


@pytest.mark.parametrize("name", ["attention", "based"])
def test_a_trial_learns_there_and_repeats_bit_for_bit(name):
    """`fit` also proves each trained model against its steps, so the GPU's numerics pass the audit's backstop."""
    first, second = (fit(trial(name), "cuda") for _ in range(2))
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in first.rows()]
    assert rows == [{k: v for k, v in row.items() if k != "seconds"} for row in second.rows()]
    assert all(row["accuracy"] > 0.95 for row in rows if row["split"] == "test")


@pytest.mark.parametrize("name", known_architectures())
def test_the_steps_of_each_mixer_are_stacked_compiled_and_captured(name):
    spec = trial(name, train_examples=640, test_examples=64, training={"learning_rates": (1e-2, 1e-3)})
    assert fit(spec, "cuda").notes == ()


def test_state_and_data_are_those_of_a_cpu():
    here, there = (fit(trial("based"), device).rows() for device in ("cuda", "cpu"))
    for gpu, cpu in zip(here, there, strict=True):
        assert [gpu[k] for k in ("test_hash", "state_bytes", "parameters")] == [
            cpu[k] for k in ("test_hash", "state_bytes", "parameters")
        ]


def test_trials_share_a_gpu(tmp_path):
    command = "sweep --arch sliding-window --window 2,4,8 --d-model 16 --no-reference --learning-rates 1e-2"
    command += " --gpus-per-trial 0.25 --train-examples 640 --test-examples 64 --name run"
    cli = Path(__file__).parents[1] / "cli.py"
    subprocess.run([sys.executable, str(cli), *command.split(), "--out", str(tmp_path)], check=True, timeout=300)
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert len({row["trial"] for row in rows}) == 3
    assert {row["status"] for row in rows} == {"ok"}
