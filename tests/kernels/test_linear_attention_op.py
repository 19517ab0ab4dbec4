"""The linear attention op against its definition, written out in float64."""

import itertools
import math

import pytest
import torch

from zoology.kernels.linear_attention import (
    LinearAttentionState,
    linear_attention,
    linear_attention_step,
    taylor_features,
)


def inputs(batch, time, heads, f, dv, feature_map, dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, time, heads, f, generator=rng, dtype=torch.float64) for _ in range(2))
    v = torch.randn(batch, time, heads, dv, generator=rng, dtype=torch.float64)
    if feature_map == "identity":
        q, k = q.exp(), k.exp()
    return tuple(x.to(dtype).requires_grad_() for x in (q, k, v))


def definition(q, k, v, feature_map, normalise, eps=1e-6, log_decay=None):
    """Token by token and pair by pair. `log_decay` (B, T, H): a weight fades by each token after its own."""
    scores = torch.einsum("bthf,bshf->bhts", q, k)
    if feature_map == "taylor":
        scores = scores / math.sqrt(q.shape[-1])
        scores = 1 + scores + scores**2 / 2
    time = q.shape[1]
    rows = []
    for t in range(time):
        w = scores[:, :, t, : t + 1]
        if log_decay is not None:
            fades = [log_decay[:, s + 1 : t + 1].sum(1).exp() for s in range(t + 1)]
            w = w * torch.stack(fades, dim=-1)
        o = torch.einsum("bhs,bshd->bhd", w, v[:, : t + 1])
        rows.append(o / (w.sum(-1, keepdim=True) + eps) if normalise else o)
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("f", [1, 2, 3, 4, 7, 16])
def test_taylor_features_are_packed_and_exact(f):
    rng = torch.Generator().manual_seed(f)
    q, k = (torch.randn(50, f, generator=rng, dtype=torch.float64) * 3 for _ in range(2))
    phi_q, phi_k = taylor_features(q), taylor_features(k)
    assert phi_q.shape == (50, (f + 1) * (f + 2) // 2)
    s = (q * k).sum(-1) / math.sqrt(f)
    torch.testing.assert_close((phi_q * phi_k).sum(-1), 1 + s + s**2 / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalise", [True, False], ids=["normalised", "sum"])
@pytest.mark.parametrize("feature_map", ["taylor", "identity"])
@pytest.mark.parametrize(
    ("time", "chunk"),
    [(1, 4), (3, 4), (4, 4), (5, 4), (8, 4), (13, 4), (13, 1), (13, 256)],
    ids=lambda n: str(n),
)
def test_outputs_and_gradients_follow_the_definition(time, chunk, feature_map, normalise):
    qkv = inputs(2, time, 3, 5, 7, feature_map)
    o, state = linear_attention(*qkv, feature_map=feature_map, normalise=normalise, chunk_size=chunk)
    expected = definition(*qkv, feature_map, normalise)
    assert state is None
    torch.testing.assert_close(o, expected, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn(o.shape, generator=torch.Generator().manual_seed(1), dtype=o.dtype)
    for got, want in zip(
        torch.autograd.grad(o, qkv, cotangent), torch.autograd.grad(expected, qkv, cotangent), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("normalise", [True, False], ids=["normalised", "sum"])
@pytest.mark.parametrize("feature_map", ["taylor", "identity"])
@pytest.mark.parametrize("cuts", [(0, 13), (0, 5, 13), (0, 1, 2, 9, 9, 13), tuple(range(14))], ids=str)
def test_pieces_and_steps_give_what_the_whole_gives(cuts, feature_map, normalise):
    q, k, v = inputs(2, 13, 2, 3, 4, feature_map)
    settings = {"feature_map": feature_map, "normalise": normalise}
    whole, final = linear_attention(q, k, v, output_state=True, **settings)
    state, pieces = None, []
    for start, stop in itertools.pairwise(cuts):
        piece = (x[:, start:stop] for x in (q, k, v))
        o, state = linear_attention(*piece, state=state, chunk_size=3, output_state=True, **settings)
        pieces.append(o)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-10)

    width = 10 if feature_map == "taylor" else 3
    state = LinearAttentionState(
        torch.zeros(2, 2, width, 4, dtype=torch.float64),
        torch.zeros(2, 2, width if normalise else 0, dtype=torch.float64),
    )
    for t in range(13):
        o, state = linear_attention_step(q[:, t], k[:, t], v[:, t], state, **settings)
        torch.testing.assert_close(o, whole[:, t], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [2, 256])
def test_gradients_flow_through_the_state(chunk):
    q, k, v = inputs(1, 9, 2, 3, 4, "taylor")
    cotangent = torch.randn(1, 9, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    want = torch.autograd.grad(definition(q, k, v, "taylor", True), (q, k, v), cotangent)
    settings = {"feature_map": "taylor", "chunk_size": chunk}
    first, state = linear_attention(q[:, :4], k[:, :4], v[:, :4], output_state=True, **settings)
    second, _ = linear_attention(q[:, 4:], k[:, 4:], v[:, 4:], state=state, **settings)
    got = torch.autograd.grad(torch.cat((first, second), dim=1), (q, k, v), cotangent)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def decays(kind, batch, time, heads, strength=1.0, dtype=torch.float64):
    """Log decays, fixed for each head or for each token too, with the shape that the definition reads."""
    rng = torch.Generator().manual_seed(7)
    shape = (heads,) if kind == "fixed" else (batch, time, heads)
    g = (-strength * torch.rand(shape, generator=rng, dtype=torch.float64)).to(dtype).requires_grad_()
    return g, g.expand(batch, time, heads)


@pytest.mark.parametrize("normalise", [True, False], ids=["normalised", "sum"])
@pytest.mark.parametrize("feature_map", ["taylor", "identity"])
@pytest.mark.parametrize("kind", ["fixed", "token"])
@pytest.mark.parametrize(("time", "chunk"), [(1, 4), (4, 4), (13, 4), (13, 256), (77, 2)], ids=str)
def test_decayed_outputs_and_gradients_follow_the_definition(time, chunk, kind, feature_map, normalise):
    qkv = inputs(2, time, 3, 4, 5, feature_map)
    g, each = decays(kind, 2, time, 3)
    settings = {"feature_map": feature_map, "normalise": normalise}
    o, _ = linear_attention(*qkv, log_decay=g, chunk_size=chunk, **settings)
    expected = definition(*qkv, **settings, log_decay=each)
    torch.testing.assert_close(o, expected, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn(o.shape, generator=torch.Generator().manual_seed(1), dtype=o.dtype)
    got, want = (torch.autograd.grad(y, (*qkv, g), cotangent, materialize_grads=True) for y in (o, expected))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("normalise", [True, False], ids=["normalised", "sum"])
@pytest.mark.parametrize("feature_map", ["taylor", "identity"])
@pytest.mark.parametrize("kind", ["fixed", "token"])
def test_decayed_pieces_and_steps_give_what_the_whole_gives(kind, feature_map, normalise):
    q, k, v = inputs(2, 13, 2, 3, 4, feature_map)
    g, _ = decays(kind, 2, 13, 2)
    settings = {"feature_map": feature_map, "normalise": normalise}
    whole, final = linear_attention(q, k, v, log_decay=g, output_state=True, **settings)
    for cuts in ((0, 5, 13), (0, 1, 2, 9, 9, 13)):
        state, pieces = None, []
        for start, stop in itertools.pairwise(cuts):
            piece = (x[:, start:stop] for x in (q, k, v))
            part = g if kind == "fixed" else g[:, start:stop]
            o, state = linear_attention(
                *piece, log_decay=part, state=state, chunk_size=3, output_state=True, **settings
            )
            pieces.append(o)
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-10)
    _, state = linear_attention(q[:, :0], k[:, :0], v[:, :0], output_state=True, **settings)
    for t in range(13):
        part = g if kind == "fixed" else g[:, t]
        o, state = linear_attention_step(q[:, t], k[:, t], v[:, t], state, log_decay=part, **settings)
        torch.testing.assert_close(o, whole[:, t], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-10)


def test_no_decay_and_a_decay_of_one_are_the_same():
    qkv = inputs(2, 40, 2, 3, 4, "taylor")
    plain, _ = linear_attention(*qkv, feature_map="taylor")
    for g in (torch.zeros(2), torch.zeros(2, 40, 2)):
        decayed, _ = linear_attention(*qkv, feature_map="taylor", log_decay=g.double(), chunk_size=16)
        torch.testing.assert_close(decayed, plain, rtol=1e-12, atol=1e-12)


def test_a_decay_keeps_float32_exact_however_strong_it_is():
    """Tokens that forget everything stand among tokens that forget nothing, over 4096 of them."""
    qkv = inputs(1, 4096, 2, 4, 4, "identity", torch.float32)
    rng = torch.Generator().manual_seed(3)
    g = -torch.rand(1, 4096, 2, generator=rng) * 1e-3
    g[:, torch.randperm(4096, generator=rng)[:400]] = -3000.0
    g = g.requires_grad_()
    o, _ = linear_attention(*qkv, normalise=False, log_decay=g)
    exact = [x.detach().double().requires_grad_() for x in (*qkv, g)]
    expected, _ = linear_attention(*exact[:3], normalise=False, log_decay=exact[3])
    assert (o - expected).abs().max() < 2e-6 * expected.abs().max()
    cotangent = torch.randn(o.shape, generator=rng)
    got = torch.autograd.grad(o, (*qkv, g), cotangent)
    want = torch.autograd.grad(expected, exact, cotangent.double())
    for one, other in zip(got, want, strict=True):
        assert (one - other).abs().max() < 2e-5 * other.abs().max()


def test_a_decay_of_another_shape_is_named():
    q, k, v = inputs(2, 4, 3, 3, 4, "identity")
    with pytest.raises(ValueError, match=r"log_decay has the shape \(4, 3\): must be \(H,\) or \(B, T, H\), \(3,\) or"):
        linear_attention(q, k, v, log_decay=torch.zeros(4, 3))


def test_autocast_leaves_the_sums_wide():
    """Matrix products are narrow there; 300 of them are added in float32."""
    q, k, v = inputs(2, 300, 2, 4, 4, "identity", torch.float32)
    g, _ = decays("token", 2, 300, 2, 0.01, torch.float32)
    _, exact = linear_attention(q, k, v, log_decay=g, normalise=False, output_state=True)
    with torch.autocast("cpu", torch.bfloat16):
        _, state = linear_attention(q, k, v, log_decay=g, normalise=False, output_state=True)
    state, exact = state.kv, exact.kv
    assert state.dtype == torch.float32
    assert (state - exact).abs().max() < 5e-3 * exact.abs().max()


def test_no_token_leaves_the_state_as_it_was():
    q, k, v = inputs(2, 0, 1, 3, 4, "taylor")
    o, state = linear_attention(q, k, v, feature_map="taylor", output_state=True)
    assert o.shape == (2, 0, 1, 4)
    assert state.kv.shape == (2, 1, 10, 4)
    assert not state.kv.any()
    assert not state.normaliser.any()


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 6e-3), (torch.float16, 1e-3)])
def test_low_precision_loses_only_what_its_inputs_and_output_lose(dtype, error):
    """Sums over 300 tokens are taken wide: the error is that of one rounding, not of 300."""
    qkv = inputs(2, 300, 1, 8, 8, "taylor", dtype)
    o, state = linear_attention(*qkv, feature_map="taylor", chunk_size=64, output_state=True)
    expected = definition(*(x.double() for x in qkv), "taylor", True)
    assert o.dtype == dtype
    assert state.kv.dtype == state.normaliser.dtype == torch.float32
    assert (o.double() - expected).abs().max() < error * expected.abs().max()


def test_arguments_are_left_alone():
    q, k, v = (x.detach() for x in inputs(1, 5, 1, 3, 4, "taylor"))
    _, state = linear_attention(q, k, v, feature_map="taylor", output_state=True)
    before = [x.clone() for x in (q, k, v, *state)]
    linear_attention(q, k, v, feature_map="taylor", state=state, chunk_size=2, output_state=True)
    linear_attention_step(q[:, 0], k[:, 0], v[:, 0], state, feature_map="taylor")
    for x, y in zip((q, k, v, *state), before, strict=True):
        assert torch.equal(x, y)


def test_bad_input_is_named():
    q, k, v = inputs(1, 4, 1, 3, 4, "taylor")
    with pytest.raises(ValueError, match=r"'tailor'.*'taylor'"):
        linear_attention(q, k, v, feature_map="tailor")
    with pytest.raises(ValueError, match="chunk_size = 0"):
        linear_attention(q, k, v, chunk_size=0)
    with pytest.raises(ValueError, match=r"\(1, 4, 1, 3\), \(1, 4, 1, 2\)"):
        linear_attention(q, k[..., :2], v)
    with pytest.raises(ValueError, match=r"must be \(B, H, f\)"):
        linear_attention_step(q, k, v, None)
