"""The Triton kernels of `attention` in the interpreter, against float64. The op's tests run them."""

import pytest
import torch
from errors import near

from zoology.kernels.attention import attention, checks, launch, self_attention, triton

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

IMPLEMENTATION = {"implementation": "triton"}


def inputs(batch, time, heads, width, before=0, seed=0):
    """q, k, v; `before` keys are those of earlier tokens."""
    rng = torch.Generator().manual_seed(seed)
    times = (time, time + before, time + before)
    return [torch.randn(batch, t, heads, width, generator=rng).requires_grad_() for t in times]


def grads(o, wanted):
    cotangent = torch.randn(o.shape, generator=torch.Generator().manual_seed(1)).to(o.dtype)
    return torch.autograd.grad(o, wanted, cotangent, retain_graph=True)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    ("batch", "time", "heads", "width", "window", "before"),
    [
        (2, 1, 1, 1, 1, 0),
        (1, 1, 2, 16, 5, 3),
        (2, 20, 3, 5, 30, 0),
        (1, 32, 1, 16, 9, 0),
        (1, 70, 2, 20, 90, 0),
        (1, 65, 1, 70, 7, 0),
        (2, 40, 1, 8, 33, 10),
        (1, 150, 1, 8, 150, 0),
        (1, 130, 1, 8, 50, 9),
        (0, 4, 1, 8, 2, 0),
    ],
    ids=str,
)
def test_outputs_and_gradients(batch, time, heads, width, window, before, dropout):
    given = inputs(batch, time, heads, width, before)
    seed = torch.tensor([2**40 + 7, 5][: max(1, batch)]) if dropout else None
    o, _ = triton.forward(*given, seed, window, dropout)
    wide = [x.detach().double().requires_grad_() for x in given]
    want = checks.exactly(*wide, seed, window, dropout)
    for a, b in zip((o, *grads(o, given)), (want, *grads(want, wide)), strict=True):
        near(a, b)


def test_every_block_size_gives_the_same_and_drops_the_same():
    q, k, v = (x.detach() for x in inputs(1, 60, 2, 12))
    seed = torch.tensor([3])
    rest = (seed, 100, 0.25)
    o, log_sum = triton.forward(q, k, v, *rest)
    want = (o, log_sum, *triton.gradient(q, q, k, v, seed, o, log_sum, *rest[1:]))
    for queries, keys in ((16, 32), (64, 16), (64, 64)):
        blocks = launch.Blocks(queries, keys, 4)
        got = launch.launch_forward(q, k, v, *rest, blocks)
        args = (q, q, k, v, seed, o, log_sum, *rest[1:])
        for whole in (None, launch.Blocks(64, 64, 4)):
            back = launch.launch_backward(*args, blocks=None if whole else (blocks, blocks), whole=whole)
            for a, b in zip((*got, *back), want, strict=True):
                near(a, b)


def test_dropout_is_fair_and_follows_the_seed():
    first = launch.kept_weights(torch.tensor([1, 2]), 4, 3, 50, 64, 0.3)
    again = launch.kept_weights(torch.tensor([1, 2]), 4, 3, 50, 64, 0.3)
    other = launch.kept_weights(torch.tensor([9, 2]), 4, 3, 50, 64, 0.3)
    assert torch.equal(first, again)
    assert torch.equal(first[2:], other[2:])
    x = first.double() - 0.7
    sigma = (0.21 / x.numel()) ** 0.5
    assert abs(x.mean()) < 4 * sigma
    pairs = ((x[0], x[1]), (x[:, 0], x[:, 1]), (x[:, :, 1:], x[:, :, :-1]), (x[..., 1:], x[..., :-1]))
    for a, b in (*pairs, (x[:2], other[:2].double() - 0.7)):
        assert abs((a * b).mean()) < 4 * 0.21 / a.numel() ** 0.5


def test_no_two_keys_are_dropped_together():
    """One random number of a query decides for all of its keys: still, any two are as good as independent, and so is
    how many are dropped."""
    rows, p = 24000, 0.1
    kept = launch.kept_weights(torch.arange(120), 120, 1, 200, 64, p)
    x = (kept.double() - (1 - p)).reshape(rows, 64) / (p * (1 - p)) ** 0.5
    together = (x.T @ x / rows).fill_diagonal_(0)
    assert together.abs().max() < 5 / rows**0.5
    assert abs(x.sum(1).var() / 64 - 1) < 5 * (2 / rows) ** 0.5


def test_torchs_generator_gives_the_seed():
    q, k, v = inputs(2, 9, 1, 8)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(attention(q, k, v, dropout=0.5, **IMPLEMENTATION))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("time", [20, 70])
def test_three_in_one_tensor_are_the_same(time):
    q, k, v = inputs(2, time, 3, 8)
    qkv = torch.stack((q, k, v), dim=2).detach().requires_grad_()
    results = []
    for given, op in (((qkv,), self_attention), ((q, k, v), attention)):
        torch.manual_seed(0)
        o = op(*given, window=50, dropout=0.2, **IMPLEMENTATION)
        results.append((o, grads(o, given)))
    (o, (got,)), (want, apart) = results
    assert torch.equal(o, want)
    assert torch.equal(got, torch.stack(apart, dim=2))
    stacked = torch.func.vmap(lambda x: self_attention(x, **IMPLEMENTATION))(qkv[None].expand(2, -1, -1, -1, -1, -1))
    assert torch.equal(stacked[1], attention(q, k, v, **IMPLEMENTATION))
    (by_all,) = torch.autograd.grad(stacked.sin().sum(), qkv)
    again = attention(q, k, v, **IMPLEMENTATION)
    near(by_all, 2 * torch.stack(torch.autograd.grad(again.sin().sum(), (q, k, v)), dim=2))


def test_any_layout():
    q, k, v = inputs(2, 20, 3, 8)
    want = attention(q, k, v, window=6, **IMPLEMENTATION)
    together = torch.cat((q, k, v), dim=-1).detach()
    parts = [x.requires_grad_() for x in together.split(8, dim=-1)]
    parts[1] = k.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    parts[2] = v.detach().mT.contiguous().mT.requires_grad_()
    got = attention(*parts, window=6, **IMPLEMENTATION)
    assert torch.equal(got, want)
    for a, b in zip(grads(got, parts), grads(want, (q, k, v)), strict=True):
        assert torch.equal(a, b)
    expanded = torch.autograd.grad(got.sum(), parts)
    for a, b in zip(expanded, torch.autograd.grad(want, (q, k, v), torch.ones_like(want)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dims", [(0, 0, 0), (1, None, 0)], ids=str)
def test_vmap_is_a_loop(dims):
    models = [inputs(2, 12, 2, 8, seed=seed) for seed in range(3)]
    stacked = [
        (x[0] if d is None else torch.stack(x, d)).detach().requires_grad_()
        for x, d in zip(zip(*models, strict=True), dims, strict=True)
    ]

    def op(q, k, v):
        return attention(q, k, v, **IMPLEMENTATION)

    got = torch.func.vmap(op, in_dims=dims)(*stacked)
    parts = [[x] * 3 if d is None else x.unbind(d) for x, d in zip(stacked, dims, strict=True)]
    want = torch.stack([op(*args) for args in zip(*parts, strict=True)])
    assert torch.equal(got, want)
    for a, b in zip(grads(got, stacked), grads(want, stacked), strict=True):
        near(a, b)


def test_replicas_drop_different_weights():
    q, k, v = (x.detach()[None].expand(3, -1, -1, -1, -1) for x in inputs(2, 9, 1, 8))
    o = torch.func.vmap(lambda *x: attention(*x, dropout=0.5, **IMPLEMENTATION), randomness="different")(q, k, v)
    assert not torch.equal(o[0], o[1])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_it_compiles_whole(dropout):
    def step(q, k, v):
        op = lambda *x: attention(*x, dropout=dropout, **IMPLEMENTATION)  # noqa: E731
        return torch.func.vmap(op, randomness="different")(q, k, v)

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        given = [x.detach().unsqueeze(0).requires_grad_() for x in inputs(2, 12, 2, 8)]
        torch.manual_seed(0)
        o = function(*given)
        results.append((o, *grads(o, given)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_ops_hold_what_torch_asks_of_them(dropout):
    q, k, v = inputs(2, 9, 2, 8)
    seed = torch.tensor([4]) if dropout else None
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton.forward, (q, k, v, seed, 4, dropout), test_utils=utils)
    q, k, v = (x.detach() for x in (q, k, v))
    o, log_sum = triton.forward(q, k, v, seed, 4, dropout)
    torch.library.opcheck(triton.gradient, (q, q, k, v, seed, o, log_sum, 4, dropout), test_utils=utils)
    qkv = torch.stack((q, k, v), dim=2)
    torch.library.opcheck(triton.self_forward, (qkv.requires_grad_(), seed, 4, dropout), test_utils=utils)
    torch.library.opcheck(triton.self_gradient, (q, qkv.detach(), seed, o, log_sum, 4, dropout), test_utils=utils)


def test_a_second_derivative_is_refused():
    q, k, v = inputs(1, 9, 1, 8)
    o = attention(q, k, v, window=4, **IMPLEMENTATION)
    (first,) = torch.autograd.grad(o.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.square().sum(), k)


def test_limits_are_named():
    with pytest.raises(ValueError, match="d = 129: the Triton kernel takes 1 to 128"):
        attention(*inputs(1, 3, 1, 129), **IMPLEMENTATION)
    q, k, v = inputs(1, 3, 1, 8)
    with pytest.raises(ValueError, match=r"torch.float32, torch.float64, .*float16, all alike"):
        attention(q, k.double(), v, **IMPLEMENTATION)
    far = torch.empty(1, 1, 1, 1).expand(1, 2**15, 1, 1)
    with pytest.raises(ValueError, match="S = 32768: the Triton kernel takes less than 32768 keys"):
        attention(far, far, far, **IMPLEMENTATION)
