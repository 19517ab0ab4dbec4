"""The Triton kernels of `sliding_window_attention` in the interpreter, against float64. The op's tests run them."""

import itertools

import pytest
import torch
from errors import near

from zoology.kernels.sliding_window_attention import SlidingWindowState, sliding_window_attention, triton

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

IMPLEMENTATION = {"implementation": "triton"}


def inputs(batch, time, heads, width, cached=0, seed=0):
    """q, k, v, and the cached keys and values."""
    rng = torch.Generator().manual_seed(seed)
    times = (time, time, time, cached, cached)
    return [torch.randn(batch, t, heads, width, generator=rng).requires_grad_() for t in times]


def grads(o, wanted):
    cotangent = torch.randn(o.shape, generator=torch.Generator().manual_seed(1)).to(o.dtype)
    return torch.autograd.grad(o, wanted, cotangent, retain_graph=True)


@pytest.mark.parametrize(
    ("batch", "time", "heads", "width", "window", "cached"),
    [
        (2, 1, 1, 1, 1, 0),
        (1, 1, 2, 16, 5, 3),
        (2, 33, 3, 5, 7, 0),
        (1, 70, 1, 16, 40, 40),
        (1, 100, 2, 20, 2, 0),
        (1, 65, 1, 60, 200, 0),
        (2, 40, 1, 8, 33, 10),
        (0, 4, 1, 8, 2, 0),
    ],
    ids=str,
)
def test_outputs_state_and_gradients(batch, time, heads, width, window, cached):
    arguments = inputs(batch, time, heads, width, cached)
    results = []
    for name, given in (
        ("triton", arguments),
        ("reference", [x.detach().double().requires_grad_() for x in arguments]),
    ):
        state = SlidingWindowState(*given[3:]) if cached else None
        o, after = sliding_window_attention(
            *given[:3], window=window, state=state, output_state=True, implementation=name
        )
        results.append((o, *after, *grads(o, given[: 5 if cached else 3])))
    for a, b in zip(*results, strict=True):
        near(a, b)


def test_every_block_size_gives_the_same():
    q, k, v, *_ = (x.detach() for x in inputs(1, 90, 2, 12))
    o, log_sum = triton.forward(q, k, v, 30)
    want = (o, log_sum, *triton.gradient(q, q, k, v, o, log_sum, 30))
    for queries, keys in ((16, 32), (64, 16), (128, 128)):
        blocks = triton.Blocks(queries, keys, 4)
        got = triton.launch_forward(q, k, v, 30, blocks)
        for a, b in zip((*got, *triton.launch_backward(q, q, k, v, o, log_sum, 30, blocks)), want, strict=True):
            near(a, b)


def test_any_layout():
    q, k, v, *_ = inputs(2, 20, 3, 8)
    want = sliding_window_attention(q, k, v, window=6, **IMPLEMENTATION)[0]
    together = torch.cat((q, k, v), dim=-1).detach()
    parts = [x.requires_grad_() for x in together.split(8, dim=-1)]
    parts[1] = k.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    parts[2] = v.detach().mT.contiguous().mT.requires_grad_()
    got = sliding_window_attention(*parts, window=6, **IMPLEMENTATION)[0]
    assert torch.equal(got, want)
    for a, b in zip(grads(got, parts), grads(want, (q, k, v)), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(
        torch.autograd.grad(got.sum(), parts),
        torch.autograd.grad(want, (q, k, v), torch.ones_like(want)),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_pieces_give_what_the_whole_gives():
    q, k, v, *_ = inputs(2, 30, 1, 8)
    whole, _ = sliding_window_attention(q, k, v, window=7, **IMPLEMENTATION)
    state, pieces = None, []
    for a, b in itertools.pairwise((0, 1, 4, 4, 20, 30)):
        o, state = sliding_window_attention(
            *(x[:, a:b] for x in (q, k, v)), window=7, state=state, output_state=True, **IMPLEMENTATION
        )
        pieces.append(o)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


@pytest.mark.parametrize("dims", [(0, 0, 0), (1, None, 0)], ids=str)
def test_vmap_is_a_loop(dims):
    models = [inputs(2, 12, 2, 8, seed=seed)[:3] for seed in range(3)]
    stacked = [
        (x[0] if d is None else torch.stack(x, d)).detach().requires_grad_()
        for x, d in zip(zip(*models, strict=True), dims, strict=True)
    ]

    def op(q, k, v):
        return sliding_window_attention(q, k, v, window=5, **IMPLEMENTATION)[0]

    got = torch.func.vmap(op, in_dims=dims)(*stacked)
    parts = [[x] * 3 if d is None else x.unbind(d) for x, d in zip(stacked, dims, strict=True)]
    want = torch.stack([op(*args) for args in zip(*parts, strict=True)])
    assert torch.equal(got, want)
    for a, b in zip(grads(got, stacked), grads(want, stacked), strict=True):
        near(a, b)


def test_it_compiles_whole():
    def step(q, k, v):
        return torch.func.vmap(lambda *x: sliding_window_attention(*x, window=5, **IMPLEMENTATION)[0])(q, k, v)

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        given = [x.detach().unsqueeze(0).requires_grad_() for x in inputs(2, 12, 2, 8)[:3]]
        o = function(*given)
        results.append((o, *grads(o, given)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_the_ops_hold_what_torch_asks_of_them():
    q, k, v, *_ = inputs(2, 9, 2, 8)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton.forward, (q, k, v, 4), test_utils=checks)
    given = [x.detach() for x in (q, q, k, v, *triton.forward(q, k, v, 4))]
    torch.library.opcheck(triton.gradient, (*given, 4), test_utils=checks)


def test_a_second_derivative_is_refused():
    q, k, v, *_ = inputs(1, 9, 1, 8)
    o, _ = sliding_window_attention(q, k, v, window=4, **IMPLEMENTATION)
    (first,) = torch.autograd.grad(o.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.square().sum(), k)


def test_limits_are_named():
    q, k, v, *_ = inputs(1, 3, 1, 65)
    with pytest.raises(ValueError, match="d = 65: the Triton kernel takes 1 to 64"):
        sliding_window_attention(q, k, v, window=2, **IMPLEMENTATION)
    q, k, v, *_ = inputs(1, 3, 1, 8)
    with pytest.raises(ValueError, match=r"dropout = 0\.1: the Triton kernel takes 0"):
        sliding_window_attention(q, k, v, window=2, dropout=0.1, **IMPLEMENTATION)
    with pytest.raises(ValueError, match=r"torch\.float64, torch\.float32: the Triton kernel takes"):
        sliding_window_attention(q, k.double(), v, window=2, **IMPLEMENTATION)
    many = q[:, :1].detach().expand(1, 2**15, 2**15, 8)
    with pytest.raises(ValueError, match=r"B S H = 1073741824: the Triton kernel takes less than 2\^30"):
        sliding_window_attention(many, many, many, window=2, **IMPLEMENTATION)
