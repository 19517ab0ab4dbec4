"""The Triton kernels of `gated_short_conv` in the interpreter, float32 against float64. The op's tests run them."""

import pytest
import torch
from errors import near

from zoology.kernels.gated_short_conv import gated_short_conv, triton
from zoology.kernels.short_conv.triton import Blocks, cut

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

IMPLEMENTATION = {"implementation": "triton"}


def inputs(batch, time, width, taps, seed=0):
    rng = torch.Generator().manual_seed(seed)
    shapes = ((batch, time, width), (width, width), (width,), (width, taps), (width,))
    return [torch.randn(*s, generator=rng).requires_grad_() for s in shapes]


def grads(y, wanted):
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return torch.autograd.grad(y, wanted, cotangent)


def compare(arguments):
    """Output and gradients of both implementations; the reference's in float64."""
    wide = [a.detach().double().requires_grad_() for a in arguments]
    want = gated_short_conv(*wide, implementation="reference")
    got = gated_short_conv(*arguments, **IMPLEMENTATION)
    assert got.dtype == torch.float32
    near(got, want)
    for a, b in zip(grads(got, arguments), grads(want, wide), strict=True):
        near(a, b)


@pytest.mark.parametrize(
    ("batch", "time", "width", "taps"),
    [(2, 1, 5, 2), (3, 2, 1, 4), (2, 70, 40, 3), (1, 37, 130, 4), (2, 9, 16, 8), (2, 33, 20, 5), (1, 5, 3, 1)],
    ids=str,
)
def test_outputs_and_gradients(batch, time, width, taps):
    compare(inputs(batch, time, width, taps))


@pytest.mark.parametrize(("batch", "time"), [(0, 4), (2, 0)])
def test_nothing_in_nothing_out(batch, time):
    arguments = inputs(batch, time, 5, 3)
    y = gated_short_conv(*arguments, **IMPLEMENTATION)
    assert y.shape == (batch, time, 5)
    if not batch:
        for a, g in zip(arguments, grads(y, arguments), strict=True):
            assert g.shape == a.shape
            assert not g.any()


@pytest.mark.parametrize("taps", [1, 2, 4, 8])
@pytest.mark.parametrize(("length", "unroll"), [(8, 4), (2, 2), (5, 1)])
def test_segments_meet(monkeypatch, length, unroll, taps):
    """Several segments in a sequence, some of them shorter than the taps reach, the last shorter than the others."""
    blocks = Blocks(4, 16, 4, length, unroll, None)
    monkeypatch.setattr(triton, "forward_blocks", lambda *_: blocks)
    monkeypatch.setattr(triton, "backward_blocks", lambda *_: blocks)
    for batch, time in ((3, 17), (4, 9)):
        assert cut(time, blocks)[0] > 1
        compare(inputs(batch, time, 19, taps))


@pytest.mark.parametrize("layout", ["channels of more", "time first", "time last", "a broadcast gradient"])
def test_any_layout(layout):
    x, *others = inputs(3, 20, 6, 4)
    want = gated_short_conv(x, *others, **IMPLEMENTATION)
    like = x.detach().clone()
    if layout == "channels of more":
        like = torch.cat((like, like, like), dim=2)[..., 6:12]
    elif layout == "time first":
        like = like.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "time last":
        like = like.transpose(1, 2).contiguous().transpose(1, 2)
    like.requires_grad_()
    turned = [a.mT.contiguous().mT if a.dim() == 2 else a for a in others]
    got = gated_short_conv(like, *turned, **IMPLEMENTATION)
    near(got, want)
    if layout == "a broadcast gradient":
        a, b = torch.autograd.grad(got.sum(), like), torch.autograd.grad(want, x, torch.ones_like(want))
    else:
        a, b = grads(got, (like, *others)), grads(want, (x, *others))
    for p, q in zip(a, b, strict=True):
        near(p, q)


@pytest.mark.parametrize("dims", [(0, 0, 0, 0, 0), (0, None, None, 0, None), (None, 0, 0, None, 0), (1, 0, 1, 2, 0)])
def test_vmap_is_a_loop_over_models_with_their_own_weights(dims):
    rng = torch.Generator().manual_seed(0)
    arguments = []
    for dim, shape in zip(dims, ((2, 11, 6), (6, 6), (6,), (6, 3), (6,)), strict=True):
        shape = list(shape)
        if dim is not None:
            shape.insert(dim, 3)
        arguments.append(torch.randn(*shape, generator=rng).requires_grad_())
    parts = [[a] * 3 if d is None else a.unbind(d) for a, d in zip(arguments, dims, strict=True)]

    def op(*args):
        return gated_short_conv(*args, **IMPLEMENTATION)

    y = torch.func.vmap(op, in_dims=dims)(*arguments)
    loop = torch.stack([op(*args) for args in zip(*parts, strict=True)])
    near(y, loop)
    for a, b in zip(grads(y, arguments), grads(loop, arguments), strict=True):
        near(a, b)


def test_it_compiles_whole():
    models = [inputs(2, 9, 5, 3, seed) for seed in range(2)]
    stacked = [torch.stack(x).detach() for x in zip(*models, strict=True)]

    def step(*args):
        return torch.func.vmap(lambda *a: gated_short_conv(*a, **IMPLEMENTATION))(*args).square().mean()

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        given = [a.clone().requires_grad_() for a in stacked]
        loss = function(*given)
        results.append((loss, *torch.autograd.grad(loss, given)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_under_autocast_the_product_alone_is_rounded():
    """As in the reference, but for the convolution, which it rounds too."""
    arguments = inputs(2, 9, 16, 3)
    exact = gated_short_conv(*(a.double() for a in arguments), implementation="reference")
    with torch.autocast("cpu", torch.float16):
        got = gated_short_conv(*arguments, **IMPLEMENTATION)
    assert got.dtype == torch.float32
    near(got, exact, 3e-3)
    wide = [a.detach().double().requires_grad_() for a in arguments]
    want = grads(gated_short_conv(*wide, implementation="reference"), wide)
    for a, b in zip(grads(got, arguments), want, strict=True):
        assert a.dtype == torch.float32
        near(a, b, 3e-3)


def test_the_ops_hold_what_torch_asks_of_them():
    x, gate_weight, *others = (a.unsqueeze(0).detach() for a in inputs(2, 9, 5, 3))
    arguments = [x, gate_weight, gate_weight.clone(), *others]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    needing = [a.clone().requires_grad_(i != 2) for i, a in enumerate(arguments)]
    torch.library.opcheck(triton.forward, needing, test_utils=checks)
    y, z = triton.forward(*arguments)
    back = (torch.ones_like(y), x, z, *arguments[2:], torch.float32)
    torch.library.opcheck(triton.gradient, back, test_utils=checks)


def test_a_second_derivative_is_refused():
    arguments = inputs(2, 9, 5, 3)
    y = gated_short_conv(*arguments, **IMPLEMENTATION)
    (first,) = torch.autograd.grad(y.square().sum(), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.square().sum(), arguments[1])


def test_limits_are_named():
    arguments = [a.detach() for a in inputs(2, 4, 3, 9)]
    with pytest.raises(ValueError, match="k = 9: the Triton kernel takes 1 to 8"):
        gated_short_conv(*arguments, **IMPLEMENTATION)
