import math

import pytest
import torch
import torch.nn.functional as F
from mixer_checks import assert_continues, assert_follows, assert_stacks, shaken

from zoology.architectures.base import build_mixer, get_architecture
from zoology.architectures.config import dials
from zoology.architectures.state import leaves
from zoology.model import LanguageModel
from zoology.registry import InputError


def silu(x):
    return x / (1 + torch.exp(-x))


def convolved(x, weight, conv):
    """SiLU of W x, through the taps of a padded depthwise nn.Conv1d where there are any."""
    y = x @ weight.T
    if conv is not None:
        taps = conv.weight.shape[-1]
        y = F.conv1d(y.mT, conv.weight, padding=taps - 1, groups=y.shape[-1])[..., : x.shape[1]].mT
    return silu(y)


def definition(mixer, x):
    """S_t = alpha S_{t-1} (I - beta k k^T) + beta v k^T, o = S q, token by token."""
    batch, time, _ = x.shape
    heads = mixer.num_heads
    q, k, v = (
        convolved(x, getattr(mixer, f"{n}_proj").weight, getattr(mixer, f"{n}_conv1d", None)).view(
            batch, time, heads, -1
        )
        for n in "qkv"
    )
    q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k))
    beta = mixer.beta_scale / (1 + torch.exp(-(x @ mixer.b_proj.weight.T)))
    alpha = torch.exp(-torch.exp(mixer.A_log) * F.softplus(x @ mixer.a_proj.weight.T + mixer.dt_bias))
    gate = silu(x @ mixer.g_proj.weight.T).view(batch, time, heads, -1)
    s = x.new_zeros(batch, heads, v.shape[-1], k.shape[-1])
    eye, outputs = torch.eye(k.shape[-1], dtype=x.dtype), []
    for t in range(time):
        b = beta[:, t, :, None, None]
        kk, vk = (torch.einsum("bhi,bhj->bhij", y[:, t], k[:, t]) for y in (k, v))
        s = alpha[:, t, :, None, None] * s @ (eye - b * kk) + b * vk
        o = torch.einsum("bhij,bhj->bhi", s, q[:, t]) / k.shape[-1] ** 0.5
        o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.o_norm.weight * gate[:, t]
        outputs.append(o.reshape(batch, -1) @ mixer.o_proj.weight.T)
    return torch.stack(outputs, dim=1)


SETTINGS = [
    {"head_dim": 4},
    {"head_dim": 6, "num_heads": 3, "expand_v": 0.5, "allow_neg_eigval": True},
    {"head_dim": 5, "num_heads": 1, "use_short_conv": False},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("time", [1, 17, 131])
def test_outputs_and_gradients_follow_the_definition(time, settings):
    torch.manual_seed(0)
    mixer = shaken(build_mixer("gated-deltanet", 12, settings).double(), size=0.3)
    assert_follows(mixer, definition, torch.randn(2, time, 12, dtype=torch.float64))


@pytest.mark.parametrize("shift", [-30.0, 4.0], ids=["alpha near 1", "alpha near 0"])
def test_gates_that_are_all_but_shut_or_open(shift):
    torch.manual_seed(0)
    mixer = build_mixer("gated-deltanet", 8).double()
    with torch.no_grad():
        mixer.b_proj.weight.mul_(60)
        mixer.a_proj.weight.mul_(10)
        mixer.dt_bias += shift
    assert_follows(mixer, definition, torch.randn(2, 80, 8, dtype=torch.float64))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_pieces_steps_and_replicas(settings):
    torch.manual_seed(0)
    mixer = shaken(build_mixer("gated-deltanet", 12, settings).double())
    assert_continues(mixer, torch.randn(2, 13, 12, dtype=torch.float64))
    assert_stacks("gated-deltanet", 12, settings)


def test_a_long_sequence_in_float32():
    """Decays from e^-1000 a token to none at all, the same few tokens again and again."""
    torch.manual_seed(0)
    mixer = build_mixer("gated-deltanet", 8)
    with torch.no_grad():
        mixer.a_proj.weight.mul_(100)
    x = torch.randn(5, 8)[torch.randint(5, (1, 4096))].requires_grad_()
    y = mixer(x)
    y.square().sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in (x, *mixer.parameters()))
    want = build_mixer("gated-deltanet", 8).double()
    want.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(y.double(), want(x.double()), rtol=1e-3, atol=1e-4)


def test_autocast_keeps_the_memory_in_float32():
    torch.manual_seed(0)
    mixer = build_mixer("gated-deltanet", 16)
    x = torch.randn(2, 150, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer.prefill(x, mixer.init_state(2))
    assert state.memory.dtype == torch.float32
    torch.testing.assert_close(y.float(), mixer(x), rtol=0.1, atol=0.05)


def test_without_decay_and_with_an_open_gate_it_is_deltanet():
    torch.manual_seed(0)
    gated = build_mixer("gated-deltanet", 8, {"head_dim": 4, "num_heads": 2, "expand_v": 1.0}).double()
    plain = build_mixer("deltanet", 8, {"num_heads": 2}).double()
    plain.load_state_dict(gated.state_dict(), strict=False)
    x = torch.randn(1, 30, 8, dtype=torch.float64)
    x[..., 0] = 1.0
    with torch.no_grad():
        gated.A_log.fill_(-100.0)
        gated.g_proj.weight.zero_()
        gated.g_proj.weight[:, 0] = 20.0  # SiLU(20) = 20
        torch.testing.assert_close(gated(x), 20 * plain(x), rtol=1e-6, atol=1e-6)


def test_the_decay_starts_as_published():
    """A is uniform in (0, 16], dt = softplus(dt_bias) log-uniform in [0.001, 0.1], and neither decays to 0."""
    torch.manual_seed(0)
    mixer = LanguageModel(8, 16, [("gated-deltanet", {"num_heads": 2000, "head_dim": 1})]).blocks[0].mixer
    a, dt = mixer.A_log.exp(), F.softplus(mixer.dt_bias)
    assert 0 < a.min() < 0.1
    assert 15.9 < a.max() <= 16.001
    assert abs(a.mean().item() - 8) < 0.4
    assert 0.00099 < dt.min() < 0.0011
    assert 0.09 < dt.max() < 0.1001
    assert abs(dt.log().mean().item() - math.log(0.01)) < 0.1
    assert mixer.A_log._no_weight_decay
    assert mixer.dt_bias._no_weight_decay


def test_the_state_is_as_large_as_its_formula():
    mixer = build_mixer("gated-deltanet", 24, {"num_heads": 3, "head_dim": 6, "expand_v": 1.5, "conv_size": 5})
    sizes = {path[-1]: leaf.numel() for path, leaf in leaves(mixer.init_state(1))}
    assert sizes == {"memory": 3 * 6 * 9, "conv_inputs": 4 * (2 * 3 * 6 + 3 * 9)}


def test_dials_and_bad_settings():
    assert dials(get_architecture("gated-deltanet").Config) == {"head_dim": (4, 8, 16)}
    with pytest.raises(InputError, match=r"expand_v \* head_dim = 0.3 \* 8 = 2.4: must be a whole number"):
        build_mixer("gated-deltanet", 8, {"expand_v": 0.3})
    for key, bad in (("conv_size", 0), ("num_heads", 0), ("head_dim", 0)):
        with pytest.raises(InputError, match=f"gated-deltanet: {key} = {bad!r}"):
            build_mixer("gated-deltanet", 8, {key: bad})
