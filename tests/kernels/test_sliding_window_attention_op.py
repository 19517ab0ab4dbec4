"""Sliding-window attention against its definition, written out in float64."""

import itertools
import math

import pytest
import torch
from interpreter import needs_triton, run

from zoology.kernels.sliding_window_attention import (
    SlidingWindowState,
    reference,
    sliding_window_attention,
    sliding_window_attention_step,
)

BLOCKS, DENSE = 0, 10**6
"""Values of `dense_time` that choose the way it is computed."""


def inputs(batch, time, heads, d, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(batch, time, heads, d, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(3)
    )


def definition(q, k, v, window):
    rows = []
    for t in range(q.shape[1]):
        seen = slice(max(0, t - window + 1), t + 1)
        scores = torch.einsum("bhd,bshd->bhs", q[:, t], k[:, seen]) / math.sqrt(q.shape[-1])
        rows.append(torch.einsum("bhs,bshd->bhd", scores.softmax(-1), v[:, seen]))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("dense_time", [BLOCKS, DENSE], ids=["blocks", "dense"])
@pytest.mark.parametrize(
    ("time", "window"), [(1, 1), (1, 4), (3, 4), (9, 4), (12, 4), (17, 4), (17, 1), (17, 5), (7, 3)], ids=str
)
def test_outputs_and_gradients_follow_the_definition(time, window, dense_time):
    qkv = inputs(2, time, 3, 4)
    o, state = sliding_window_attention(*qkv, window=window, dense_time=dense_time)
    expected = definition(*qkv, window)
    assert state is None
    torch.testing.assert_close(o, expected, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn(o.shape, generator=torch.Generator().manual_seed(1), dtype=o.dtype)
    for got, want in zip(
        torch.autograd.grad(o, qkv, cotangent), torch.autograd.grad(expected, qkv, cotangent), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dense_time", [BLOCKS, DENSE], ids=["blocks", "dense"])
@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("t", [5, 11, 20])
def test_exactly_window_tokens_are_seen(t, window, dense_time):
    q, k, v = inputs(1, 21, 1, 4)
    o, _ = sliding_window_attention(q, k, v, window=window, dense_time=dense_time)
    (seen,) = torch.autograd.grad(o[0, t].sum(), v)
    visible = (seen[0, :, 0].abs().sum(-1) > 0).nonzero().flatten().tolist()
    assert visible == list(range(max(0, t - window + 1), t + 1))


@pytest.mark.parametrize("dense_time", [BLOCKS, DENSE], ids=["blocks", "dense"])
@pytest.mark.parametrize("window", [1, 4, 30])
@pytest.mark.parametrize("cuts", [(0, 2, 21), (0, 6, 6, 7, 21), (0, 9, 10, 21)], ids=str)
def test_pieces_and_steps_give_what_the_whole_gives(cuts, window, dense_time):
    q, k, v = inputs(2, 21, 2, 4)
    whole = definition(q, k, v, window)
    state, pieces = None, []
    for a, b in itertools.pairwise(cuts):
        piece = (x[:, a:b] for x in (q, k, v))
        o, state = sliding_window_attention(
            *piece, window=window, state=state, dense_time=dense_time, output_state=True
        )
        pieces.append(o)
        assert state.keys.shape == state.values.shape == (2, min(b, window), 2, 4)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-10, atol=1e-10)
    assert torch.equal(state.keys, k[:, -window:])
    assert torch.equal(state.values, v[:, -window:])

    state = SlidingWindowState(k[:, :0], v[:, :0])
    for t in range(21):
        o, state = sliding_window_attention_step(q[:, t], k[:, t], v[:, t], state, window=window)
        torch.testing.assert_close(o, whole[:, t], rtol=1e-10, atol=1e-10)
        assert state.keys.shape[1] == min(t + 1, window)
    assert torch.equal(state.keys, k[:, -window:])
    assert torch.equal(state.values, v[:, -window:])


def test_the_state_keeps_no_more_than_it_shows():
    q, k, v = (x.detach() for x in inputs(1, 64, 1, 4))
    _, state = sliding_window_attention(q, k, v, window=8, output_state=True)
    for x in state:
        assert x.untyped_storage().nbytes() == x.numel() * x.element_size()


def test_dropout_keeps_the_mean():
    torch.manual_seed(0)
    q, k, v = (x.detach() for x in inputs(1, 40, 1, 4))
    expected = definition(q, k, v, 8)
    for dense_time in (BLOCKS, DENSE):
        draws = torch.stack(
            [sliding_window_attention(q, k, v, window=8, dropout=0.5, dense_time=dense_time)[0] for _ in range(400)]
        )
        assert draws.std(0).max() > 0.05
        error = (draws.mean(0) - expected).abs() / (draws.std(0) / 20)
        assert error.max() < 5.5  # standard errors, over 160 numbers


def test_bad_input_is_named():
    q, k, v = inputs(1, 4, 1, 3)
    with pytest.raises(ValueError, match="window = 0"):
        sliding_window_attention(q, k, v, window=0)
    with pytest.raises(ValueError, match=r"\(1, 4, 1, 3\), \(1, 3, 1, 3\)"):
        sliding_window_attention(q, k[:, 1:], v, window=2)
    with pytest.raises(ValueError, match=r"must be \(B, H, d\)"):
        sliding_window_attention_step(q, k, v, SlidingWindowState(k, v), window=2)


@needs_triton
def test_the_kernel_in_the_interpreter():
    run("interpreted_sliding_window_attention.py")


def test_what_a_gpu_runs_with_dropout_is_the_same_attention_and_drops_its_share():
    q, k, v = (x.transpose(1, 2) for x in inputs(2, 17, 3, 8))
    mask = torch.ones(17, 17, dtype=torch.bool).tril().triu(-3)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.allclose(reference._product_by_product(q, k, v, mask, 0.0), want)
    ones = torch.ones(1, 64, 64)
    dropped = reference._product_by_product(ones, ones, torch.eye(64).unsqueeze(0), torch.ones(64, 64).bool(), 0.25)
    assert abs((dropped == 0).float().mean() - 0.25) < 0.03
    stacked = torch.func.vmap(lambda q: reference._product_by_product(q, k, v, mask, 0.5), randomness="different")(
        torch.stack((q, q))
    )
    assert not torch.equal(stacked[0], stacked[1])
