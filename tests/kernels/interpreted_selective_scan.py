"""The Triton kernels of `selective_scan` in the interpreter, float32 against float64. The op's tests run them."""

import itertools

import pytest
import torch
from errors import near

from zoology.kernels.selective_scan import selective_scan, triton

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")

IMPLEMENTATION = {"implementation": "triton"}


def inputs(batch, time, channels, n, seed=0, scale=1.0, skip=True, state=True):
    rng = torch.Generator().manual_seed(seed)
    shapes = ((batch, time, channels),) * 2 + ((channels, n),) + ((batch, time, n),) * 2 + ((channels,),)
    x, delta, a, b, c, d = (torch.randn(*s, generator=rng) for s in shapes)
    h = torch.randn(batch, channels, n, generator=rng)
    made = (x, scale * delta.abs(), -a.abs(), b, c, d if skip else None, h if state else None)
    return [None if t is None else t.requires_grad_() for t in made]


def run(arguments, implementation="triton"):
    return selective_scan(*arguments[:6], state=arguments[6], implementation=implementation)


def grads(outputs, wanted, which=(0, 1)):
    rng = torch.Generator().manual_seed(1)
    pulls = [torch.randn(t.shape, generator=rng).to(t.dtype) for t in outputs]
    return torch.autograd.grad([outputs[i] for i in which], wanted, [pulls[i] for i in which], allow_unused=True)


def compare(arguments, which=(0, 1)):
    """Outputs and gradients of both implementations; the reference's in float64."""
    wide = [None if t is None else t.detach().double().requires_grad_() for t in arguments]
    want, got = run(wide, "reference"), run(arguments)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32
        near(a, b)
    ours, theirs = ([t for t in of if t is not None] for of in (arguments, wide))
    for a, b in zip(grads(got, ours, which), grads(want, theirs, which), strict=True):
        near(a, torch.zeros_like(a) if b is None else b)  # to PyTorch D is unused where y is


@pytest.mark.parametrize(("skip", "state"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize(
    ("batch", "time", "channels", "n"),
    [(2, 1, 5, 3), (1, 4, 1, 1), (2, 17, 64, 16), (1, 6, 40, 4), (2, 11, 3, 20)],
    ids=str,
)
def test_outputs_and_gradients(batch, time, channels, n, skip, state):
    compare(inputs(batch, time, channels, n, skip=skip, state=state))


@pytest.mark.parametrize("scale", [1e-4, 1e3], ids=["keeps", "forgets"])
def test_extreme_step_sizes(scale):
    compare(inputs(2, 21, 6, 4, scale=scale))


@pytest.mark.parametrize("which", [(0,), (1,)], ids=["y", "state"])
def test_what_only_one_output_asks_for(which):
    compare(inputs(2, 11, 6, 4), which)


def test_every_block_size_gives_the_same():
    given = [t.detach().unsqueeze(0) for t in inputs(3, 19, 33, 6)]
    want = triton.launch_forward(*given, True)
    grad = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(0))
    back = (grad, want[1], *given[:6], want[2])
    pulls = triton.launch_backward(*back)
    for blocks in (triton.Blocks(4, 1), triton.Blocks(16, 4), triton.Blocks(64, 1)):
        for a, b in zip(triton.launch_forward(*given, True, blocks), want, strict=True):
            near(a, b)
        for a, b in zip(triton.launch_backward(*back, blocks), pulls, strict=True):
            near(a, b)


def test_large_states_have_more_warps():
    assert triton.blocks_of(16, 128) == triton.Blocks(32, 1)
    assert triton.blocks_of(256, 128) == triton.Blocks(8, 4)
    compare(inputs(1, 5, 9, 130))


@pytest.mark.parametrize(("batch", "time"), [(0, 4), (2, 0)])
def test_nothing_in_nothing_out(batch, time):
    arguments = inputs(batch, time, 5, 3)
    y, h = run(arguments)
    assert (y.shape, h.shape) == ((batch, time, 5), (batch, 5, 3))
    if not batch:
        for a, g in zip(arguments, grads((y, h), arguments), strict=True):
            assert g.shape == a.shape
            assert not g.any()
    else:
        assert torch.equal(h, arguments[6])


def test_slices_of_one_tensor_and_other_layouts():
    """B and C are parts of one projection, as in Mamba; x and delta lie anyhow."""
    x, delta, a, b, c, d, h = inputs(2, 13, 6, 4)
    both = torch.cat((b, c), dim=-1).detach().requires_grad_()
    turned = x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    want = run((x, delta, a, b, c, d, h))
    got = run((turned, delta, a, *both.split(4, dim=-1), d, h))
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)
    ours, theirs = grads(got, (turned, both)), grads(want, (x, b, c))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], torch.cat(theirs[1:], dim=-1))


def test_pieces_give_what_the_whole_gives():
    x, delta, a, b, c, d, h = inputs(2, 21, 3, 4)
    whole, final = run((x, delta, a, b, c, d, h))
    pieces, state = [], h
    for i, j in itertools.pairwise((0, 1, 9, 9, 21)):
        y, state = run((x[:, i:j], delta[:, i:j], a, b[:, i:j], c[:, i:j], d, state))
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("dims", [(0,) * 7, (0, 0, None, None, 0, None, None), (1, 2, 1, 0, 0, 1, None)], ids=str)
def test_vmap_is_a_loop_over_models(dims):
    models = [inputs(2, 11, 6, 4, seed) for seed in range(3)]
    given = []
    for dim, each in zip(dims, zip(*models, strict=True), strict=True):
        tensor = each[0] if dim is None else torch.stack(each, dim)
        given.append(tensor.detach().requires_grad_())
    parts = [[t] * 3 if d is None else t.unbind(d) for t, d in zip(given, dims, strict=True)]
    got = torch.func.vmap(lambda *args: run(args), in_dims=dims)(*given)
    loop = [torch.stack(t) for t in zip(*(run(args) for args in zip(*parts, strict=True)), strict=True)]
    for a, b in zip(got, loop, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(grads(got, given), grads(loop, given), strict=True):
        near(a, b)


def test_it_compiles_whole():
    models = [inputs(2, 9, 5, 3, seed) for seed in range(2)]
    stacked = [torch.stack(t).detach() for t in zip(*models, strict=True)]

    def step(*args):
        y, h = torch.func.vmap(lambda *a: run(a))(*args)
        return y.square().mean() + h.sum()

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        given = [t.clone().requires_grad_() for t in stacked]
        loss = function(*given)
        results.append((loss, *torch.autograd.grad(loss, given)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("full", [True, False])
def test_the_ops_hold_what_torch_asks_of_them(full):
    given = inputs(2, 9, 5, 3, skip=full, state=full)
    arguments = [None if t is None else t.unsqueeze(0).detach() for t in given]
    needing = [None if t is None else t.clone().requires_grad_() for t in arguments]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton.forward, (*needing, True), test_utils=checks)
    y, last, kept = triton.forward(*arguments, True)
    back = (torch.ones_like(y), last if full else None, *arguments[:6], kept)
    torch.library.opcheck(triton.gradient, back, test_utils=checks)


def test_without_what_the_forward_pass_keeps_the_gradients_are_the_same():
    found = []
    for keep in (True, False):
        given = [t.unsqueeze(0).detach().requires_grad_() for t in inputs(2, 19, 5, 3)]
        found.append(torch.autograd.grad(triton.forward(*given, keep)[0].sum(), given))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_second_derivative_is_refused():
    arguments = inputs(2, 9, 5, 3)
    y, _ = run(arguments)
    (first,) = torch.autograd.grad(y.square().sum(), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.square().sum(), arguments[1])


def test_limits_are_named():
    arguments = [t.detach() for t in inputs(1, 2, 3, 257)]
    with pytest.raises(ValueError, match="N = 257: the Triton kernel takes 1 to 256"):
        run(arguments)
    arguments = [t.detach().double() for t in inputs(1, 2, 3, 4)]
    with pytest.raises(ValueError, match=r"x is torch\.float64: the Triton kernel takes"):
        run(arguments)
    assert not triton.takes(*arguments[:3])


def test_the_gradients_keep_their_dtypes():
    """As in training: x, B and C are narrow, the rest float32."""
    x, delta, a, b, c, d, h = inputs(2, 9, 5, 3)
    narrow = [t.detach().half().requires_grad_() for t in (x, b, c)]
    arguments = (narrow[0], delta, a, narrow[1], narrow[2], d, h)
    y, after = run(arguments)
    assert (y.dtype, after.dtype) == (torch.float16, torch.float32)
    wide = [t.detach().double().requires_grad_() for t in arguments]
    for t, got, want in zip(arguments, grads((y, after), arguments), grads(run(wide, "reference"), wide), strict=True):
        assert got.dtype == t.dtype
        near(got, want, 1e-3)
