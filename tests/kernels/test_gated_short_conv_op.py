"""The gated short convolution: the reference against its definition, then the Triton kernels."""

import pytest
import torch
from interpreter import needs_triton, run

from zoology.kernels.gated_short_conv import gated_short_conv


def inputs(batch, time, width, taps, seed=0):
    rng = torch.Generator().manual_seed(seed)
    shapes = ((batch, time, width), (width, width), (width,), (width, taps), (width,))
    return [torch.randn(*s, generator=rng, dtype=torch.float64) for s in shapes]


@pytest.mark.parametrize(("time", "taps"), [(1, 3), (2, 1), (11, 3), (6, 4)])
def test_the_reference_is_its_definition(time, taps):
    x, gate_weight, gate_bias, weight, bias = inputs(3, time, 5, taps)
    rows = []
    for t in range(time):
        convolved = bias + sum(weight[:, taps - 1 - j] * x[:, t - j] for j in range(min(taps, t + 1)))
        gate = torch.einsum("ij,bj->bi", gate_weight, x[:, t]) + gate_bias
        rows.append(x[:, t] + gate * convolved)
    got = gated_short_conv(x, gate_weight, gate_bias, weight, bias)
    torch.testing.assert_close(got, torch.stack(rows, dim=1), rtol=1e-12, atol=1e-12)


def test_bad_input_is_named():
    x, gate_weight, gate_bias, weight, bias = inputs(2, 4, 5, 3)
    with pytest.raises(ValueError, match=r"\(5, 4\), \(5,\): must be \(5, 5\), \(5,\)"):
        gated_short_conv(x, gate_weight[:, :4], gate_bias, weight, bias)
    with pytest.raises(ValueError, match=r"\(2, 4, 5\), \(4, 3\)"):
        gated_short_conv(x, gate_weight, gate_bias, weight[:4], bias)
    with pytest.raises(ValueError, match="'fast': must be"):
        gated_short_conv(x, gate_weight, gate_bias, weight, bias, implementation="fast")


@needs_triton
def test_the_kernels_in_the_interpreter():
    run("interpreted_gated_short_conv.py")
