"""The gated linear attention op against its recurrence, token by token in float64."""

import itertools

import pytest
import torch

from zoology.kernels.gated_linear_attention import gated_linear_attention, gated_linear_attention_step
from zoology.kernels.linear_attention import linear_attention


def inputs(batch, time, heads, k, v, dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    widths = (k, k, v)
    qkv = [torch.randn(batch, time, heads, n, generator=rng, dtype=torch.float64) for n in widths]
    log_decay = -3 * torch.rand(batch, time, heads, k, generator=rng, dtype=torch.float64)
    return tuple(x.to(dtype).requires_grad_() for x in (*qkv, log_decay))


def recurrence(q, k, v, log_decay, state=None):
    batch, time, heads, width = q.shape
    s = q.new_zeros(batch, heads, width, v.shape[-1]) if state is None else state
    outputs = []
    for t in range(time):
        s = log_decay[:, t].exp().unsqueeze(-1) * s + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], s))
    return torch.stack(outputs, dim=1), s


@pytest.mark.parametrize("with_state", [False, True], ids=["from zero", "from a state"])
@pytest.mark.parametrize(
    ("time", "chunk"), [(1, 16), (2, 16), (7, 16), (16, 4), (37, 1), (37, 2), (37, 16), (150, 4), (300, 64)], ids=str
)
def test_outputs_and_gradients_follow_the_recurrence(time, chunk, with_state):
    given = inputs(2, time, 3, 4, 5)
    rng = torch.Generator().manual_seed(2)
    state = torch.randn(2, 3, 4, 5, generator=rng, dtype=torch.float64).requires_grad_() if with_state else None
    o, after = gated_linear_attention(*given, state=state, chunk_size=chunk, output_state=True)
    expected, last = recurrence(*given, state)
    torch.testing.assert_close(o, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(after, last, rtol=1e-10, atol=1e-10)
    cotangents = [torch.randn(x.shape, generator=rng, dtype=torch.float64) for x in (o, after)]
    leaves = given if state is None else (*given, state)
    got = torch.autograd.grad((o, after), leaves, cotangents, materialize_grads=True)
    want = torch.autograd.grad((expected, last), leaves, cotangents)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cuts", [(0, 45), (0, 5, 45), (0, 1, 2, 30, 30, 45), tuple(range(46))], ids=str)
def test_pieces_and_steps_give_what_the_whole_gives(cuts):
    given = inputs(2, 45, 2, 3, 4)
    whole, final = gated_linear_attention(*given, output_state=True)
    state, pieces = None, []
    for start, stop in itertools.pairwise(cuts):
        piece = (x[:, start:stop] for x in given)
        o, state = gated_linear_attention(*piece, state=state, chunk_size=4, output_state=True)
        pieces.append(o)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-10)
    state = torch.zeros_like(final)
    for t in range(45):
        o, state = gated_linear_attention_step(*(x[:, t] for x in given), state)
        torch.testing.assert_close(o, whole[:, t], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-10)


def test_channels_that_decay_alike_are_linear_attention_with_a_decay():
    q, k, v, log_decay = inputs(2, 70, 3, 4, 5)
    each = log_decay[..., 0]
    o, _ = gated_linear_attention(q, k, v, each.unsqueeze(-1).expand_as(q))
    expected, _ = linear_attention(q, k, v, normalise=False, log_decay=each)
    torch.testing.assert_close(o, expected, rtol=1e-10, atol=1e-10)


def test_float32_is_exact_however_strongly_gates_close():
    """Channels that forget everything at some tokens stand among such that never forget, over 4096 tokens."""
    q, k, v, log_decay = inputs(1, 4096, 2, 8, 4, torch.float32)
    rng = torch.Generator().manual_seed(3)
    hit = torch.rand(log_decay.shape, generator=rng) < 0.1
    log_decay = torch.where(hit, -3000.0, log_decay.detach() * 1e-3).requires_grad_()
    given = (q, k, v, log_decay)
    exact = [x.detach().double().requires_grad_() for x in given]
    o, _ = gated_linear_attention(*given)
    expected, _ = gated_linear_attention(*exact)
    assert (o - expected).abs().max() < 2e-6 * expected.abs().max()
    cotangent = torch.randn(o.shape, generator=rng)
    got = torch.autograd.grad(o, given, cotangent)
    want = torch.autograd.grad(expected, exact, cotangent.double())
    for one, other in zip(got, want, strict=True):
        assert (one - other).abs().max() < 2e-5 * other.abs().max()


def test_low_precision_inputs_keep_a_wide_state():
    given = inputs(2, 100, 1, 8, 8, torch.bfloat16)
    o, state = gated_linear_attention(*given, output_state=True)
    expected, _ = recurrence(*(x.double() for x in given))
    assert o.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    assert (o.double() - expected).abs().max() < 6e-3 * expected.abs().max()


def test_autocast_leaves_the_sums_wide():
    """Matrix products are narrow there; 300 of them are added in float32."""
    q, k, v, g = inputs(2, 300, 2, 4, 4, torch.float32)
    _, exact = gated_linear_attention(q, k, v, g, output_state=True)
    with torch.autocast("cpu", torch.bfloat16):
        _, state = gated_linear_attention(q, k, v, g, output_state=True)
    assert state.dtype == torch.float32
    assert (state - exact).abs().max() < 5e-3 * exact.abs().max()


def test_no_token_leaves_the_state_as_it_was():
    given = [x[:, :0] for x in inputs(2, 1, 3, 4, 5)]
    o, state = gated_linear_attention(*given, output_state=True)
    assert o.shape == (2, 0, 3, 5)
    assert state.shape == (2, 3, 4, 5)
    assert not state.any()
    _, again = gated_linear_attention(*given, state=state + 1, output_state=True)
    assert (again == 1).all()


def test_bad_input_is_named():
    q, k, v, log_decay = inputs(2, 4, 3, 4, 5)
    with pytest.raises(ValueError, match=r"\(2, 4, 3\): must be \(B, T, H, K\)"):
        gated_linear_attention(q, k, v, log_decay[..., 0])
    with pytest.raises(ValueError, match=r"must be \(B, H, K\)"):
        gated_linear_attention_step(q, k, v, log_decay, torch.zeros(2, 3, 4, 5))
    with pytest.raises(ValueError, match="chunk_size = 12: must be a power of two"):
        gated_linear_attention(q, k, v, log_decay, chunk_size=12)
