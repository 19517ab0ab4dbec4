"""The Triton kernels of `sliding_window_attention` on a GPU: pytest -m gpu, and the name of this file.

Errors are against float64, and beside those of the reference in the same dtype on the same inputs.
"""

import pytest
import torch
from errors import error, no_worse

from zoology.kernels.sliding_window_attention import SlidingWindowState, sliding_window_attention

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
RATIO, FLOOR = 1.5, {torch.float32: 4e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
"""Errors may be RATIO times the reference's, or FLOOR, that of one or two roundings."""


def inputs(batch, time, heads, width, dtype, cached=0, seed=0):
    rng = torch.Generator("cuda").manual_seed(seed)
    times = (time, time, time, cached, cached)[: 5 if cached else 3]
    return [torch.randn(batch, t, heads, width, generator=rng, device="cuda").to(dtype).requires_grad_() for t in times]


def results(arguments, window, implementation):
    state = SlidingWindowState(*arguments[3:]) if len(arguments) > 3 else None
    o, _ = sliding_window_attention(*arguments[:3], window=window, state=state, implementation=implementation)
    cotangent = torch.randn(o.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda").to(o.dtype)
    return o, *torch.autograd.grad(o, arguments, cotangent)


@DTYPES
@pytest.mark.parametrize(
    ("batch", "time", "heads", "width", "window", "cached"),
    [
        (100, 1, 1, 8, 2, 2),
        (3, 77, 2, 16, 8, 0),
        (64, 64, 1, 64, 16, 0),
        (16, 256, 4, 32, 64, 0),
        (2, 1000, 2, 48, 100, 37),
        (2, 300, 1, 64, 1000, 0),
    ],
    ids=str,
)
def test_it_errs_no_more_than_the_reference(batch, time, heads, width, window, cached, dtype):
    arguments = inputs(batch, time, heads, width, dtype, cached)
    want = results([a.detach().double().requires_grad_() for a in arguments], window, "reference")
    theirs, ours = (results(arguments, window, name) for name in ("reference", "triton"))
    for i, (a, b, exact) in enumerate(zip(ours, theirs, want, strict=True)):
        no_worse(a, b, exact, RATIO, FLOOR[dtype], i)


@DTYPES
def test_it_repeats_bit_for_bit(dtype):
    arguments = inputs(64, 200, 2, 64, dtype)
    first = results(arguments, 33, "triton")
    for _ in range(5):
        for a, b in zip(first, results(arguments, 33, "triton"), strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("memory_of_the_gpu")
def test_more_elements_than_32_bits_count():
    """B T H d just over 2^31: the last rows are those of a call of their own."""
    batch = 2**16 + 1
    far = [torch.zeros(batch, 256, 2, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    near = inputs(1, 256, 2, 64, torch.bfloat16)
    for x, own in zip(far, near, strict=True):
        x[-1:] = own.detach()
        x.requires_grad_()
    o, alone = (sliding_window_attention(*x, window=20, implementation="triton")[0] for x in (far, near))
    assert torch.equal(o[-1:], alone)
    grad = torch.ones_like(o)
    for a, b in zip(torch.autograd.grad(o, far, grad), torch.autograd.grad(alone, near, grad[-1:]), strict=True):
        assert torch.equal(a[-1:], b)


def step(q, k, v):
    return torch.func.vmap(lambda *x: sliding_window_attention(*x, window=9)[0].sin())(q, k, v)


def trained(function, given):
    o = function(*given)
    return o, *torch.autograd.grad(o.float().square().sum(), given)


def stack(seed=0):
    return [x.detach().unflatten(0, (3, -1)).requires_grad_() for x in inputs(12, 50, 2, 32, torch.bfloat16, seed=seed)]


def test_vmap_compiled_is_a_loop():
    given = stack()
    want = [torch.cat(x) for x in zip(*(trained(step, [a[i : i + 1] for a in given]) for i in range(3)), strict=True)]
    for function in (step, torch.compile(step, fullgraph=True)):
        for a, b in zip(trained(function, given), want, strict=True):
            assert error(a, b) < 5e-3


def test_a_captured_graph_replays_on_new_inputs():
    given = stack()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        trained(step, given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [x.detach() for x in trained(step, given)]
    new = stack(1)
    with torch.no_grad():
        for old, x in zip(given, new, strict=True):
            old.copy_(x)
        for x in outputs:
            x.fill_(torch.nan)
    graph.replay()
    for a, b in zip(outputs, trained(step, new), strict=True):
        assert torch.equal(a, b)


def test_autocast_rounds_and_dropout_is_the_references():
    given = inputs(2, 30, 1, 16, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        o, _ = sliding_window_attention(*given, window=5)
    want, _ = sliding_window_attention(*(x.bfloat16() for x in given), window=5)
    assert o.dtype == torch.bfloat16
    assert torch.equal(o, want)
    assert not torch.equal(sliding_window_attention(*given, window=5, dropout=0.9)[0], want)


def test_heads_that_the_kernel_cannot_take_are_the_references():
    for width, dtype in ((96, torch.bfloat16), (16, torch.float32)):
        given = inputs(2, 30, 1, width, dtype)
        got, want = (sliding_window_attention(*given, window=5, implementation=x)[0] for x in (None, "reference"))
        assert torch.equal(got, want)
