"""The Triton kernels of `short_conv` on a GPU, compiled: pytest -m gpu tests/kernels/test_gpu_short_conv.py

Errors are against float64, and beside those of the reference in the same dtype on the same inputs.
"""

import pytest
import torch
from errors import error, no_worse

from zoology.kernels.short_conv import short_conv, short_conv_step, triton

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
RATIO, FLOOR = 1.2, {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}
"""Errors may be RATIO times the reference's, or FLOOR, that of one rounding."""


def inputs(batch, time, width, taps, dtype=torch.float32, weight_dtype=None, seed=0, extra=True):
    rng = torch.Generator("cuda").manual_seed(seed)
    shapes = ((batch, time, width), (width, taps), (width,), (batch, taps - 1, width))
    made = [torch.randn(*s, generator=rng, device="cuda") for s in shapes]
    made = [a.to(weight_dtype or dtype if i in (1, 2) else dtype).requires_grad_() for i, a in enumerate(made)]
    return made if extra else made[:2]


def results(arguments, implementation, function=short_conv):
    y, after = function(*arguments, implementation=implementation)
    cotangent = torch.randn(y.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda").to(y.dtype)
    return y, after, *torch.autograd.grad(y, arguments, cotangent)


@DTYPES
@pytest.mark.parametrize("taps", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("batch", "time", "width"), [(1, 1, 1), (3, 70, 100), (300, 64, 64), (2, 2048, 1024), (5, 1000, 24)], ids=str
)
def test_it_errs_no_more_than_the_reference(batch, time, width, taps, dtype):
    for extra in (True, False):
        arguments = inputs(batch, time, width, taps, dtype, extra=extra)
        want = results([a.detach().double().requires_grad_() for a in arguments], "reference")
        theirs, ours = results(arguments, "reference"), results(arguments, "triton")
        assert torch.equal(ours[1], theirs[1])
        for i, (a, b, exact) in enumerate(zip(ours, theirs, want, strict=True)):
            no_worse(a, b, exact, RATIO, FLOOR[dtype], i)


def test_float32_taps_for_bfloat16_inputs():
    arguments = inputs(4, 100, 96, 3, torch.bfloat16, torch.float32)
    got = results(arguments, "triton")
    assert [g.dtype for g in got] == [torch.bfloat16] * 3 + [torch.float32] * 2 + [torch.bfloat16]
    want = results([a.detach().double().requires_grad_() for a in arguments], "reference")
    for a, b in zip(got, want, strict=True):
        assert error(a, b) < 4e-3


@DTYPES
def test_a_step_is_a_piece_of_one_token(dtype):
    x, weight, bias, state = inputs(77, 1, 200, 4, dtype)
    want, after = short_conv(x, weight, bias, state, implementation="triton")
    got, moved = short_conv_step(x.squeeze(1), weight, bias, state, implementation="triton")
    assert torch.equal(moved, after)
    torch.testing.assert_close(got, want.squeeze(1))


@DTYPES
def test_it_repeats_bit_for_bit(dtype):
    arguments = inputs(64, 333, 192, 4, dtype)
    first = results(arguments, "triton")
    for _ in range(5):
        for a, b in zip(first, results(arguments, "triton"), strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("memory_of_the_gpu")
@pytest.mark.parametrize(("batch", "time"), [(1, 2**21 + 3), (2**15 + 1, 64)])
def test_more_elements_than_32_bits_count(batch, time):
    """B T D just over 2^31: the last rows are those of a call of their own."""
    d = 1024
    x = torch.zeros(batch, time, d, device="cuda", dtype=torch.bfloat16)
    x[-1, -64:] = torch.randn(64, d, device="cuda").bfloat16()
    _, weight, bias, _ = inputs(1, 1, d, 3)
    y, _ = short_conv(x.requires_grad_(), weight, bias, implementation="triton")
    short = x[-1:, -64:].detach().requires_grad_()
    near, _ = short_conv(short, weight, bias, implementation="triton")
    assert torch.equal(y[-1, -64:], near[0])
    far = torch.autograd.grad(y[-1, -64:].square().sum(), (x, weight))
    want = torch.autograd.grad(near.square().sum(), (short, weight))
    assert torch.equal(far[0][-1, -64:], want[0][0])
    torch.testing.assert_close(far[1], want[1])


def stack(seed=0):
    """Three models, each with its own taps."""
    models = [inputs(8, 50, 64, 3, torch.bfloat16, torch.float32, seed * 3 + i) for i in range(3)]
    return [torch.stack(a).detach().requires_grad_() for a in zip(*models, strict=True)]


def step(x, weight, bias, state, implementation="triton"):
    def one(x, weight, bias, state):
        y, after = short_conv(x, weight, bias, state, implementation=implementation)
        z, after = short_conv_step(y[:, -1], weight, bias, after, implementation=implementation)
        return torch.nn.functional.silu(y), z, after

    return torch.func.vmap(one)(x, weight, bias, state)


def trained(arguments, function=step):
    y, z, after = function(*arguments)
    grads = torch.autograd.grad(y.float().square().mean() + z.float().square().mean(), arguments)
    return y.detach(), z.detach(), after.detach(), *grads


def test_vmap_is_a_loop():
    arguments = stack()
    got = trained(arguments)
    for i in range(3):
        alone = trained([a[i : i + 1].detach().requires_grad_() for a in arguments])
        for a, b in zip(got[:3], alone[:3], strict=True):
            assert torch.equal(a[i : i + 1], b)
        for a, b in zip(got[3:], alone[3:], strict=True):
            assert error(3 * a[i : i + 1], b) < 1.5e-2  # gradients in bfloat16 of a mean over other numbers


def test_it_compiles_whole():
    arguments = stack()
    want, got = trained(arguments), trained(arguments, torch.compile(step, fullgraph=True))
    for a, b in zip(got, want, strict=True):
        assert error(a, b) < 5e-3


def test_a_captured_graph_replays_on_new_inputs():
    arguments = stack()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            trained(arguments)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = trained(arguments)
    for seed in (1, 2):
        new = stack(seed)
        with torch.no_grad():
            for old, x in zip(arguments, new, strict=True):
                old.copy_(x)
            for x in outputs:
                x.fill_(torch.nan)
        graph.replay()
        for a, b in zip(outputs, trained(new), strict=True):
            assert torch.equal(a, b)


def test_more_taps_than_the_kernel_takes_are_the_references():
    arguments = inputs(2, 30, 8, 9)
    for a, b in zip(results(arguments, None), results(arguments, "reference"), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=f"takes 1 to {triton.MAX_TAPS}"):
        results(arguments, "triton")
