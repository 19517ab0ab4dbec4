"""The Triton kernels of `wkv` in the interpreter, float32 against float64. The op's tests run them."""

import itertools

import pytest
import torch
from errors import near

from zoology.kernels.wkv import WKVState, wkv

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")


def inputs(batch, time, width, size=1.0, seed=0, state=True):
    """k, v, w, u, and a state's n, d, p."""
    rng = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(batch, time, width, generator=rng) for _ in range(2))
    n, p = (torch.randn(batch, width, generator=rng) for _ in range(2))
    d = torch.rand(batch, width, generator=rng) + 0.5
    made = [size * k, v, torch.logspace(-3, 0.5, width), torch.randn(width, generator=rng)]
    made = [t.requires_grad_() for t in made]
    return [*made, n.requires_grad_(), d.requires_grad_(), size * p] if state else [*made, None, None, None]


def run(arguments, implementation="triton"):
    state = None if arguments[4] is None else WKVState(*arguments[4:])
    y, after = wkv(*arguments[:4], state, implementation=implementation)
    return y, *after


def grads(outputs, wanted, which):
    rng = torch.Generator().manual_seed(1)
    pulls = [torch.randn(t.shape, generator=rng).to(t.dtype) for t in outputs]
    found = torch.autograd.grad([outputs[i] for i in which], wanted, [pulls[i] for i in which], allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]


def compare(arguments, which=(0, 1, 2), bound=2e-6):
    """Outputs and gradients of both implementations; the reference's in float64."""
    wide = [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in arguments]
    want, got = run(wide, "reference"), run(arguments)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32
        near(a, b, bound)
    ours, theirs = ([t for t in of if t is not None and t.requires_grad] for of in (arguments, wide))
    for a, b in zip(grads(got, ours, which), grads(want, theirs, which), strict=True):
        near(a, b, bound)


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize(
    ("batch", "time", "width"), [(2, 1, 5), (1, 8, 1), (3, 17, 40), (2, 9, 130), (5, 23, 3)], ids=str
)
def test_outputs_and_gradients(batch, time, width, state):
    compare(inputs(batch, time, width, state=state))


def test_exponents_do_not_drift_along_many_tokens():
    compare(inputs(2, 700, 12))


@pytest.mark.parametrize("size", [1e-3, 60.0], ids=["nearly equal keys", "extreme keys"])
def test_keys_of_any_size(size):
    compare(inputs(2, 40, 6, size), bound=1e-5)


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (1, 2)], ids=["y", "n", "d", "state"])
def test_what_only_some_outputs_ask_for(which):
    compare(inputs(2, 11, 6), which)


@pytest.mark.parametrize(("batch", "time"), [(0, 4), (2, 0)])
def test_nothing_in_nothing_out(batch, time):
    arguments = inputs(batch, time, 5)
    outputs = run(arguments)
    assert [t.shape for t in outputs] == [(batch, time, 5), *[(batch, 5)] * 3]
    for given, g in zip(arguments[:6], grads(outputs, arguments[:6], (0, 1)), strict=True):
        assert g.shape == given.shape
        assert batch or not g.any()


def test_pieces_give_what_the_whole_gives():
    k, v, w, u, *state = inputs(2, 21, 3)
    whole, *final = run((k, v, w, u, *state))
    pieces = []
    for i, j in itertools.pairwise((0, 1, 9, 9, 21)):
        y, *state = run((k[:, i:j], v[:, i:j], w, u, *state))
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(state, final)


def test_any_layout():
    k, v, w, u, *state = inputs(2, 13, 6)
    both = torch.cat((k, v), dim=-1).detach().requires_grad_()
    want, got = run((k, v, w, u, *state)), run((*both.split(6, dim=-1), w, u, *state))
    assert all(map(torch.equal, got, want))
    turned = k.detach().transpose(1, 2).contiguous().transpose(1, 2)
    assert all(map(torch.equal, run((turned, v, w, u, *state)), want))
    ours, theirs = grads(got, (both,), (0,)), grads(want, (k, v), (0,))
    assert torch.equal(ours[0], torch.cat(theirs, dim=-1))


@pytest.mark.parametrize("dims", [(0,) * 7, (0, 0, None, 0, None, None, 0), (1, 2, 1, None, 1, 0, None)], ids=str)
def test_vmap_is_a_loop_over_models(dims):
    models = [inputs(2, 11, 6, seed=seed) for seed in range(3)]
    given = []
    for dim, each in zip(dims, zip(*models, strict=True), strict=True):
        tensor = each[0] if dim is None else torch.stack(each, dim)
        given.append(tensor.detach().requires_grad_(each[0].requires_grad))
    parts = [[t] * 3 if d is None else t.unbind(d) for t, d in zip(given, dims, strict=True)]
    got = torch.func.vmap(lambda *args: run(args), in_dims=dims)(*given)
    loop = [torch.stack(t) for t in zip(*(run(args) for args in zip(*parts, strict=True)), strict=True)]
    for a, b in zip(got, loop, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(grads(got, given[:6], (0, 1, 2)), grads(loop, given[:6], (0, 1, 2)), strict=True):
        near(a, b)


def test_it_compiles_whole():
    models = [inputs(2, 9, 5, seed=seed) for seed in range(2)]
    stacked = [torch.stack(t).detach() for t in zip(*models, strict=True)]

    def step(*args):
        y, n, d, _ = torch.func.vmap(lambda *a: run(a))(*args)
        return y.square().mean() + (n / d).sum()

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        given = [t.clone().requires_grad_(i < 6) for i, t in enumerate(stacked)]
        loss = function(*given)
        results.append((loss, *torch.autograd.grad(loss, given[:6])))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("state", [True, False])
def test_the_ops_hold_what_torch_asks_of_them(state):
    from zoology.kernels.wkv import triton

    given = inputs(2, 9, 5, state=state)
    arguments = [None if t is None else t.unsqueeze(0).detach() for t in given]
    needing = [t if t is None or i > 5 else t.clone().requires_grad_() for i, t in enumerate(arguments)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton.forward, (*needing, True), test_utils=checks)
    y, n, d, p, kept = triton.forward(*arguments, True)
    pulls = (n, d) if state else (None, None)
    back = (torch.ones_like(y), *pulls, *arguments[:4], arguments[6], p, kept)
    torch.library.opcheck(triton.gradient, back, test_utils=checks)


def test_without_what_the_forward_pass_keeps_the_gradients_are_the_same():
    from zoology.kernels.wkv import triton

    found = []
    for keep in (True, False):
        given = [t.unsqueeze(0).detach().requires_grad_(i < 6) for i, t in enumerate(inputs(2, 19, 5))]
        found.append(torch.autograd.grad(triton.forward(*given, keep)[0].sum(), given[:6]))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_second_derivative_is_refused():
    arguments = inputs(2, 9, 5)
    (first,) = torch.autograd.grad(run(arguments)[0].square().sum(), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.square().sum(), arguments[1])


def test_limits_are_named():
    arguments = [t.detach().double() for t in inputs(1, 2, 3)]
    with pytest.raises(ValueError, match=r"k is torch\.float64: the Triton kernel takes"):
        run(arguments)


def test_the_gradients_keep_their_dtypes():
    """As in training: k and v are narrow, the rest float32."""
    arguments = inputs(2, 9, 5)
    arguments[:2] = (t.detach().half().requires_grad_() for t in arguments[:2])
    outputs = run(arguments)
    assert [t.dtype for t in outputs] == [torch.float16, *[torch.float32] * 3]
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in arguments]
    ours = grads(outputs, arguments[:6], (0, 1))
    for t, got, want in zip(arguments, ours, grads(run(wide, "reference"), wide[:6], (0, 1)), strict=False):
        assert got.dtype == t.dtype
        near(got, want, 1e-3)
