"""The short convolution against its definition, written out in float64."""

import itertools

import pytest
import torch
from interpreter import needs_triton, run

from zoology.kernels import short_conv as package
from zoology.kernels.short_conv import short_conv, short_conv_step
from zoology.kernels.short_conv.reference import _shifted_products


def inputs(batch, time, width, taps, seed=0):
    rng = torch.Generator().manual_seed(seed)
    shapes = ((batch, time, width), (width, taps), (width,), (batch, taps - 1, width))
    return tuple(torch.randn(*s, generator=rng, dtype=torch.float64).requires_grad_() for s in shapes)


def definition(x, weight, bias, state):
    taps = weight.shape[1]
    rows = []
    for t in range(x.shape[1]):
        y = bias.expand(x.shape[0], -1)
        for j in range(taps):
            past = x[:, t - j] if t >= j else state[:, taps - 1 + t - j]
            y = y + weight[:, taps - 1 - j] * past
        rows.append(y)
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("taps", [1, 2, 3, 5])
@pytest.mark.parametrize("time", [1, 2, 3, 11])
def test_outputs_and_gradients_follow_the_definition(time, taps):
    x, weight, _bias, state = arguments = inputs(3, time, 5, taps)
    y, _ = short_conv(*arguments)
    expected = definition(*arguments)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    wanted = [a for a in arguments if a.numel()]
    for got, want in zip(
        torch.autograd.grad(y, wanted, cotangent, allow_unused=True),
        torch.autograd.grad(expected, wanted, cotangent, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)

    from_zeros, _ = short_conv(x, weight, None, torch.zeros_like(state))
    torch.testing.assert_close(short_conv(x, weight)[0], from_zeros)


@pytest.mark.parametrize("taps", [1, 3, 4])
def test_pieces_and_steps_give_what_the_whole_gives(taps):
    x, weight, bias, start = inputs(2, 10, 4, taps)
    whole, final = short_conv(x, weight, bias, start)
    for cuts in ((0, 1, 10), (0, 2, 2, 3, 10), (0, 7, 10)):
        state, pieces = start, []
        for a, b in itertools.pairwise(cuts):
            y, state = short_conv(x[:, a:b], weight, bias, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-12, atol=1e-12)
        assert torch.equal(state, final)
    state = start
    for t in range(10):
        y, state = short_conv_step(x[:, t], weight, bias, state)
        torch.testing.assert_close(y, whole[:, t], rtol=1e-12, atol=1e-12)
    assert torch.equal(state, final)


def test_the_state_keeps_no_more_than_it_shows():
    x, weight, bias, _ = (a.detach() for a in inputs(1, 64, 4, 3))
    _, state = short_conv(x, weight, bias)
    assert state.shape == (1, 2, 4)
    assert state.untyped_storage().nbytes() == state.numel() * state.element_size()
    _, state = short_conv_step(x[:, 0], weight, bias, state)
    assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


def test_bad_input_is_named():
    x, weight, bias, state = inputs(2, 4, 5, 3)
    with pytest.raises(ValueError, match=r"\(2, 4, 5\), \(4, 3\)"):
        short_conv(x, weight[:4], bias)
    with pytest.raises(ValueError, match=r"state has the shape \(2, 1, 5\): must be \(2, 2, 5\)"):
        short_conv(x, weight, bias, state[:, 1:])
    with pytest.raises(ValueError, match=r"bias has the shape \(4,\): must be \(5,\)"):
        short_conv(x, weight, bias[:4])
    with pytest.raises(ValueError, match="'fast': must be"):
        short_conv(x, weight, bias, implementation="fast")
    with pytest.raises(ValueError, match=r"must be \(B, D\)"):
        short_conv_step(x, weight, bias, state)


@pytest.mark.parametrize("time", [1, 2, 9])
def test_shifted_products_are_the_same_sum(time):
    """What a GPU computes, here on a CPU."""
    x, weight, bias = (torch.randn(*s, dtype=torch.float64) for s in ((2, time, 5), (5, 4), (5,)))
    state = torch.randn(2, 3, 5, dtype=torch.float64)
    for given in (None, state):
        seen = torch.cat((torch.zeros_like(state) if given is None else given, x), dim=1)
        got = _shifted_products(x, seen, weight, bias, given is None)
        torch.testing.assert_close(got, short_conv(x, weight, bias, given)[0])


@needs_triton
def test_the_kernel_in_the_interpreter():
    run("interpreted_short_conv.py")


@needs_triton
def test_on_a_gpu_the_kernel_runs_but_where_a_compiler_without_gradients_is_faster(monkeypatch):
    """What is chosen for CUDA tensors, asked on a CPU."""
    monkeypatch.setattr(package, "choose", lambda name, device: name or "triton")
    x = torch.zeros(2, 4, 5)

    def chosen(taps, name=None, dtype=torch.float32, limit=3):
        return package.choose_for(name, x.to(dtype), torch.zeros(5, taps), limit)

    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        assert [chosen(k) for k in (3, 4, 8, 9)] == ["triton", "triton", "triton", "reference"]
        assert chosen(3, dtype=torch.float64) == "reference"
        with torch.no_grad():
            assert [chosen(k) for k in (3, 4)] == ["reference" if compiling else "triton", "triton"]
            assert chosen(4, limit=8) == ("reference" if compiling else "triton")
            assert [chosen(9, name) for name in ("triton", "reference")] == ["triton", "reference"]
