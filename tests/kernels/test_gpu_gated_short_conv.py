"""`gated_short_conv` on a GPU: pytest -m gpu, and the name of this file. Errors are against float64, and beside those
of the reference in the same dtype on the same inputs."""

import pytest
import torch
from errors import error, no_worse

from zoology.kernels.gated_short_conv import gated_short_conv

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
RATIO, FLOOR = 1.2, {torch.float32: 4e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}


def inputs(batch, time, width, taps, dtype, weight_dtype=None, replicas=None, seed=0):
    rng = torch.Generator("cuda").manual_seed(seed)
    stack = () if replicas is None else (replicas,)
    shapes = ((batch, time, width), (width, width), (width,), (width, taps), (width,))
    made = [torch.randn(*stack, *s, generator=rng, device="cuda") for s in shapes]
    made[1] *= width**-0.5
    return [a.to(dtype if i == 0 else weight_dtype or dtype).requires_grad_() for i, a in enumerate(made)]


def results(arguments, implementation, function=gated_short_conv):
    y = function(*arguments, implementation=implementation)
    cotangent = torch.randn(y.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda").to(y.dtype)
    return y, *torch.autograd.grad(y, arguments, cotangent)


@DTYPES
@pytest.mark.parametrize("taps", [1, 3, 4, 8])
@pytest.mark.parametrize(
    ("batch", "time", "width"), [(1, 1, 8), (3, 70, 100), (300, 64, 64), (4, 2048, 512), (5, 1000, 24)], ids=str
)
def test_it_errs_no_more_than_the_reference(batch, time, width, taps, dtype):
    arguments = inputs(batch, time, width, taps, dtype)
    want = results([a.detach().double().requires_grad_() for a in arguments], "reference")
    theirs, ours = results(arguments, "reference"), results(arguments, "triton")
    for i, (a, b, exact) in enumerate(zip(ours, theirs, want, strict=True)):
        assert a.dtype == b.dtype
        no_worse(a, b, exact, RATIO, FLOOR[dtype], i)


def test_a_stack_with_weights_in_float32():
    """As in training: inputs in bfloat16, weights in float32, compiled."""

    def stacked(*args, implementation):
        return torch.func.vmap(lambda *a: gated_short_conv(*a, implementation=implementation))(*args)

    arguments = inputs(32, 256, 64, 3, torch.bfloat16, torch.float32, replicas=12)
    want = results([a.detach().double().requires_grad_() for a in arguments], "reference", stacked)
    for function in (stacked, torch.compile(stacked, fullgraph=True)):
        with torch.autocast("cuda", torch.bfloat16):
            got = results(arguments, None, function)
        assert [a.dtype for a in got] == [torch.bfloat16] * 2 + [torch.float32] * 4
        for a, exact in zip(got, want, strict=True):
            assert error(a, exact) < 6e-3


@DTYPES
def test_it_repeats_bit_for_bit(dtype):
    arguments = inputs(64, 333, 192, 4, dtype)
    first = results(arguments, "triton")
    for _ in range(5):
        for a, b in zip(first, results(arguments, "triton"), strict=True):
            assert torch.equal(a, b)
