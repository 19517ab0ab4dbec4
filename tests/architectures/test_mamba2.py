import math

import pytest
import torch
import torch.nn.functional as F
from mixer_checks import assert_continues, assert_follows, assert_stacks, shaken

from zoology.architectures.base import build_mixer
from zoology.architectures.state import by_component, measure
from zoology.model import LanguageModel
from zoology.registry import InputError


def definition(mixer, u):
    """The recurrence of the paper's section 2, token by token: h_t = exp(dt A) h_{t-1} + dt x B^T, y = h C + D x."""
    batch, time, _ = u.shape
    inner, n, groups, heads = mixer.d_inner, mixer.d_state, mixer.ngroups, mixer.nheads
    z, xbc, dt = (u @ mixer.in_proj.weight.T).split([inner, inner + 2 * groups * n, heads], dim=-1)
    taps = mixer.d_conv
    weight, bias = mixer.conv1d.weight, mixer.conv1d.bias
    xbc = F.conv1d(F.pad(xbc.transpose(1, 2), (taps - 1, 0)), weight, bias, groups=weight.shape[0]).transpose(1, 2)
    x, b, c = F.silu(xbc).split([inner, groups * n, groups * n], dim=-1)
    x = x.view(batch, time, heads, -1)
    b, c = (y.view(batch, time, groups, n).repeat_interleave(heads // groups, dim=2) for y in (b, c))
    dt = torch.log1p(torch.exp(dt + mixer.dt_bias))
    a = -torch.exp(mixer.A_log)
    h = u.new_zeros(batch, heads, inner // heads, n)
    rows = []
    for t in range(time):
        h = (dt[:, t] * a).exp()[..., None, None] * h
        h = h + torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], x[:, t], b[:, t])
        y = torch.einsum("bhpn,bhn->bhp", h, c[:, t]) + mixer.D[:, None] * x[:, t]
        y = (y.flatten(1) * F.silu(z[:, t])).view(batch, groups, -1)
        y = (y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(1) * mixer.norm.weight
        rows.append(y @ mixer.out_proj.weight.T)
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize(
    "settings",
    [{"headdim": 24}, {"headdim": 4, "d_state": 5}, {"headdim": 6, "ngroups": 2, "d_state": 3, "d_conv": 2}],
    ids=str,
)
@pytest.mark.parametrize("time", [1, 17, 67])
def test_outputs_and_gradients_follow_the_recurrence(time, settings):
    torch.manual_seed(0)
    mixer = shaken(build_mixer("mamba2", 12, settings).double())
    assert_follows(mixer, definition, torch.randn(2, time, 12, dtype=torch.float64))


@pytest.mark.parametrize("bias", [-30.0, 30.0], ids=["never", "at once"])
def test_steps_at_both_ends(bias):
    """Half of the heads forget nothing and write nothing, or forget all: decays of 1 - 1e-12 and of e^-200."""
    torch.manual_seed(0)
    mixer = shaken(build_mixer("mamba2", 8, {"headdim": 4}).double())
    with torch.no_grad():
        mixer.dt_bias[::2] = bias
    assert_follows(mixer, definition, 2 * torch.randn(2, 50, 8, dtype=torch.float64))


@pytest.mark.parametrize("time", [2, 40])
def test_pieces_and_steps_give_what_the_whole_gives(time):
    torch.manual_seed(0)
    mixer = shaken(build_mixer("mamba2", 8, {"headdim": 4, "ngroups": 2}).double())
    assert_continues(mixer, torch.randn(2, time, 8, dtype=torch.float64))


def test_replicas_stack():
    assert_stacks("mamba2", 8, {"headdim": 4, "ngroups": 2}, time=70)


def test_the_state_is_as_the_formula_says():
    mixer = build_mixer("mamba2", 16, {"d_state": 8, "headdim": 8, "ngroups": 2})
    _, state = mixer.prefill(torch.randn(1, 33, 16), mixer.init_state(1))
    recurrent, convolution = 32 * 8, 3 * (32 + 2 * 2 * 8)
    parts = by_component(measure(state))
    assert parts == {"recurrent": {"float32": 4 * recurrent}, "convolution": {"float32": 4 * convolution}}


def test_initial_values_are_the_published_ones_inside_a_model():
    torch.manual_seed(0)
    model = LanguageModel(16, 512, [("mamba2", {"headdim": 4})])
    mixer = model.blocks[0].mixer
    dt, a = F.softplus(mixer.dt_bias), mixer.A_log.exp()
    assert dt.min() >= 0.999e-3
    assert dt.max() <= 0.1001
    assert abs(dt.log().mean().item() - math.log(1e-2)) < 0.25
    assert a.min() >= 1
    assert a.max() <= 16
    assert abs(a.mean().item() - 8.5) < 1
    assert (mixer.D == 1).all()
    assert (mixer.norm.weight == 1).all()
    assert mixer.conv1d.weight.abs().max() <= 0.5
    for parameter in (mixer.dt_bias, mixer.A_log, mixer.D):
        assert parameter._no_weight_decay


def test_float32_stays_close_over_a_long_sequence_with_strong_decays():
    torch.manual_seed(0)
    mixer = shaken(build_mixer("mamba2", 16, {"headdim": 4}), size=1.0)
    x = 3 * torch.randn(1, 4096, 16)
    y = mixer(x)
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())
    with torch.no_grad():
        exact = mixer.double()(x.double())
    assert (y - exact).abs().max() < 1e-3 * exact.abs().max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"headdim": 5}, r"mamba2: expand \* d_model = 16 is not divisible by headdim = 5: .* one of 1, 2, 4, 8, 16"),
        ({"headdim": 4, "ngroups": 3}, r"4 heads do not share ngroups = 3 groups: ngroups must be one of 1, 2, 4"),
        ({"d_state": 0}, "mamba2: d_state = 0"),
        ({"d_conv": 0}, "mamba2: d_conv = 0"),
    ],
    ids=lambda given: "" if isinstance(given, str) else str(given),
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        build_mixer("mamba2", 8, settings)
