"""`wkv` on a GPU: pytest -m gpu, and the name of this file. Errors are against float64, and beside those of the
reference in the same dtypes on the same inputs."""

import pytest
import torch
from errors import error, no_worse

from zoology.kernels.wkv import WKVState, wkv

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

RATIO, FLOOR = 1.2, {torch.float32: 4e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}


def inputs(batch, time, width, dtype, replicas=None, size=1.0, seed=0):
    """As in training: k and v in `dtype`, the rest in float32."""
    rng = torch.Generator("cuda").manual_seed(seed)
    stack = () if replicas is None else (replicas,)
    k, v = (torch.randn(*stack, batch, time, width, generator=rng, device="cuda") for _ in range(2))
    n, d, p = (torch.randn(*stack, batch, width, generator=rng, device="cuda") for _ in range(3))
    w = torch.logspace(-3, 0.5, width, device="cuda").expand(*stack, width).clone()
    u = torch.randn(*stack, width, generator=rng, device="cuda")
    made = [(size * k).to(dtype), v.to(dtype), w, u, n, d.abs() + 0.5]
    return [*(t.requires_grad_() for t in made), size * p]


def results(arguments, implementation, stacked=False):
    def run(*args):
        y, after = wkv(*args[:4], WKVState(*args[4:]), implementation=implementation)
        return y, *after

    outputs = (torch.func.vmap(run) if stacked else run)(*arguments)
    rng = torch.Generator("cuda").manual_seed(1)
    pulls = [torch.randn(t.shape, generator=rng, device="cuda").to(t.dtype) for t in outputs[:3]]
    return *outputs, *torch.autograd.grad(outputs[:3], arguments[:6], pulls)


def check(arguments, stacked=False, floor=0.0):
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in arguments]
    want = results(wide, "reference", stacked)
    theirs, ours = results(arguments, "reference", stacked), results(arguments, None, stacked)
    for i, (a, b, exact) in enumerate(zip(ours, theirs, want, strict=True)):
        assert a.dtype == b.dtype
        no_worse(a, b, exact, RATIO, max(FLOOR[a.dtype], floor), i)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("batch", "time", "width"), [(1, 1, 1), (3, 70, 100), (256, 64, 64), (4, 1021, 24), (2, 300, 512)], ids=str
)
def test_it_errs_no_more_than_the_reference(batch, time, width, dtype):
    check(inputs(batch, time, width, dtype))


@pytest.mark.parametrize("size", [1e-3, 60.0], ids=["nearly equal keys", "extreme keys"])
def test_keys_of_any_size(size):
    check(inputs(4, 300, 64, torch.float32, size=size), floor=4 * size * 2**-24)  # exponents are rounded


def test_a_stack_of_models():
    check(inputs(16, 64, 64, torch.bfloat16, replicas=12), stacked=True)


def test_compiled_it_is_the_same():
    arguments = inputs(4, 64, 128, torch.bfloat16, replicas=3)
    given = [t.detach().clone().requires_grad_(t.requires_grad) for t in arguments]

    def loss(*args):
        y, after = torch.func.vmap(lambda *a: wkv(*a[:4], WKVState(*a[4:])))(*args)
        return y.float().square().mean() + after.numerator.square().mean()

    eager, compiled = loss(*arguments), torch.compile(loss, fullgraph=True)(*given)
    torch.testing.assert_close(eager, compiled)
    for a, b in zip(torch.autograd.grad(eager, arguments[:6]), torch.autograd.grad(compiled, given[:6]), strict=True):
        assert error(b, a) < 4e-3


def test_it_repeats_bit_for_bit():
    arguments = inputs(64, 300, 128, torch.bfloat16)
    first = results(arguments, None)
    for _ in range(5):
        assert all(map(torch.equal, first, results(arguments, None)))
