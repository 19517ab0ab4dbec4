import math

import pytest
import torch
import torch.nn.functional as F
from mixer_checks import assert_continues, assert_follows, assert_stacks, shaken

from zoology.architectures.base import build_mixer
from zoology.architectures.state import measure, total
from zoology.registry import InputError


def definition(mixer, x):
    """The paper's sum over pairs, equation 5, with keys and queries as complex numbers at absolute positions."""
    batch, time, _ = x.shape
    heads, dk, dv = mixer.num_heads, mixer.head_k_dim, mixer.head_v_dim
    q, k = ((x @ p.weight.T).view(batch, time, heads, dk) for p in (mixer.q_proj, mixer.k_proj))
    v, g = ((x @ p.weight.T).view(batch, time, heads, dv) for p in (mixer.v_proj, mixer.g_proj))
    q, k = (torch.complex(y[..., : dk // 2], y[..., dk // 2 :]) for y in (q, k))
    theta = torch.tensor([10_000.0 ** (-2 * i / dk) for i in range(dk // 2)], dtype=torch.float64)
    gamma = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(heads)], dtype=torch.float64)
    rows = []
    for n in range(time):
        o = 0
        for m in range(n + 1):
            score = (q[:, n] * torch.exp(1j * (n - m) * theta) * k[:, m].conj()).sum(-1).real / math.sqrt(dk)
            o = o + (gamma ** (n - m) * score).unsqueeze(-1) * v[:, m]
        o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.g_norm_swish_gate.weight
        rows.append((o * F.silu(g[:, n])).flatten(1))
    return torch.stack(rows, dim=1) @ mixer.o_proj.weight.T


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("time", [1, 17, 67])
def test_outputs_and_gradients_follow_the_definition(time, heads):
    torch.manual_seed(0)
    settings = {"num_heads": heads, "expand_k": 0.5, "expand_v": 1.5}
    mixer = shaken(build_mixer("retnet", 12, settings).double())
    assert_follows(mixer, definition, torch.randn(2, time, 12, dtype=torch.float64))


@pytest.mark.parametrize("time", [2, 40])
def test_pieces_and_steps_give_what_the_whole_gives(time):
    torch.manual_seed(0)
    mixer = shaken(build_mixer("retnet", 8).double())
    assert_continues(mixer, torch.randn(2, time, 8, dtype=torch.float64))


def test_replicas_stack():
    assert_stacks("retnet", 8, {"num_heads": 2}, time=70)


def test_the_state_is_the_published_one_and_no_position():
    mixer = build_mixer("retnet", 16, {"num_heads": 2, "expand_k": 0.5, "expand_v": 2.0})
    _, state = mixer.prefill(torch.randn(1, 33, 16), mixer.init_state(1))
    assert total(measure(state)) == (2 * 4 * 16, 4 * 2 * 4 * 16)


def test_what_is_remembered_does_not_depend_on_where_it_stood():
    """The same tokens after 3000 others that left nothing: keys are seen by their distance."""
    torch.manual_seed(0)
    mixer = build_mixer("retnet", 8).double()
    x = torch.randn(1, 20, 8, dtype=torch.float64)
    _, state = mixer.prefill(torch.zeros(1, 3000, 8, dtype=torch.float64), mixer.init_state(1))
    later, _ = mixer.prefill(x, state)
    torch.testing.assert_close(later, mixer(x), rtol=1e-10, atol=1e-12)


def test_float32_stays_close_over_a_long_sequence():
    torch.manual_seed(0)
    mixer = build_mixer("retnet", 16, {"num_heads": 4})
    x = torch.randn(1, 4096, 16)
    y = mixer(x)
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())
    with torch.no_grad():
        exact = mixer.double()(x.double())
    assert (y - exact).abs().max() < 1e-3 * exact.abs().max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expand_k": 0.3}, r"retnet: expand_k \* d_model = 0.3 \* 8 = 2.4: must be a whole number above 0"),
        ({"expand_v": 0.01}, r"expand_v \* d_model = 0.01 \* 8 = 0.08: must be a whole number above 0"),
        ({"num_heads": 3}, r"expand_k \* d_model = 8 is not divisible by num_heads = 3: num_heads must be one of 1, 2"),
        ({"num_heads": 8}, r"rotary positions turn pairs: .* = 1.0 \* 8 / 8 must be even"),
        ({"expand_k": 0}, r"expand_k \* d_model = 0.0 \* 8 = 0: must be a whole number above 0"),
    ],
    ids=lambda given: "" if isinstance(given, str) else str(given),
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        build_mixer("retnet", 8, settings)
