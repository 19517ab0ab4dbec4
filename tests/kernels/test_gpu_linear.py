"""Linear maps of many rows on a GPU: pytest -m gpu, and the name of this file. Errors are against float64."""

import pytest
import torch
import torch.nn.functional as F
from errors import error

from zoology.kernels.inline import inline
from zoology.kernels.linear import linear

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def results(function, given, dtype=None, compiled=False, together=True):
    def stacked(*args):
        if not together:
            return torch.stack([function(*each) for each in zip(*args, strict=True)])
        return torch.func.vmap(function)(*args)

    with torch.autocast("cuda", dtype, enabled=dtype is not None):
        y = (torch.compile(stacked, fullgraph=True) if compiled else stacked)(*given)
    cotangent = torch.randn(y.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda").to(y.dtype)
    return y, *torch.autograd.grad(y, given, cotangent)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("n", [16, 64, 192])
def test_it_errs_no_more_than_torchs(n, compiled):
    rng = torch.Generator("cuda").manual_seed(0)
    shapes = (3, 256, 64, 64), (3, n, 64), (3, n)
    given = [torch.randn(shape, generator=rng, device="cuda").requires_grad_() for shape in shapes]
    want = results(F.linear, [x.detach().double().requires_grad_() for x in given])
    theirs = results(F.linear, given, torch.bfloat16, together=False)
    if compiled:
        inline()
    got = results(linear, given, torch.bfloat16, compiled)
    for ours, other, exact in zip(got, theirs, want, strict=True):
        assert error(ours, exact) <= 1.2 * error(other, exact)


def test_it_repeats_bit_for_bit():
    rng = torch.Generator("cuda").manual_seed(0)
    shapes = (12, 256, 64, 64), (12, 192, 64), (12, 192)
    given = [torch.randn(shape, generator=rng, device="cuda").requires_grad_() for shape in shapes]
    first = results(linear, given, torch.bfloat16)
    for _ in range(5):
        for a, b in zip(first, results(linear, given, torch.bfloat16), strict=True):
            assert torch.equal(a, b)
