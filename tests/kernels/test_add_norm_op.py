"""A sum and its LayerNorm: the reference, then the Triton kernel of its gradient."""

import pytest
import torch
import torch.nn.functional as F
from interpreter import needs_triton, run

from zoology.kernels.add_norm import add_norm


@pytest.mark.parametrize("added", [True, False])
def test_the_reference_is_its_definition(added):
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 5, 7, generator=rng, dtype=torch.float64)
    weight, bias = torch.randn(2, 7, generator=rng, dtype=torch.float64)
    s, u = add_norm(x, y if added else None, weight, bias, eps=0.1)
    want = x + y if added else x
    centred = want - want.mean(-1, keepdim=True)
    torch.testing.assert_close(s, want)
    torch.testing.assert_close(u, centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight + bias)


def test_the_norm_of_narrow_numbers_is_computed_wide():
    x = (torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) + 30).bfloat16()
    _, u = add_norm(x, None, torch.ones(64), torch.zeros(64))
    assert u.dtype == torch.bfloat16
    assert torch.equal(u, F.layer_norm(x.float(), (64,)).bfloat16())


def test_bad_input_is_named():
    x, weight = torch.zeros(3, 4), torch.ones(4)
    with pytest.raises(ValueError, match=r"\(3, 4\), \(4,\), \(3,\): must be"):
        add_norm(x, None, weight, torch.zeros(3))
    with pytest.raises(ValueError, match=r"y \(3, 4\) torch.float16: must be alike"):
        add_norm(x, x.half(), weight, weight)


@needs_triton
def test_the_kernel_in_the_interpreter():
    run("interpreted_add_norm.py")
