"""The Triton kernels of `linear_attention` in the interpreter, float32 against float64. The op's tests run them."""

import pytest
import torch

from zoology.architectures.base import ContextMixer, build_mixer
from zoology.kernels import linear_attention as package
from zoology.kernels.linear_attention import LinearAttentionState, launch, linear_attention, triton

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")


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


def carried(given, cotangents, implementation, feature_map, normalise, **settings):
    """As `results`, from a state and to one: q, k, v, kv, z and perhaps log decays."""
    q, k, v, kv, z, *decay = given
    state = LinearAttentionState(kv, z if normalise else z[..., :0])
    outputs = linear_attention(
        q, k, v, feature_map=feature_map, normalise=normalise, state=state, log_decay=decay[0] if decay else None,
        output_state=True, implementation=implementation, **settings,
    )  # fmt: skip
    outputs = [outputs[0], outputs[1].kv, *([outputs[1].normaliser] if normalise else [])]
    pulls = [c.to(x.dtype) for c, x in zip(cotangents, outputs, strict=False)]
    return [*outputs, *torch.autograd.grad(outputs, given, pulls, materialize_grads=True)]


@CASES
@pytest.mark.parametrize(
    ("shape", "chunk", "segments"),
    [
        ((2, 0, 1, 4, 3), 4, 1),
        ((1, 1, 1, 4, 3), 4, 1),
        ((2, 9, 2, 5, 7), 4, 1),
        ((1, 11, 2, 4, 3), 4, 3),
        ((1, 40, 1, 4, 140), None, 1),
    ],
    ids=str,
)
def test_from_a_state_to_a_state(shape, chunk, segments, feature_map, normalise, decay, monkeypatch):
    monkeypatch.setattr(launch, "segments", lambda *_: segments)
    batch, _, heads, f, dv = shape
    q, k, v, *rest = inputs(*shape, feature_map, decay)
    nf = launch.width(f, feature_map == "taylor")
    rng = torch.Generator().manual_seed(2)
    kv, z = torch.randn(batch, heads, nf, dv, generator=rng), torch.rand(batch, heads, nf, generator=rng) + 1
    if feature_map == "taylor":
        z[..., 0] += 40  # or the weights' sum would pass through 0
    given = [q, k, v, kv.requires_grad_(), z.requires_grad_(), *rest]
    cotangents = [torch.randn(x.shape, generator=rng) for x in (v, kv, z)]
    settings = {"feature_map": feature_map, "normalise": normalise, "chunk_size": chunk}
    wide = [x.detach().double().requires_grad_() for x in given]
    # A head's one decay has a gradient that is a sum over all tokens, of either sign.
    bound = 3e-5 if decay == "head" else 3e-6
    near(carried(given, cotangents, "triton", **settings), carried(wide, cotangents, "reference", **settings), bound)


@CASES
def test_chunks_and_segments_change_no_number(feature_map, normalise, decay, monkeypatch):
    given = inputs(1, 50, 1, 5, 6, feature_map, decay)
    settings = {"feature_map": feature_map, "normalise": normalise}
    want = exact(given, **settings)
    near(results(given, chunk_size=32, **settings), want)
    monkeypatch.setattr(launch, "segments", lambda *_: 3)
    near(results(given, chunk_size=8, **settings), want)


def test_more_features_than_are_made_at_a_time():
    given = inputs(1, 20, 1, 8, 5)
    assert launch.width(8, True) > launch.feature_tile(launch.width(8, True))
    near(results(given, feature_map="taylor", chunk_size=16), exact(given, feature_map="taylor"))
    given = inputs(1, 20, 1, 40, 5, "identity")
    near(results(given, chunk_size=16), exact(given))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_gradients_of_one_output_alone(which):
    """Of what nothing depends on there is no gradient, and it counts as 0."""
    given = [x.detach() for x in inputs(1, 9, 1, 4, 5)]
    outputs = []
    for implementation, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in given]
        o, state = linear_attention(
            *leaves, feature_map="taylor", chunk_size=4, output_state=True, implementation=implementation
        )
        outputs.append(torch.autograd.grad((o, *state)[which].square().sum(), leaves, materialize_grads=True))
    near(*outputs)


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
    options = launch.Options(True, True, 1e-6, 30)
    o, den, _, _ = launch.launch_forward(q, k, v, g, None, None, options, False)
    size = (30, 5, 7, torch.float32)
    assert launch.whole_blocks(*size) is not None
    ways = [(launch.whole_blocks(*size), None, None)]
    for rows, cols in ((16, 32), (32, 16), (16, 16)):
        ways.append((None, *[launch.Blocks(rows, cols, 4, 1)] * 2))
    none = (None, None)
    got = [launch.launch_backward(v, q, k, v, g, *none, o, den, None, *none, options, way)[:4] for way in ways]
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


def test_vmap_carries_the_state():
    q, k, v, g = (x.detach().unflatten(0, (3, 2)) for x in inputs(6, 7, 1, 4, 5, decay="token"))

    def two(q, k, v, g):
        settings = {"feature_map": "taylor", "chunk_size": 4, "implementation": "triton"}
        first, state = linear_attention(q[:, :4], k[:, :4], v[:, :4], log_decay=g[:, :4], output_state=True, **settings)
        second, _ = linear_attention(q[:, 4:], k[:, 4:], v[:, 4:], log_decay=g[:, 4:], state=state, **settings)
        return torch.cat((first, second), 1)

    grads = []
    for function in (torch.func.vmap(two), lambda *x: torch.stack([two(*y) for y in zip(*x, strict=True)])):
        leaves = [x.clone().requires_grad_() for x in (q, k, v, g)]
        o = function(*leaves)
        grads.append([o, *torch.autograd.grad(o.square().sum(), leaves)])
    near(*grads)
    want = exact([x.flatten(0, 1).requires_grad_() for x in (q, k, v, g)], feature_map="taylor")
    near([grads[0][0].flatten(0, 1)], want[:1])


@pytest.mark.parametrize("dim", [None, 0])
def test_vmap_of_the_gradient_is_a_loop(dim):
    """What all replicas share is not summed over them."""
    models = [[x.detach() for x in inputs(2, 9, 2, 4, 5, decay="token", seed=seed)] for seed in range(3)]
    q, k, v, g = (torch.stack(x) for x in zip(*models, strict=True))
    g = g if dim == 0 else g[0, :1]
    options = (True, True, 1e-6, 9)

    def gradients(q, k, v, g):
        none = (None, None)
        o, den, _, _, *past = triton.forward(q, k, v, g, *none, *options, False, True)
        return triton.backward(v, q, k, v, g, *none, o, den, *past, *none, *options)[:4]

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


@pytest.mark.parametrize(("decay", "carries"), [(None, False), ("token", True)], ids=str)
def test_the_ops_hold_what_torch_asks_of_them(decay, carries):
    given = [*inputs(1, 5, 1, 4, 5, decay=decay), None][:4]
    state = [torch.zeros(1, 1, 15, 5), torch.zeros(1, 1, 15)] if carries else [None, None]
    options = (True, True, 1e-6, 4)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton.forward, (*given, *state, *options, carries, True), test_utils=checks)
    plain = [x if x is None else x.detach() for x in given]
    o, den, _, _, *past = triton.forward(*plain, *state, *options, carries, True)
    torch.library.opcheck(triton.backward, (torch.ones_like(o), *plain, *state, o, den, *past, *state, *options))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("linear-attention", {"feature_dim": 4}),
        ("linear-attention", {"feature_dim": 4, "feature_map": "hedgehog", "num_heads": 2}),
        ("prefix-linear-attention", {"feature_dim": 4}),
        ("retnet", {}),
        ("mamba2", {"d_state": 4}),
    ],
    ids=str,
)
def test_mixers_run_through_the_kernels(name, settings, monkeypatch):
    """Whole, and in two pieces, as a GPU would run them."""
    torch.manual_seed(0)
    mixer = build_mixer(name, 16, settings)
    x = torch.randn(2, 9, 16)
    context = (5,) if isinstance(mixer, ContextMixer) else ()

    def run():
        x.requires_grad_()
        first = mixer.read_context(x[:, :5]) if context else mixer.prefill(x[:, :5], mixer.init_state(2))
        second, _ = mixer.prefill(x[:, 5:], first[1])
        whole = mixer(x, *context)
        return [whole, first[0], second, *torch.autograd.grad(whole.square().sum() + second.sum(), x)]

    want, calls = run(), []
    monkeypatch.setattr(package, "choose", lambda *_: calls.append("triton") or "triton")
    near(run(), [y.double() for y in want], bound=1e-5)
    assert len(calls) == 3


def test_a_second_derivative_is_refused():
    given = inputs(1, 9, 1, 4, 5)
    o = op(*given, feature_map="taylor")
    (first,) = torch.autograd.grad(o.sum(), given[0], create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        torch.autograd.grad(first.square().sum(), given[1])


def test_the_check_of_the_compiler_is_of_what_the_kernels_compute():
    for time, chunk, carries in ((20, 20, False), (40, 40, False), (20, 16, True), (21, 8, False)):
        options = launch.Options(not carries, time != 40, 1e-6, chunk)
        args = (torch.float32, torch.device("cpu"), time < 40, carries, options)
        errors = triton._errors((5, time, 1, 4), 6, *args)
        assert len(errors) == 4 + (time < 40)
        assert max(errors.values()) < 3e-6


def test_short_sequences_are_one_chunk():
    """Those of the sweeps are; the wider the features, the longer."""
    assert triton.chunk_of(256, 16, 16, False, False, None) == 256
    assert triton.chunk_of(900, 16, 64, True, False, None) == 900
    assert triton.chunk_of(900, 16, 64, False, False, None) == 128
    assert triton.chunk_of(900, 16, 64, True, True, None) == 256
    assert triton.chunk_of(9000, 64, 64, True, False, None) == 1024
    assert triton.chunk_of(0, 16, 64, True, True, None) == 1
    assert triton.chunk_of(9000, 256, 64, True, False, 8000) == 2048


def test_limits_are_named():
    q, k, v = inputs(1, 3, 1, 257, 4)
    with pytest.raises(ValueError, match="f = 257: the Triton kernel takes 1 to 256"):
        op(q, k, v)
    q, k, v = (x.double() for x in inputs(1, 3, 1, 4, 4))
    with pytest.raises(ValueError, match=r"torch\.float64: the Triton kernel takes"):
        op(q, k, v)
