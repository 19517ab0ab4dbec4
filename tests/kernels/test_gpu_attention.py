"""The Triton kernels of `attention` on a GPU: pytest -m gpu, and the name of this file.

Errors are against float64, and beside those of the reference in the same dtype on the same inputs.
"""

import pytest
import torch
from errors import error, no_worse

from zoology.kernels.attention import attention, self_attention

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
RATIO, FLOOR = 1.5, {torch.float32: 4e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
"""Errors may be RATIO times the reference's, or FLOOR, that of one or two roundings."""


def inputs(batch, time, heads, width, dtype, before=0, seed=0):
    rng = torch.Generator("cuda").manual_seed(seed)
    times = (time, time + before, time + before)
    return [torch.randn(batch, t, heads, width, generator=rng, device="cuda").to(dtype).requires_grad_() for t in times]


def grads(o, given):
    cotangent = torch.randn(o.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda").to(o.dtype)
    return torch.autograd.grad(o, given, cotangent)


def results(given, implementation, **options):
    o = attention(*given, implementation=implementation, **options)
    return o, *grads(o, given)


def within(ours, theirs, want, dtype):
    for name, a, b, exact in zip(("o", "q", "k", "v"), ours, theirs, want, strict=True):
        no_worse(a, b, exact, RATIO, FLOOR[dtype], name)


@DTYPES
@pytest.mark.parametrize(
    ("batch", "time", "heads", "width", "window", "before"),
    [
        (100, 1, 1, 8, None, 2),
        (3, 77, 2, 16, None, 0),
        (64, 64, 1, 64, None, 0),
        (64, 64, 2, 32, 16, 0),
        (64, 20, 1, 128, None, 0),
        (16, 256, 4, 32, None, 0),
        (2, 500, 2, 48, 100, 37),
        (2, 300, 1, 128, None, 0),
    ],
    ids=str,
)
def test_it_errs_no_more_than_the_reference(batch, time, heads, width, window, before, dtype):
    given = inputs(batch, time, heads, width, dtype, before)
    want = results([a.detach().double().requires_grad_() for a in given], "reference", window=window)
    within(results(given, "triton", window=window), results(given, "reference", window=window), want, dtype)


@DTYPES
@pytest.mark.parametrize("window", [16, 1000])
@pytest.mark.parametrize("shape", [(32, 64, 2, 64), (8, 200, 1, 32), (8, 33, 1, 128)], ids=str)
def test_dropout_errs_no_more_than_the_reference(shape, window, dtype):
    """Beside torch, with the weights dropped that the kernels have dropped."""
    from zoology.kernels.attention import checks, triton

    given, seed = inputs(*shape, dtype), torch.tensor([11], device="cuda")
    options = (seed, window, 0.2)
    results = []
    for x in (given, given, [a.detach().double().requires_grad_() for a in given]):
        o = triton.forward(*x, *options)[0] if not results else checks.exactly(*x, *options).to(x[0].dtype)
        results.append((o, *grads(o, x)))
    within(*results, dtype)


@DTYPES
@pytest.mark.parametrize("time", [64, 200])
def test_it_repeats_bit_for_bit(time, dtype):
    given = inputs(64, time, 2, 64, dtype)
    runs = []
    for _ in range(5):
        torch.manual_seed(0)
        runs.append(results(given, "triton", dropout=0.1))
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("memory_of_the_gpu")
@pytest.mark.parametrize("time", [64, 256])
def test_more_elements_than_32_bits_count(time):
    """B T H d just over 2^31: the last rows are those of a call of their own."""
    batch = 2**24 // time + 1
    far = [torch.zeros(batch, time, 2, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    near = inputs(1, time, 2, 64, torch.bfloat16)
    for x, own in zip(far, near, strict=True):
        x[-1:] = own.detach()
        x.requires_grad_()
    o, alone = (attention(*x, implementation="triton") for x in (far, near))
    assert torch.equal(o[-1:], alone)
    grad = torch.ones_like(o)
    for a, b in zip(torch.autograd.grad(o, far, grad), torch.autograd.grad(alone, near, grad[-1:]), strict=True):
        assert torch.equal(a[-1:], b)


@pytest.mark.parametrize("time", [50, 150])
def test_three_in_one_tensor_are_the_same(time):
    given = inputs(20, time, 2, 64, torch.bfloat16)
    qkv = torch.stack(given, dim=2).detach().requires_grad_()
    results = []
    for arguments, op in (((qkv,), self_attention), (given, attention)):
        torch.manual_seed(0)
        o = op(*arguments, dropout=0.1)
        results.append((o, grads(o, arguments)))
    (o, (got,)), (want, apart) = results
    assert torch.equal(o, want)
    assert torch.equal(got, torch.stack(apart, dim=2))


def step(q, k, v, dropout=0.0):
    return torch.func.vmap(lambda *x: attention(*x, dropout=dropout).sin(), randomness="different")(q, k, v)


def trained(function, given, *options):
    o = function(*given, *options)
    return o, *torch.autograd.grad(o.float().square().sum(), given)


def stack(seed=0):
    return [x.detach().unflatten(0, (3, -1)).requires_grad_() for x in inputs(12, 50, 2, 32, torch.bfloat16, seed=seed)]


def test_vmap_compiled_is_a_loop():
    given = stack()
    want = [torch.cat(x) for x in zip(*(trained(step, [a[i : i + 1] for a in given]) for i in range(3)), strict=True)]
    for function in (step, torch.compile(step, fullgraph=True)):
        for a, b in zip(trained(function, given), want, strict=True):
            assert error(a, b) < 5e-3


@pytest.mark.parametrize("compiled", [False, True])
def test_a_captured_graph_replays_on_new_inputs_and_drops_other_weights(compiled):
    given = stack()
    function = torch.compile(step) if compiled else step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for dropout in (0.0, 0.5):
            trained(function, given, dropout)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        whole, dropped = (trained(function, given, dropout) for dropout in (0.0, 0.5))
    new = stack(1)
    with torch.no_grad():
        for old, x in zip(given, new, strict=True):
            old.copy_(x)
        for x in (*whole, *dropped):
            x.detach().fill_(torch.nan)
    graph.replay()
    for a, b in zip(whole, trained(function, new, 0.0), strict=True):
        assert torch.equal(a, b)
    first = dropped[0].detach().clone()
    assert first.isfinite().all()
    graph.replay()
    assert (first != dropped[0]).float().mean() > 0.5


def test_autocast_rounds():
    given = inputs(2, 30, 1, 16, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        o = attention(*given)
    assert o.dtype == torch.bfloat16
    assert torch.equal(o, attention(*(x.bfloat16() for x in given)))
