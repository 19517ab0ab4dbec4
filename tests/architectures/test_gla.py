import pytest
import torch
import torch.nn.functional as F
from mixer_checks import assert_continues, assert_follows, assert_stacks, shaken

from zoology.architectures.base import build_mixer
from zoology.architectures.state import by_component, measure, total
from zoology.registry import InputError


def convolve(conv, x):
    """SiLU of an nn.Conv1d that is padded on the left."""
    taps = conv.weight.shape[-1]
    y = F.conv1d(F.pad(x.transpose(1, 2), (taps - 1, 0)), conv.weight, groups=conv.weight.shape[0])
    return F.silu(y).transpose(1, 2)


def definition(mixer, x):
    """The paper's recurrence, equation 3, token by token."""
    batch, time, _ = x.shape
    heads, dk, dv = mixer.num_heads, mixer.head_k_dim, mixer.head_v_dim
    q, k, v, g = (x @ p.weight.T for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.g_proj))
    if mixer.use_short_conv:
        q, k, v = (convolve(c, y) for c, y in ((mixer.q_conv1d, q), (mixer.k_conv1d, k), (mixer.v_conv1d, v)))
    down, up = mixer.gk_proj
    alpha = torch.sigmoid(x @ down.weight.T @ up.weight.T + up.bias) ** (1 / mixer.gate_logit_normalizer)
    q, k, alpha = (y.view(batch, time, heads, dk) for y in (q, k, alpha))
    v, g = (y.view(batch, time, heads, dv) for y in (v, g))
    rows, state = [], None
    for t in range(time):
        added = torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        state = added if state is None else alpha[:, t].unsqueeze(-1) * state + added
        o = torch.einsum("bhk,bhkv->bhv", q[:, t], state) / dk**0.5
        o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.g_norm_swish_gate.weight
        rows.append((o * F.silu(g[:, t])).flatten(1))
    return torch.stack(rows, dim=1) @ mixer.o_proj.weight.T


@pytest.mark.parametrize("short_conv", [False, True], ids=["plain", "convolved"])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("time", [1, 17, 67])
def test_outputs_and_gradients_follow_the_recurrence(time, heads, short_conv):
    torch.manual_seed(0)
    settings = {"num_heads": heads, "expand_k": 0.5, "expand_v": 1.5, "use_short_conv": short_conv}
    mixer = shaken(build_mixer("gla", 12, settings).double())
    assert_follows(mixer, definition, torch.randn(2, time, 12, dtype=torch.float64))


@pytest.mark.parametrize("bias", [-40.0, 40.0], ids=["closed", "open"])
def test_gates_at_both_ends(bias):
    """Decays of e^-40 and of 1 - e^-40, and, in the other channels, all between."""
    torch.manual_seed(0)
    mixer = shaken(build_mixer("gla", 8, {"gate_logit_normalizer": 1.0}).double())
    with torch.no_grad():
        mixer.gk_proj[1].bias[::2] = bias
    assert_follows(mixer, definition, 3 * torch.randn(2, 50, 8, dtype=torch.float64))


@pytest.mark.parametrize("short_conv", [False, True], ids=["plain", "convolved"])
@pytest.mark.parametrize("time", [2, 40])
def test_pieces_and_steps_give_what_the_whole_gives(time, short_conv):
    torch.manual_seed(0)
    mixer = shaken(build_mixer("gla", 8, {"use_short_conv": short_conv}).double())
    assert_continues(mixer, torch.randn(2, time, 8, dtype=torch.float64))


def test_replicas_stack():
    assert_stacks("gla", 8, {"use_short_conv": True}, time=70)


def test_the_state_is_as_the_formula_says():
    settings = {"num_heads": 2, "expand_k": 0.5, "expand_v": 2.0, "use_short_conv": True, "conv_size": 4}
    mixer = build_mixer("gla", 16, settings)
    _, state = mixer.prefill(torch.randn(1, 33, 16), mixer.init_state(1))
    parts = by_component(measure(state))
    assert parts == {"recurrent": {"float32": 4 * 2 * 4 * 16}, "convolution": {"float32": 4 * 3 * (8 + 8 + 32)}}
    mixer = build_mixer("gla", 16)
    assert total(measure(mixer.init_state(1)))[0] == 2 * 4 * 8


def test_float32_stays_close_over_a_long_sequence_with_closing_gates():
    torch.manual_seed(0)
    mixer = shaken(build_mixer("gla", 16, {"gate_logit_normalizer": 0.05}), size=1.0)
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
        ({"expand_k": 0.3}, r"gla: expand_k \* d_model = 0.3 \* 8 = 2.4: must be a whole number above 0"),
        ({"num_heads": 3}, r"expand_k \* d_model = 4 is not divisible by num_heads = 3: num_heads must be one of 1, 2"),
        ({"num_heads": 4, "expand_v": 0.25}, r"expand_v \* d_model = 2 is not divisible by num_heads = 4"),
        ({"gate_logit_normalizer": 0}, r"gate_logit_normalizer = 0: .*greater than 0"),
    ],
    ids=lambda given: "" if isinstance(given, str) else str(given),
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        build_mixer("gla", 8, settings)
