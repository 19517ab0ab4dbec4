"""The diagonal-plus-low-rank recurrence against its definition, token by token, in float64."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap

from zoology.kernels.delta_rule import delta_rule
from zoology.kernels.dplr import dplr, dplr_step

FLOOR = -math.exp(-0.5)
"""RWKV-7's strongest decay."""


def inputs(batch, time, heads, dk, dv, dtype=torch.float64, seed=0):
    """As RWKV-7 makes them: a = -kappa of unit length, b = kappa times rates in (0, 1), decays down to the floor."""
    rng = torch.Generator().manual_seed(seed)
    q, k, kappa, rate, gate = torch.randn(5, batch, time, heads, dk, generator=rng, dtype=torch.float64)
    v = torch.randn(batch, time, heads, dv, generator=rng, dtype=torch.float64)
    kappa = F.normalize(kappa, dim=-1)
    log_decay = FLOOR * torch.sigmoid(6 * gate)
    return [x.to(dtype).requires_grad_() for x in (q, k, v, -kappa, kappa * rate.sigmoid(), log_decay)]


def definition(q, k, v, a, b, log_decay, s=None):
    """S = (diag(w) + b a^T) S + k v^T, o = S^T q, with the matrices written out."""
    batch, time, heads, dk = q.shape
    s = q.new_zeros(batch, heads, dk, v.shape[-1]) if s is None else s
    outputs = []
    for t in range(time):
        transition = torch.diag_embed(log_decay[:, t].exp()) + torch.einsum("bhi,bhj->bhij", b[:, t], a[:, t])
        s = transition @ s + torch.einsum("bhi,bhd->bhid", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhid,bhi->bhd", s, q[:, t]))
    return torch.stack(outputs, dim=1), s


@pytest.mark.parametrize("start", [False, True], ids=["new", "goes-on"])
@pytest.mark.parametrize(("time", "chunk"), [(1, 4), (4, 4), (5, 4), (14, 4), (14, 1), (14, 64), (70, 64)], ids=str)
def test_outputs_state_and_gradients_follow_the_definition(time, chunk, start):
    given = inputs(2, time, 3, 5, 7)
    before = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True) if start else None
    got, want = dplr(*given, floor=FLOOR, state=before, chunk_size=chunk), definition(*given, s=before)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    cotangents = [torch.randn_like(x) for x in want]
    wrt = [*given, before] if start else given
    names = ["q", "k", "v", "a", "b", "log_decay", "state"][: len(wrt)]
    grads = (torch.autograd.grad(out, wrt, cotangents, allow_unused=True) for out in (got, want))
    for name, one, other in zip(names, *grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"gradient of {n}: {m}")


@pytest.mark.parametrize("cuts", [(0, 5, 13), (0, 1, 2, 9, 9, 13), tuple(range(14))], ids=str)
def test_pieces_and_steps_give_what_the_whole_gives(cuts):
    given = inputs(2, 13, 2, 3, 4)
    whole, final = dplr(*given, floor=FLOOR)
    state, pieces = None, []
    for start, stop in itertools.pairwise(cuts):
        o, state = dplr(*(x[:, start:stop] for x in given), floor=FLOOR, state=state, chunk_size=3)
        pieces.append(o)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-11)
    state = torch.zeros(2, 2, 3, 4, dtype=torch.float64)
    for t in range(13):
        o, state = dplr_step(*(x[:, t] for x in given), state)
        torch.testing.assert_close(o, whole[:, t], rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-11)


def test_no_token_leaves_the_state_as_it_was():
    given = [x[:, :0] for x in inputs(2, 3, 2, 3, 4)]
    before = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    o, after = dplr(*given, floor=FLOOR, state=before)
    assert o.shape == (2, 0, 2, 4)
    assert torch.equal(after, before)
    assert torch.equal(dplr(*given, floor=FLOOR)[1], torch.zeros_like(before))


@pytest.mark.parametrize("channel", ["all at the floor", "none", "some"])
def test_a_long_sequence_in_float32_stays_close_and_finite(channel):
    given = inputs(1, 4096, 2, 8, 8)
    with torch.no_grad():
        if channel != "some":
            given[5].fill_(FLOOR if channel != "none" else 0.0)
        else:
            given[5][..., ::2], given[5][..., 1::2] = FLOOR, 0.0
    singles = [x.detach().float().requires_grad_() for x in given]
    o, state = dplr(*singles, floor=FLOOR, chunk_size=64)
    with torch.no_grad():
        want, final = definition(*(x.double() for x in singles))
    size = want.abs().max().item()
    torch.testing.assert_close(o.double(), want, rtol=1e-4, atol=1e-5 * size)
    torch.testing.assert_close(state.double(), final, rtol=1e-4, atol=1e-5 * size)
    wide = [x.detach().double().requires_grad_() for x in singles]
    grads = torch.autograd.grad(o.sum(), singles)
    for grad, other in zip(grads, torch.autograd.grad(dplr(*wide, floor=FLOOR)[0].sum(), wide), strict=True):
        torch.testing.assert_close(grad.double(), other, rtol=1e-3, atol=1e-4 * other.abs().max().item())


def test_a_scalar_decay_and_one_key_make_it_the_gated_delta_rule():
    """alpha (I - beta k k^T) is diagonal plus low rank: a = -alpha k, b = beta k."""
    q, k, v, *_ = inputs(2, 20, 2, 4, 3)
    k = F.normalize(k, dim=-1)
    beta, log_decay = torch.rand(2, 20, 2, dtype=torch.float64), FLOOR * torch.rand(2, 20, 2, dtype=torch.float64)
    want = delta_rule(q, k, v, beta, log_decay)
    wide = log_decay.unsqueeze(-1).expand_as(k)
    b = beta.unsqueeze(-1) * k
    torch.testing.assert_close(dplr(q, b, v, -wide.exp() * k, b, wide, floor=FLOOR), want, rtol=1e-10, atol=1e-11)


def test_it_stacks_along_a_replica_axis():
    many = [torch.stack([x.detach(), x.detach() * 0.5]) for x in inputs(2, 9, 2, 3, 4)]
    o, state = vmap(lambda *x: dplr(*x, floor=FLOOR, chunk_size=4))(*many)
    for i in range(2):
        want = dplr(*(x[i] for x in many), floor=FLOOR)
        torch.testing.assert_close((o[i], state[i]), want, rtol=1e-10, atol=1e-11)


def test_bad_input_is_named():
    given = inputs(1, 4, 1, 3, 4)
    with pytest.raises(ValueError, match="chunk_size = 0: must be at least 1"):
        dplr(*given, floor=FLOOR, chunk_size=0)
    with pytest.raises(ValueError, match=r"chunk_size = 64: .* times -floor = 2.0 at most 80"):
        dplr(*given, floor=-2.0, chunk_size=64)
    with pytest.raises(ValueError, match=r"\(1, 4, 1, 2\).*must be \(B, T, H, dk\) five times, \(B, T, H, dv\)"):
        dplr(given[0], given[1][..., :2], *given[2:], floor=FLOOR)
    with pytest.raises(ValueError, match=r"must be \(B, H, dk\) five times"):
        dplr_step(*given, torch.zeros(1, 1, 3, 4))
    with pytest.raises(ValueError, match=r"state has the shape \(1, 1, 4, 3\): must be \(1, 1, 3, 4\)"):
        dplr(*given, floor=FLOOR, state=torch.zeros(1, 1, 4, 3))
