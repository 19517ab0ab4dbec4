"""WKV against its definition, pair by pair, in float64."""

import itertools
import math

import pytest
import torch
from interpreter import needs_triton, run
from torch.func import vmap

from zoology.kernels.wkv import WKVState, empty_state, reference, wkv, wkv_step


def inputs(batch, time, width, size=1.0, seed=0):
    rng = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(batch, time, width, generator=rng, dtype=torch.float64) for _ in range(2))
    w = torch.logspace(-3, 0.5, width, dtype=torch.float64)
    u = torch.randn(width, generator=rng, dtype=torch.float64)
    return [x.requires_grad_() for x in (size * k, v, w, u)]


def definition(k, v, w, u):
    """Every y_t from all pairs, each softmax shifted by its own largest exponent."""
    outputs = []
    for t in range(k.shape[1]):
        ages = t - 1 - torch.arange(t, dtype=k.dtype).unsqueeze(-1)
        exponents = torch.cat((k[:, :t] - ages * w, (u + k[:, t]).unsqueeze(1)), dim=1)
        outputs.append((exponents.softmax(1) * v[:, : t + 1]).sum(1))
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("within", ["_doubling", "_pairs"])
@pytest.mark.parametrize("size", [1.0, 60.0], ids=["usual", "extreme keys"])
@pytest.mark.parametrize("time", [1, 2, 15, 16, 17, 40, 259])
def test_outputs_and_gradients_follow_the_definition(time, size, within, monkeypatch):
    """By either way of scanning a block: the second is a GPU's."""
    monkeypatch.setattr(reference, "_doubling", getattr(reference, within))
    given = inputs(2, time, 5, size)
    y, want = wkv(*given)[0], definition(*given)
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-11)
    cotangent = torch.randn_like(want)
    grads = (torch.autograd.grad(out, given, cotangent, allow_unused=True) for out in (y, want))
    for name, one, other in zip("kvwu", *grads, strict=True):
        other = torch.zeros_like(one) if other is None else other  # one token has nothing to fade
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"gradient of {n}: {m}")


@pytest.mark.parametrize("cuts", [(0, 5, 40), (0, 1, 2, 9, 9, 40), tuple(range(41))], ids=str)
def test_pieces_and_steps_give_what_the_whole_gives(cuts):
    k, v, w, u = inputs(2, 40, 4, 5.0)
    whole, final = wkv(k, v, w, u)
    state, pieces = None, []
    for start, stop in itertools.pairwise(cuts):
        y, state = wkv(k[:, start:stop], v[:, start:stop], w, u, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(tuple(state), tuple(final), rtol=1e-10, atol=1e-11)
    state = empty_state(2, w)
    for t in range(40):
        y, state = wkv_step(k[:, t], v[:, t], w, u, state)
        torch.testing.assert_close(y, whole[:, t], rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(tuple(state), tuple(final), rtol=1e-10, atol=1e-11)


def test_gradients_flow_through_the_state():
    k, v, w, u = inputs(1, 40, 4, 5.0)
    cotangent = torch.randn(1, 40, 4, dtype=torch.float64)
    want = torch.autograd.grad(definition(k, v, w, u), (k, v, w, u), cotangent)
    first, state = wkv(k[:, :23], v[:, :23], w, u)
    second, state = wkv(k[:, 23:39], v[:, 23:39], w, u, state)
    third, _ = wkv_step(k[:, 39], v[:, 39], w, u, state)
    y = torch.cat((first, second, third.unsqueeze(1)), dim=1)
    for one, other in zip(torch.autograd.grad(y, (k, v, w, u), cotangent), want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_no_token_leaves_the_state_as_it_was():
    k, v, w, u = inputs(2, 3, 4)
    _, before = wkv(k, v, w, u)
    y, after = wkv(k[:, :0], v[:, :0], w, u, before)
    assert y.shape == (2, 0, 4)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("rate", [0.0, 1e-4, 20.0, 1e10])
def test_a_long_sequence_of_extreme_keys_in_float32_stays_close_and_finite(rate):
    rng = torch.Generator().manual_seed(0)
    k = 60 * (2 * torch.rand(1, 4097, 3, generator=rng) - 1)
    v = torch.randn(1, 4097, 3, generator=rng)
    singles = [x.requires_grad_() for x in (k, v, torch.full((3,), rate), torch.tensor([-5.0, 0.0, 5.0]))]
    y, _ = wkv(*singles)
    wide = [x.detach().double().requires_grad_() for x in singles]
    state, outputs = empty_state(1, wide[2]), []
    for t in range(4097):
        out, state = wkv_step(wide[0][:, t], wide[1][:, t], wide[2], wide[3], state)
        outputs.append(out)
    want = torch.stack(outputs, dim=1)
    torch.testing.assert_close(y.double(), want, rtol=1e-3, atol=1e-3)
    for one, other in zip(torch.autograd.grad(y.sum(), singles), torch.autograd.grad(want.sum(), wide), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-2, atol=1e-3 * max(1.0, other.abs().max().item()))


def test_a_worked_example():
    """w = log 2, u = 0, keys 0, log 2, 0: y = 4, (1 * 4 + 2 * 1) / 3 = 2, (4 / 2 + 2 * 1 + 5) / (1 / 2 + 2 + 1)."""
    k = torch.tensor([0.0, math.log(2), 0.0]).view(1, 3, 1)
    v = torch.tensor([4.0, 1.0, 5.0]).view(1, 3, 1)
    y, state = wkv(k, v, torch.tensor([math.log(2)]), torch.zeros(1))
    torch.testing.assert_close(y.flatten(), torch.tensor([4.0, 2.0, 9 / 3.5]))
    total = [x.item() for x in state]
    assert total[0] * math.exp(total[2]) == pytest.approx(4 / 4 + 2 / 2 + 5)
    assert total[1] * math.exp(total[2]) == pytest.approx(1 / 4 + 2 / 2 + 1)


def test_it_stacks_along_a_replica_axis():
    many = [torch.stack([x.detach(), x.detach() * 0.5]) for x in inputs(2, 40, 4)]
    y, state = vmap(wkv)(*many)
    for i in range(2):
        want = wkv(*(x[i] for x in many))
        torch.testing.assert_close(y[i], want[0], rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(tuple(x[i] for x in state), tuple(want[1]), rtol=1e-10, atol=1e-11)


def test_bad_input_is_named():
    k, v, w, u = inputs(1, 4, 3)
    with pytest.raises(ValueError, match=r"\(1, 4, 3\), \(1, 4, 2\), .*must be \(B, T, D\)"):
        wkv(k, v[..., :2], w, u)
    with pytest.raises(ValueError, match=r"must be \(B, D\)"):
        wkv_step(k, v, w, u, WKVState(*(torch.zeros(1, 3),) * 3))


@needs_triton
def test_the_kernels_in_the_interpreter():
    run("interpreted_wkv.py")
