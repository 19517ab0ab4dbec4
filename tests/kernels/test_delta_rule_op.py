"""The delta rule op against its definition, token by token, in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap

from zoology.kernels.delta_rule import delta_rule, delta_rule_step


def inputs(batch, time, heads, dk, dv, gated, dtype=torch.float64, seed=0):
    """Gates from all but closed to all but open."""
    rng = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, time, heads, dk, generator=rng, dtype=torch.float64) for _ in range(2))
    v = torch.randn(batch, time, heads, dv, generator=rng, dtype=torch.float64)
    beta = 2 * torch.rand(batch, time, heads, generator=rng, dtype=torch.float64)
    out = [q, F.normalize(k, dim=-1), v, beta]
    if gated:
        out.append(-torch.exp(3 * torch.randn(batch, time, heads, generator=rng, dtype=torch.float64) - 3))
    return [x.to(dtype).requires_grad_() for x in out]


def definition(q, k, v, beta, log_decay=None, s=None):
    """S = alpha (I - beta k k^T) S + beta k v^T, o = S^T q, with the matrices written out."""
    batch, time, heads, dk = q.shape
    s = q.new_zeros(batch, heads, dk, v.shape[-1]) if s is None else s
    eye, outputs = torch.eye(dk, dtype=q.dtype), []
    for t in range(time):
        kk = torch.einsum("bhi,bhj->bhij", k[:, t], k[:, t])
        b = beta[:, t, :, None, None]
        alpha = 1.0 if log_decay is None else log_decay[:, t, :, None, None].exp()
        s = alpha * (eye - b * kk) @ s + b * torch.einsum("bhi,bhd->bhid", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhid,bhi->bhd", s, q[:, t]))
    return torch.stack(outputs, dim=1), s


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("start", [False, True], ids=["new", "goes-on"])
@pytest.mark.parametrize(("time", "chunk"), [(1, 4), (4, 4), (5, 4), (14, 4), (14, 1), (14, 64), (70, 64)], ids=str)
def test_outputs_state_and_gradients_follow_the_definition(time, chunk, start, gated):
    given = inputs(2, time, 3, 5, 7, gated)
    before = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True) if start else None
    got, want = delta_rule(*given, state=before, chunk_size=chunk), definition(*given, s=before)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    cotangents = [torch.randn_like(x) for x in want]
    wrt = [*given, before] if start else given
    for name, a, b in zip(
        ("q", "k", "v", "beta", "log_decay", "state")[: 4 + gated] + ("state",) * start,
        torch.autograd.grad(got, wrt, cotangents),
        torch.autograd.grad(want, wrt, cotangents),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"gradient of {n}: {m}")


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("cuts", [(0, 5, 13), (0, 1, 2, 9, 9, 13), tuple(range(14))], ids=str)
def test_pieces_and_steps_give_what_the_whole_gives(cuts, gated):
    given = inputs(2, 13, 2, 3, 4, gated)
    whole, final = delta_rule(*given)
    state, pieces = None, []
    for a, b in itertools.pairwise(cuts):
        o, state = delta_rule(*(x[:, a:b] for x in given), state=state, chunk_size=3)
        pieces.append(o)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-11)
    state = torch.zeros(2, 2, 3, 4, dtype=torch.float64)
    for t in range(13):
        q, k, v, beta, *decay = (x[:, t] for x in given)
        o, state = delta_rule_step(q, k, v, beta, *(decay or [None]), state)
        torch.testing.assert_close(o, whole[:, t], rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-11)


def test_no_token_leaves_the_state_as_it_was():
    q, k, v, beta = (x[:, :0] for x in inputs(2, 3, 2, 3, 4, False))
    before = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    o, after = delta_rule(q, k, v, beta, state=before)
    assert o.shape == (2, 0, 2, 4)
    assert torch.equal(after, before)
    assert torch.equal(delta_rule(q, k, v, beta)[1], torch.zeros_like(before))


def test_a_long_sequence_in_float32_stays_close_and_finite():
    """Gates that close at once, or hardly ever: a slow decay after a strong one keeps its digits."""
    given = inputs(1, 4096, 2, 8, 8, True)
    with torch.no_grad():
        given[4][:, ::7] = -1e4
        given[4][:, 1::7] = -1e-6
        given[1][:, 100:200] = given[1][:, :1]  # one key again and again
    singles = [x.detach().float().requires_grad_() for x in given]
    o, state = delta_rule(*singles)
    want, final = definition(*(x.double() for x in singles))
    torch.testing.assert_close(o.double(), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state.double(), final, rtol=1e-4, atol=1e-4)
    for grad in torch.autograd.grad(o.square().sum(), singles):
        assert torch.isfinite(grad).all()


def test_without_decay_and_with_beta_1_the_last_value_of_each_key_is_held():
    """Orthonormal keys, each written twice: the second value replaces the first, where a sum would hold both."""
    keys = torch.eye(4, dtype=torch.float64).repeat(2, 1)[None, :, None]
    v = torch.randn(1, 8, 1, 5, dtype=torch.float64)
    _, state = delta_rule(keys, keys, v, torch.ones(1, 8, 1, dtype=torch.float64))
    torch.testing.assert_close(state[0, 0], v[0, 4:, 0])


def test_a_worked_example():
    """d = 1, k = 1: S = alpha (1 - beta) S + beta v. From 0: 0.5 * 4 = 2, then 0.5 * 0.75 * 2 + 0.25 * 8 = 2.75."""
    one = torch.ones(1, 2, 1, 1)
    v, beta = torch.tensor([4.0, 8.0]).view(1, 2, 1, 1), torch.tensor([0.5, 0.25]).view(1, 2, 1)
    o, _ = delta_rule(one, one, v, beta, torch.tensor([0.25, 0.5]).log().view(1, 2, 1))
    torch.testing.assert_close(o.flatten(), torch.tensor([2.0, 2.75]))


def test_it_stacks_along_a_replica_axis():
    many = [torch.stack([x.detach(), x.detach() * 0.5]) for x in inputs(2, 9, 2, 3, 4, True)]
    o, state = vmap(lambda *x: delta_rule(*x, chunk_size=4))(*many)
    for i in range(2):
        torch.testing.assert_close((o[i], state[i]), delta_rule(*(x[i] for x in many)), rtol=1e-10, atol=1e-11)


def test_bad_input_is_named():
    q, k, v, beta, decay = inputs(1, 4, 1, 3, 4, True)
    with pytest.raises(ValueError, match="chunk_size = 0"):
        delta_rule(q, k, v, beta, chunk_size=0)
    with pytest.raises(ValueError, match=r"\(1, 4, 1, 3\), \(1, 4, 1, 2\).*must be \(B, T, H, dk\)"):
        delta_rule(q, k[..., :2], v, beta)
    with pytest.raises(ValueError, match=r"log_decay.*must be .*\(B, T, H\), \(B, T, H\)"):
        delta_rule(q, k, v, beta, decay[:, :2])
    with pytest.raises(ValueError, match=r"must be \(B, H, dk\)"):
        delta_rule_step(q, k, v, beta, None, torch.zeros(1, 1, 3, 4))
    with pytest.raises(ValueError, match=r"state has the shape \(1, 1, 4, 3\): must be \(1, 1, 3, 4\)"):
        delta_rule(q, k, v, beta, state=torch.zeros(1, 1, 4, 3))
