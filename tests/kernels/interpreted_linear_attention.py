"""The Triton kernels of `linear_attention` in the interpreter, float32 against float64. The op's tests run them."""

import pytest
import torch

from zoology.kernels.linear_attention import linear_attention, triton


def inputs(batch, time, heads, f, dv, feature_map="taylor", decay=None, seed=0):
    """q, k, v, and log decays (H,) or (B, T, H) if `decay` is "head" or "token"."""
    rng = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, time, heads, f, generator=rng) for _ in range(2))
    v = torch.randn(batch, time, heads, dv, generator=rng)
    if feature_map == "identity":
        q, k = q.exp(), k.exp()
    given = [q, k, v]
    if decay is not None:
        given.append(-torch.rand((heads,) if decay == "head" else (batch, time, heads), generator=rng))
    return [x.requires_grad_() for x in given]


def op(q, k, v, log_decay=None, implementation="triton", **settings):
    return linear_attention(q, k, v, log_decay=log_decay, implementation=implementation, **settings)[0]


def results(given, cotangent=None, **settings):
    """The output and all gradients."""
    o = op(*given, **settings)
    if cotangent is None:
        cotangent = torch.randn(o.shape, generator=torch.Generator().manual_seed(1))
    return [o, *torch.autograd.grad(o, given, cotangent.to(o.dtype), materialize_grads=True)]


def exact(given, cotangent=None, **settings):
    wide = [x.detach().double().requires_grad_() for x in given]
    return results(wide, cotangent, implementation="reference", **settings)


def near(got, want, bound=3e-6, size=None):
    """Within `bound` of the size of what is wanted, or of another size where that cancels to nothing."""
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        a, b = a.detach(), b.detach().double()
        assert a.shape == b.shape
        assert float((a.double() - b).norm()) <= bound * max(float(b.norm()), size or 0.0) + 1e-12


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """What a kernel leaves unwritten is NaN."""
    empty = torch.Tensor.new_empty

    def new_empty(self, *args, **kwargs):
        out = empty(self, *args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)


CASES = pytest.mark.parametrize(
    ("feature_map", "normalise", "decay"),
    [
        ("taylor", True, None),
        ("taylor", False, "token"),
        ("identity", True, "head"),
        ("identity", True, "token"),
        ("identity", False, None),
        ("identity", False, "token"),
    ],
    ids=str,
)


@CASES
@pytest.mark.parametrize("shape", [(0, 5, 1, 4, 3), (2, 0, 1, 4, 3), (2, 9, 2, 4, 3), (1, 75, 2, 5, 20)], ids=str)
def test_outputs_and_gradients(shape, feature_map, normalise, decay):
    given = inputs(*shape, feature_map, decay)
    settings = {"feature_map": feature_map, "normalise": normalise}
    near(results(given, **settings), exact(given, **settings))


def test_one_token_gives_its_value():
    given = inputs(2, 1, 2, 4, 3)
    o, dq, dk, dv = results(given, torch.ones(2, 1, 2, 3))
    near([o, dv], [given[2], torch.ones_like(dv)])
    near([dq, dk], [torch.zeros_like(dq)] * 2, size=1.0)


@pytest.mark.parametrize(("f", "dv"), [(1, 1), (17, 33), (40, 150)], ids=str)
def test_any_width(f, dv):
    given = inputs(1, 20, 1, f, dv, decay="token")
    near(results(given, feature_map="taylor"), exact(given, feature_map="taylor"))


def test_both_ways_to_the_gradients_agree():
    """One program for a short chunk, or one for its queries and one for its keys, whatever their blocks."""
    q, k, v, g = (x.detach() for x in inputs(2, 30, 2, 5, 7, decay="token"))
    o, den = triton.forward(q, k, v, g, True, True, 1e-6)
    size = (30, 5, 7, torch.float32)
    assert triton.whole_blocks(*size) is not None
    ways = [(triton.whole_blocks(*size), None, None)]
    for rows, cols in ((16, 32), (32, 16), (16, 16)):
        ways.append((None, *[triton.Blocks(rows, cols, 4, 1)] * 2))
    got = [triton.launch_backward(v, q, k, v, g, o, den, True, True, 1e-6, way) for way in ways]
    for other in got[1:]:
        near(other, got[0])


def test_a_decay_keeps_its_digits_however_strong_it_is():
    """Tokens that forget everything stand among tokens that forget nothing."""
    q, k, v, _ = inputs(1, 200, 1, 4, 4, "identity", "token")
    g = torch.full((1, 200, 1), -1e-3)
    g[:, ::20] = -30000.0
    given = [q, k, v, g.requires_grad_()]
    settings = {"feature_map": "identity", "normalise": False}
    near(results(given, **settings), exact(given, **settings))


def test_strided_inputs_are_read_where_they_lie():
    base = torch.randn(2, 20, 30, generator=torch.Generator().manual_seed(0))
    packed = base.clone().requires_grad_()
    q, k, v = (x.unflatten(-1, (2, -1)) for x in packed.split((8, 8, 14), -1))
    assert not q.is_contiguous()
    o = op(q, k, v, feature_map="taylor")
    (got,) = torch.autograd.grad(o.square().sum(), packed)
    wide = base.double().requires_grad_()
    o = op(
        *(x.unflatten(-1, (2, -1)) for x in wide.split((8, 8, 14), -1)),
        feature_map="taylor",
        implementation="reference",
    )
    near([got], torch.autograd.grad(o.square().sum(), wide))


def test_a_row_with_nan_leaves_the_others_as_they_were():
    given = inputs(2, 20, 2, 4, 5, decay="token")
    clean = results(given, feature_map="taylor")
    with torch.no_grad():
        for x in given[:3]:
            x[1, 7] = torch.nan
    poisoned = results(given, feature_map="taylor")
    for a, b in zip(clean, poisoned, strict=True):
        assert torch.equal(a[0], b[0])
    assert poisoned[0][1, 7:].isnan().all()


@pytest.mark.parametrize("decay", [None, "head", "token"])
@pytest.mark.parametrize("dims", [(0, 0, 0, 0), (0, None, 0, None), (None, 0, 0, 0)], ids=str)
def test_vmap_is_a_loop(dims, decay):
    models = [inputs(2, 9, 2, 4, 5, decay=decay, seed=seed) for seed in range(3)]
    count = len(models[0])
    given, parts = [], []
    for i, dim in zip(range(count), dims, strict=False):
        stacked = torch.stack([m[i].detach() for m in models]) if dim == 0 else models[0][i].detach().clone()
        given.append(stacked.requires_grad_())
        parts.append(given[-1].unbind(0) if dim == 0 else [given[-1]] * 3)
    mapped = torch.func.vmap(lambda *x: op(*x, feature_map="taylor"), in_dims=dims[:count])(*given)
    loop = torch.stack([op(*x, feature_map="taylor") for x in zip(*parts, strict=True)])
    assert torch.equal(mapped, loop)
    cotangent = torch.randn(loop.shape, generator=torch.Generator().manual_seed(1))
    near(*(torch.autograd.grad(x, given, cotangent) for x in (mapped, loop)))


@pytest.mark.parametrize("dim", [None, 0])
def test_vmap_of_the_gradient_is_a_loop(dim):
    """What all replicas share is not summed over them."""
    models = [[x.detach() for x in inputs(2, 9, 2, 4, 5, decay="token", seed=seed)] for seed in range(3)]
    q, k, v, g = (torch.stack(x) for x in zip(*models, strict=True))
    g = g if dim == 0 else g[0, :1]
    options = (True, True, 1e-6)

    def gradients(q, k, v, g):
        return triton.backward(v, q, k, v, g, *triton.forward(q, k, v, g, *options), *options)

    got = torch.func.vmap(gradients, in_dims=(0, 0, 0, dim))(q, k, v, g)
    loop = [gradients(q[i], k[i], v[i], g if dim is None else g[i]) for i in range(3)]
    near(got, [torch.stack(x) for x in zip(*loop, strict=True)], bound=1e-6)


def test_vmap_in_vmap():
    given = [x.detach().unflatten(0, (2, 3, 1)) for x in inputs(6, 9, 2, 4, 5, decay="token")]
    inner = torch.func.vmap(lambda *x: op(*x, feature_map="taylor"))
    got = torch.func.vmap(inner)(*given)
    assert torch.equal(got.flatten(0, 2), op(*(x.flatten(0, 2) for x in given), feature_map="taylor"))


def test_it_compiles_whole():
    given = [x.detach().unsqueeze(1) for x in inputs(2, 9, 2, 4, 5, decay="token")]

    def step(*given):
        return torch.func.vmap(lambda *x: op(*x, feature_map="taylor"))(*given).square().sum()

    grads = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = [x.clone().requires_grad_() for x in given]
        grads.append(torch.autograd.grad(function(*leaves), leaves))
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("decay", [None, "token"])
def test_the_ops_hold_what_torch_asks_of_them(decay):
    given = [*inputs(2, 9, 2, 4, 5, decay=decay), None][:4]
    options = (True, True, 1e-6)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton.forward, (*given, *options), test_utils=checks)
    plain = [x if x is None else x.detach() for x in given]
    o, den = triton.forward(*plain, *options)
    torch.library.opcheck(triton.backward, (torch.ones_like(o), *plain, o, den, *options))


def test_a_second_derivative_is_refused():
    given = inputs(1, 9, 1, 4, 5)
    o = op(*given, feature_map="taylor")
    (first,) = torch.autograd.grad(o.sum(), given[0], create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        torch.autograd.grad(first.square().sum(), given[1])


def test_the_check_of_the_compiler_is_of_what_the_kernels_compute():
    for decayed, taylor, normalise in ((True, True, True), (True, False, False), (False, False, True)):
        for time in (20, 40):
            errors = triton._errors((5, time, 2, 4), 6, torch.float32, torch.device("cpu"), decayed, taylor, normalise)
            assert len(errors) == 4 + decayed
            assert max(errors.values()) < 3e-6


def test_limits_are_named():
    q, k, v = inputs(1, 3, 1, 257, 4)
    with pytest.raises(ValueError, match="f = 257: the Triton kernel takes 1 to 256"):
        op(q, k, v)
    q, k, v = (x.double() for x in inputs(1, 3, 1, 4, 4))
    with pytest.raises(ValueError, match=r"torch\.float64: the Triton kernel takes"):
        op(q, k, v)
