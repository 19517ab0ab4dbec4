"""The optimiser: who decays, whose learning rate is whose, and the schedule."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from zoology.registry import InputError
from zoology.training.adamw import AdamW, learning_rate_at
from zoology.training.stack import Stack


class Hinted(nn.Module):
    """One parameter of every kind."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.decay_rate = nn.Parameter(torch.zeros(4))
        self.kept = nn.Parameter(torch.zeros(4, 4))
        self.kept._no_weight_decay = True
        self.slow = nn.Parameter(torch.zeros(4, 4))
        self.slow._optim = {"lr": 1e-4}
        self.own = nn.Parameter(torch.zeros(4))
        self.own._optim = {"lr": 1e-5, "weight_decay": 0.3}
        self.undecayed = nn.Parameter(torch.zeros(4, 4))
        self.undecayed._optim = {"weight_decay": 0.0}
        self.frozen = nn.Parameter(torch.zeros(4, 4), requires_grad=False)


def optimiser(models, rates, decay, steps=10, warmup=0.0):
    stack = Stack(models)
    return stack, AdamW(stack, rates, decay, steps, warmup)


def test_matrices_decay_and_hints_are_honoured():
    stack, adamw = optimiser([Hinted(), Hinted()], (1e-2, 3e-2), 0.1)
    found = {}
    for entry in stack.entries:
        peak, decay = adamw.peak()[:, entry.start : entry.stop], adamw.decay[entry.start : entry.stop]
        assert (peak == peak[:, :1]).all()
        assert (decay == decay[0]).all()
        found[entry.name] = (*(round(x, 6) for x in peak[:, 0].tolist()), round(decay[0].item(), 6))
    assert found == {
        "embedding.weight": (1e-2, 3e-2, 0.1),
        "linear.weight": (1e-2, 3e-2, 0.1),
        "linear.bias": (1e-2, 3e-2, 0.0),
        "norm.weight": (1e-2, 3e-2, 0.0),
        "norm.bias": (1e-2, 3e-2, 0.0),
        "decay_rate": (1e-2, 3e-2, 0.0),
        "kept": (1e-2, 3e-2, 0.0),
        "slow": (1e-4, 1e-4, 0.1),
        "own": (1e-5, 1e-5, 0.3),
        "undecayed": (1e-2, 3e-2, 0.0),
    }


def test_a_hint_about_something_else_is_refused():
    model = nn.Linear(2, 2)
    model.weight._optim = {"lr": 1e-3, "wd": 0.0}
    with pytest.raises(InputError, match=r"parameter weight: _optim has \['wd'\]"):
        optimiser([model], (1e-2,), 0.1)


def test_complex_parameters_are_trained():
    model = nn.Linear(2, 2)
    model.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    stack, adamw = optimiser([model], (1e-2,), 0.1)
    phase = stack.weights(stack.flat, 0)["phase"]
    assert torch.equal(phase, torch.ones(3, dtype=torch.complex64))
    leaves = stack.leaves_of(stack.flat)
    (index,) = (i for i, entry in enumerate(stack.entries) if entry.name == "phase")
    gradients = torch.autograd.grad(
        (torch.view_as_complex(leaves[index]) * 1j).real.sum(), leaves, materialize_grads=True
    )
    adamw.step(gradients)
    assert torch.allclose(stack.weights(stack.flat, 0)["phase"], torch.full((3,), 1 + 1e-2j))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_step_is_that_of_decoupled_weight_decay(decay):
    """Loshchilov and Hutter, arXiv:1711.05101, algorithm 2, with torch's defaults: beta 0.9, 0.999, epsilon 1e-8; each
    replica at a learning rate of its own."""
    generator = torch.Generator().manual_seed(0)
    rates = (0.01, 0.3)
    models = [nn.Linear(3, 2, bias=False).double() for _ in rates]
    w = [model.weight.detach().clone() for model in models]
    m, v = ([torch.zeros_like(x) for x in w] for _ in range(2))
    stack, adamw = optimiser(models, rates, decay, steps=3, warmup=0.4)
    for t in range(1, 4):
        g = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64)
        adamw.step([g])
        for r, rate in enumerate(rates):
            m[r] = 0.9 * m[r] + 0.1 * g[r]
            v[r] = 0.999 * v[r] + 0.001 * g[r] ** 2
            lr = rate * learning_rate_at(t - 1, 3, 0.4)
            w[r] = w[r] - lr * decay * w[r] - lr * (m[r] / (1 - 0.9**t)) / ((v[r] / (1 - 0.999**t)).sqrt() + 1e-8)
    for r in range(2):
        assert torch.allclose(stack.weights(stack.flat, r)["weight"], w[r], rtol=1e-12, atol=1e-15)


def test_replicas_that_are_dropped_leave_the_others_as_they_were():
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(4, 3, 2, 3, generator=generator)
    models = [nn.Linear(3, 2, bias=False) for _ in range(3)]
    (whole, all_of_them), (cut, some) = (optimiser(models, (0.1, 0.2, 0.3), 0.1) for _ in range(2))
    for step, gradient in enumerate(g):
        all_of_them.step([gradient])
        if step == 2:
            kept = torch.tensor([0, 2])
            cut.keep(kept)
            some.keep(cut, kept)
        some.step([gradient[[0, 2]] if step >= 2 else gradient])
    assert torch.equal(cut.flat, whole.flat[[0, 2]])


def test_the_schedule_has_known_values():
    rising = [learning_rate_at(step, 100, 0.2) for step in range(20)]
    assert rising == pytest.approx([(step + 1) / 21 for step in range(20)])
    assert learning_rate_at(20, 100, 0.2) == 1
    assert learning_rate_at(60, 100, 0.2) == pytest.approx(0.5)
    assert learning_rate_at(40, 100, 0.2) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert [learning_rate_at(step, 4, 0.0) for step in range(4)] == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )


@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 705])
def test_the_schedule_rises_peaks_once_and_falls(steps, warmup):
    shares = [learning_rate_at(step, steps, warmup) for step in range(steps)]
    peak = shares.index(1.0)
    assert peak == min(round(warmup * steps), steps - 1)
    assert all(before < after for before, after in pairwise(shares[: peak + 1]))
    assert all(before > after for before, after in pairwise(shares[peak:]))
    assert min(shares) > 0
    left = steps - peak
    assert shares[-1] == pytest.approx(math.sin(math.pi / (2 * left)) ** 2)  # a step before it would be 0
