"""The Triton kernels of `short_conv` in the interpreter, float32 against float64. The op's tests run them."""

import itertools

import pytest
import torch
from errors import near

from zoology.kernels.short_conv import short_conv, short_conv_step, triton

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

BOTH = [(True, True), (True, False), (False, True), (False, False)]
IMPLEMENTATION = {"implementation": "triton"}


def inputs(batch, time, width, taps, seed=0, bias=True, state=True):
    rng = torch.Generator().manual_seed(seed)
    shapes = ((batch, time, width), (width, taps), (width,), (batch, taps - 1, width))
    made = [torch.randn(*s, generator=rng).requires_grad_() for s in shapes]
    return made[0], made[1], made[2] if bias else None, made[3] if state else None


def grads(y, wanted, seed=1):
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y.dtype)
    return torch.autograd.grad(y, wanted, cotangent)


def compare(arguments):
    """Outputs, state and gradients of both implementations; the reference's in float64."""
    wide = [None if a is None else a.detach().double().requires_grad_() for a in arguments]
    want, state = short_conv(*wide, implementation="reference")
    got, after = short_conv(*arguments, **IMPLEMENTATION)
    assert got.dtype == torch.float32
    assert torch.equal(after.double(), state)
    near(got, want)
    ours, theirs = ([a for a in of if a is not None and a.numel()] for of in (arguments, wide))
    for a, b in zip(grads(got, ours), grads(want, theirs), strict=True):
        near(a, b)


@pytest.mark.parametrize(("bias", "state"), BOTH)
@pytest.mark.parametrize(
    ("batch", "time", "width", "taps"),
    [(2, 1, 5, 2), (3, 2, 1, 4), (2, 70, 40, 3), (1, 37, 130, 4), (2, 9, 16, 8), (2, 33, 20, 5), (1, 5, 3, 1)],
    ids=str,
)
def test_outputs_and_gradients(batch, time, width, taps, bias, state):
    compare(inputs(batch, time, width, taps, bias=bias, state=state))


@pytest.mark.parametrize(("batch", "time"), [(0, 4), (2, 0)])
def test_nothing_in_nothing_out(batch, time):
    x, weight, bias, state = inputs(batch, time, 5, 3)
    y, after = short_conv(x, weight, bias, state, **IMPLEMENTATION)
    assert y.shape == x.shape
    assert torch.equal(after, state)
    if not batch:
        for a, g in zip((x, weight, bias, state), grads(y, (x, weight, bias, state)), strict=True):
            assert g.shape == a.shape
            assert not g.any()


def test_every_block_size_gives_the_same():
    arguments = inputs(3, 50, 33, 3)
    x, weight, bias, state = (a.detach().unsqueeze(0) for a in arguments)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    want = (triton.forward(x, weight, bias, state), *triton.gradient(grad, x, weight, bias, state))
    for blocks in (
        triton.Blocks(16, 16, 4, 32, 4, None),
        triton.Blocks(4, 64, 4, 64, 8, None),
        triton.Blocks(1, 32, 1, 5, 1, None),
    ):
        got = triton.launch_backward(grad, x, weight, bias, state, blocks)
        for a, b in zip((triton.launch_forward(x, weight, bias, state, blocks), *got), want, strict=True):
            near(a, b)


@pytest.mark.parametrize(("bias", "state"), BOTH[::3])
@pytest.mark.parametrize("taps", [1, 2, 4, 8])
@pytest.mark.parametrize(("length", "unroll"), [(8, 4), (2, 2)])
def test_segments_meet(monkeypatch, length, unroll, taps, bias, state):
    """Several segments in a sequence, some of them shorter than the taps reach, the last shorter than the others."""
    blocks = triton.Blocks(4, 16, 4, length, unroll, None)
    monkeypatch.setattr(triton, "forward_blocks", lambda *_: blocks)
    monkeypatch.setattr(triton, "backward_blocks", lambda *_: blocks)
    for batch, time in ((3, 17), (4, 9)):
        assert triton.cut(time, blocks)[0] > 1
        assert time % triton.cut(time, blocks)[1]
        compare(inputs(batch, time, 19, taps, bias=bias, state=state))


@pytest.mark.parametrize("layout", ["channels of more", "time first", "time last", "a broadcast gradient"])
def test_any_layout(layout):
    x, weight, bias, state = inputs(3, 20, 6, 4)
    want, _ = short_conv(x, weight, bias, state, **IMPLEMENTATION)
    like = x.detach().clone()
    if layout == "channels of more":
        like = torch.cat((like, like, like), dim=2)[..., 6:12]
    elif layout == "time first":
        like = like.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "time last":
        like = like.transpose(1, 2).contiguous().transpose(1, 2)
    like.requires_grad_()
    got, _ = short_conv(like, weight.T.contiguous().T, bias, state, **IMPLEMENTATION)
    assert torch.equal(got, want)
    if layout == "a broadcast gradient":
        a, b = torch.autograd.grad(got.sum(), weight), torch.autograd.grad(want, weight, torch.ones_like(want))
    else:
        a, b = grads(got, (like, weight)), grads(want, (x, weight))
    for p, q in zip(a, b, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("taps", [1, 2, 4, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_a_step_is_a_piece_of_one_token(taps, bias):
    x, weight, bias, state = inputs(5, 1, 37, taps, bias=bias)
    given = [a for a in (x, weight, bias, state) if a is not None and a.numel()]
    want, after = short_conv(x, weight, bias, state, implementation="reference")
    got, moved = short_conv_step(x.squeeze(1), weight, bias, state, **IMPLEMENTATION)
    near(got, want.squeeze(1))
    assert torch.equal(moved, after)
    loss = [(y * y.detach().cos()).sum() + (s * s.detach().sin()).sum() for y, s in ((got, moved), (want, after))]
    for a, b in zip(*(torch.autograd.grad(of, given) for of in loss), strict=True):
        near(a, b)


def test_pieces_and_steps_give_what_the_whole_gives():
    x, weight, bias, state = inputs(2, 10, 4, 4)
    whole, final = short_conv(x, weight, bias, state, **IMPLEMENTATION)
    pieces, kept = [], state
    for a, b in itertools.pairwise((0, 1, 3, 3, 10)):
        y, kept = short_conv(x[:, a:b], weight, bias, kept, **IMPLEMENTATION)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    assert torch.equal(kept, final)
    assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()
    fresh = short_conv(x, weight, **IMPLEMENTATION)[1]
    assert fresh.untyped_storage().nbytes() == fresh.numel() * fresh.element_size()


@pytest.mark.parametrize("dims", [(0, 0, 0, 0), (0, None, None, None), (None, 0, 0, None), (1, 0, 0, 1)], ids=str)
def test_vmap_is_a_loop_over_models_with_their_own_taps(dims):
    rng = torch.Generator().manual_seed(0)
    arguments = []
    for dim, shape in zip(dims, ((2, 11, 6), (6, 3), (6,), (2, 2, 6)), strict=True):
        shape = list(shape)
        if dim is not None:
            shape.insert(dim, 3)
        arguments.append(torch.randn(*shape, generator=rng).requires_grad_())
    parts = [[a] * 3 if d is None else a.unbind(d) for a, d in zip(arguments, dims, strict=True)]

    def op(*args):
        return short_conv(*args, **IMPLEMENTATION)

    def one(*args):
        return short_conv_step(args[0][:, 0], *args[1:], **IMPLEMENTATION)

    for function in (op, one):
        y, after = torch.func.vmap(function, in_dims=dims)(*arguments)
        loop = [torch.stack(x) for x in zip(*(function(*args) for args in zip(*parts, strict=True)), strict=True)]
        assert torch.equal(y, loop[0])
        assert torch.equal(after, loop[1])
        for a, b in zip(grads(y, arguments), grads(loop[0], arguments), strict=True):
            near(a, b)


def test_vmap_in_vmap():
    rng = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, 2, 7, 5, generator=rng), torch.randn(3, 5, 3, generator=rng)

    def op(x, w):
        return short_conv(x, w, **IMPLEMENTATION)[0]

    got = torch.func.vmap(torch.func.vmap(op), in_dims=(0, None))(x, weight)
    want = [torch.stack([op(x[i, j], weight[j]) for j in range(3)]) for i in range(2)]
    assert torch.equal(got, torch.stack(want))


def test_it_compiles_whole():
    models = [inputs(2, 9, 5, 3, seed) for seed in range(2)]
    stacked = [torch.stack(x).detach() for x in zip(*models, strict=True)]

    def step(*args):
        y, after = torch.func.vmap(lambda *a: short_conv(*a, **IMPLEMENTATION))(*args)
        z, after = torch.func.vmap(lambda *a: short_conv_step(*a, **IMPLEMENTATION))(y[:, :, 0], *args[1:3], after)
        return y.square().mean() + z.square().mean(), after

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        given = [a.clone().requires_grad_() for a in stacked]
        loss, after = function(*given)
        results.append((loss, after, *torch.autograd.grad(loss, given)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("bias", "state"), BOTH)
def test_the_ops_hold_what_torch_asks_of_them(bias, state):
    given = inputs(2, 9, 5, 3, bias=bias, state=state)
    arguments = tuple(None if a is None else a.unsqueeze(0).detach() for a in given)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    needing = tuple(None if a is None else a.clone().requires_grad_() for a in arguments)
    torch.library.opcheck(triton.forward, needing, test_utils=checks)
    torch.library.opcheck(triton.gradient, (torch.ones_like(arguments[0]), *arguments), test_utils=checks)
    if state:
        torch.library.opcheck(triton.step, (needing[0][:, :, 0].detach(), *needing[1:]), test_utils=checks)


def test_a_second_derivative_is_refused():
    x, weight, bias, state = inputs(2, 9, 5, 3)
    y, _ = short_conv(x, weight, bias, state, **IMPLEMENTATION)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.square().sum(), weight)


def test_limits_are_named():
    x, weight, bias, state = (a.detach() for a in inputs(2, 4, 3, 9))
    for run in (
        lambda: short_conv(x, weight, bias, state, **IMPLEMENTATION),
        lambda: short_conv_step(x[:, 0], weight, bias, state, **IMPLEMENTATION),
    ):
        with pytest.raises(ValueError, match="k = 9: the Triton kernel takes 1 to 8"):
            run()
    for place, name in ((0, "x"), (1, "weight"), (3, "state")):
        given = [x, weight[:, :3], bias, state[:, :2]]
        given[place] = given[place].double()
        with pytest.raises(ValueError, match=rf"{name} is torch\.float64: the Triton kernel takes"):
            short_conv(*given, **IMPLEMENTATION)
    with pytest.raises(ValueError, match=r"B T = 1073741824: the Triton kernel takes less than 2\^30"):
        short_conv(x[:1, :1].expand(2**10, 2**20, 3), weight[:, :3], **IMPLEMENTATION)
    with pytest.raises(ValueError, match=r"D = 16777216: the Triton kernel takes less than 2\^24"):
        short_conv(x[:, :, :1].expand(2, 4, 2**24), weight[:1, :3].expand(2**24, 3), **IMPLEMENTATION)
