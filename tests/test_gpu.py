"""What must hold on a GPU. Left out unless asked for: pytest -m gpu tests/test_gpu.py"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zoology.data import TrialData, load_data
from zoology.sweeps.space import Request, expand, known_architectures
from zoology.train import build_model, fit, seeded
from zoology.training.evaluate import Validation, evaluate_all
from zoology.training.stack import Stack

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

TINY = {
    "task_params": {"vocab_size": (32,), "seq_len": (16,), "num_pairs": (2,)},
    "train_examples": 12_800,
    "test_examples": 256,
    "training": {"learning_rates": (1e-2,)},
    "reference": False,
    "grid": False,
}

TWO = {"learning_rates": (1e-2, 1e-3)}


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
    spec = trial(name, train_examples=640, test_examples=64, training=TWO | {"validate_every": 2})
    assert fit(spec, "cuda").notes == ()


def test_slices_of_a_length_are_compiled_once():
    task = {"vocab_size": (32,), "seq_len": (16, 32), "num_pairs": (2, 4)}
    spec = trial("based", task_params=task, train_examples=640, test_examples=64, training=TWO)
    assert len(spec.train) == 4
    torch._dynamo.utils.counters.clear()
    assert fit(spec, "cuda").notes == ()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3  # two lengths, and the update


def test_validation_as_a_graph_is_what_it_is_eagerly():
    spec = trial("based", test_examples=1000)
    data = TrialData(*(tuple(part.to("cuda") for part in split) for split in load_data(spec)))
    models = []
    for seed in range(3):
        with seeded(seed, torch.device("cuda")):
            models.append(build_model(spec, data.vocab_size).cuda())
    stack = Stack(models, torch.bfloat16)
    validation = Validation(stack, data.valid)
    found = []
    for _ in range(4):
        found.append(validation())
        assert found[-1] == evaluate_all(stack, stack.flat, data.valid)
        stack.flat.mul_(1.5)
    assert validation._graph is not None
    assert len({str(each) for each in found}) == 4
    assert validation.notes == []


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
