"""Softmax attention over short sequences against its definition, written out in float64."""

import math

import pytest
import torch
from interpreter import needs_triton, run

from zoology.kernels.attention import attention


def inputs(batch, time, heads, d, before=0):
    rng = torch.Generator().manual_seed(0)
    times = (time, time + before, time + before)
    return [torch.randn(batch, t, heads, d, generator=rng, dtype=torch.float64).requires_grad_() for t in times]


def definition(q, k, v, window):
    rows, before = [], k.shape[1] - q.shape[1]
    for t in range(q.shape[1]):
        seen = slice(max(0, before + t - window + 1), before + t + 1)
        scores = torch.einsum("bhd,bshd->bhs", q[:, t], k[:, seen]) / math.sqrt(q.shape[-1])
        rows.append(torch.einsum("bhs,bshd->bhd", scores.softmax(-1), v[:, seen]))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("time", [1, 2, 9])
def test_outputs_and_gradients_follow_the_definition(time, window, before):
    given = inputs(2, time, 3, 4, before)
    o, want = attention(*given, window=window), definition(*given, window or 99)
    torch.testing.assert_close(o, want, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn(o.shape, generator=torch.Generator().manual_seed(1), dtype=o.dtype)
    for a, b in zip(torch.autograd.grad(o, given, cotangent), torch.autograd.grad(want, given, cotangent), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_dropout_keeps_the_mean():
    q, k, _ = inputs(1, 40, 1, 4)
    v = torch.ones(1, 40, 1, 1, dtype=torch.float64)
    torch.manual_seed(0)
    o = torch.stack([attention(q, k, v.expand(-1, -1, -1, 4), dropout=0.4) for _ in range(200)])
    assert o.std() > 0.1
    assert abs(o.mean() - 1) < 0.02


def test_bad_input_is_named():
    q, k, v = inputs(1, 5, 1, 4)
    with pytest.raises(ValueError, match=r"\(1, 5, 1, 4\), \(1, 5, 1, 4\), \(1, 4, 1, 4\): must be"):
        attention(q, k, v[:, 1:])
    with pytest.raises(ValueError, match="T = 5 queries and S = 4 keys"):
        attention(q, k[:, 1:], v[:, 1:])
    with pytest.raises(ValueError, match="window = 0: must be at least 1"):
        attention(q, k, v, window=0)


@needs_triton
def test_the_kernels_in_the_interpreter():
    run("interpreted_attention.py")
