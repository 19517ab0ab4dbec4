"""`selective_scan` on a GPU: pytest -m gpu, and the name of this file. Errors are against float64, and beside those of
the reference in the same dtypes on the same inputs."""

import pytest
import torch
from errors import error, no_worse

from zoology.kernels.selective_scan import selective_scan

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

RATIO, FLOOR = 1.2, {torch.float32: 4e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}


def inputs(batch, time, channels, n, dtype, replicas=None, scale=0.1, seed=0):
    """As in training: x, B and C in `dtype`, the rest in float32."""
    rng = torch.Generator("cuda").manual_seed(seed)
    stack = () if replicas is None else (replicas,)
    shapes = ((batch, time, channels),) * 2 + ((channels, n),) + ((batch, time, n),) * 2
    shapes += ((channels,), (batch, channels, n))
    x, delta, a, b, c, d, h = (torch.randn(*stack, *s, generator=rng, device="cuda") for s in shapes)
    made = (x.to(dtype), scale * delta.abs(), -a.exp(), b.to(dtype), c.to(dtype), d, h)
    return [t.requires_grad_() for t in made]


def results(arguments, implementation, stacked=False):
    def run(*args):
        return selective_scan(*args[:6], state=args[6], implementation=implementation)

    y, after = (torch.func.vmap(run) if stacked else run)(*arguments)
    rng = torch.Generator("cuda").manual_seed(1)
    pulls = [torch.randn(t.shape, generator=rng, device="cuda").to(t.dtype) for t in (y, after)]
    return y, after, *torch.autograd.grad((y, after), arguments, pulls)


def check(arguments, stacked=False):
    want = results([t.detach().double().requires_grad_() for t in arguments], "reference", stacked)
    theirs, ours = results(arguments, "reference", stacked), results(arguments, None, stacked)
    for i, (a, b, exact) in enumerate(zip(ours, theirs, want, strict=True)):
        assert a.dtype == b.dtype
        no_worse(a, b, exact, RATIO, FLOOR[a.dtype], i)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("batch", "time", "channels", "n"),
    [(1, 1, 1, 1), (3, 70, 100, 16), (64, 64, 128, 16), (4, 1021, 24, 20), (8, 256, 64, 128), (2, 33, 40, 256)],
    ids=str,
)
def test_it_errs_no_more_than_the_reference(batch, time, channels, n, dtype):
    check(inputs(batch, time, channels, n, dtype))


@pytest.mark.parametrize("scale", [1e-4, 1e2], ids=["keeps", "forgets"])
def test_extreme_step_sizes(scale):
    check(inputs(4, 300, 64, 16, torch.float32, scale=scale))


def test_a_stack_of_models():
    check(inputs(16, 64, 128, 16, torch.bfloat16, replicas=12), stacked=True)


def test_compiled_it_is_the_same():
    arguments = inputs(4, 64, 128, 16, torch.bfloat16, replicas=3)
    given = [t.detach().clone().requires_grad_() for t in arguments]

    def loss(*args):
        y, h = torch.func.vmap(lambda *a: selective_scan(*a[:6], state=a[6]))(*args)
        return y.float().square().mean() + h.square().mean()

    eager, compiled = loss(*arguments), torch.compile(loss, fullgraph=True)(*given)
    torch.testing.assert_close(eager, compiled)
    for a, b in zip(torch.autograd.grad(eager, arguments), torch.autograd.grad(compiled, given), strict=True):
        assert error(b, a) < 4e-3


def test_it_repeats_bit_for_bit():
    arguments = inputs(64, 300, 128, 16, torch.bfloat16)
    first = results(arguments, None)
    for _ in range(5):
        for a, b in zip(first, results(arguments, None), strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("memory_of_the_gpu")
def test_more_numbers_than_32_bits_count():
    """B T E just over 2^31: the last sequence is as it is alone."""
    batch = 2**31 // (256 * 128) + 1
    rng = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(batch, 256, 128, generator=rng, device="cuda", dtype=torch.bfloat16)
    b, c = torch.randn(2, batch, 256, 4, generator=rng, device="cuda", dtype=torch.bfloat16)
    a = -torch.rand(128, 4, generator=rng, device="cuda")
    with torch.no_grad():
        y, h = selective_scan(x, x.abs(), a, b, c)
        alone = selective_scan(x[-1:], x[-1:].abs(), a, b[-1:], c[-1:])
    assert torch.equal(y[-1:], alone[0])
    assert torch.equal(h[-1:], alone[1])
