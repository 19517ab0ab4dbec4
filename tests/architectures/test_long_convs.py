"""The mixers around a long convolution: long-conv, hyena and base-conv."""

import math

import pytest
import torch
import torch.nn.functional as F
from mixer_checks import assert_continues, assert_follows, assert_stacks, optimised, shaken

from zoology.architectures.audit import audit
from zoology.architectures.base import build_mixer, get_architecture
from zoology.architectures.config import dials
from zoology.architectures.state import measure, total
from zoology.model import LanguageModel
from zoology.registry import InputError

NAMES = ("long-conv", "hyena", "base-conv")


def convolved(u, kernel):
    """sum_j kernel[:, j] u[t - j], written out."""
    rows = []
    for t in range(u.shape[1]):
        rows.append(sum(kernel[:, j] * u[:, t - j] for j in range(min(t + 1, kernel.shape[1]))))
    return torch.stack(rows, 1)


def implicit(module, l_max, channels):
    """Section 3.3 of Hyena: a network with sines over the positions, times a window."""
    t = torch.arange(l_max, dtype=torch.float64) / (l_max - 1)
    h = module.pos_emb.z[0]
    linears = [layer for layer in module.implicit_filter if isinstance(layer, torch.nn.Linear)]
    for layer in linears[:-1]:
        h = torch.sin(module.implicit_filter[1].freq[0] * (h @ layer.weight.T + layer.bias))
    h = h @ linears[-1].weight.T
    fast, slow = math.log(100) / 0.3, math.log(100) / 1.5
    rates = torch.linspace(slow, fast, channels, dtype=torch.float64)
    return (h * torch.exp(-t[:, None] * rates)).T


def long_conv(mixer, u):
    k = mixer.kernel.kernel[0]
    half = mixer.kernel.smooth // 2
    padded = F.pad(k, (half, half))
    k = sum(padded[:, i : i + k.shape[1]] for i in range(2 * half + 1)) / (2 * half + 1)
    k = k.sign() * (k.abs() - mixer.kernel.lam).clamp(min=0)
    y = F.gelu(convolved(u, k) + mixer.D * u)
    linear = mixer.output_linear[0]
    value, gate = (y @ linear.weight.T + linear.bias).chunk(2, -1)
    return value * torch.sigmoid(gate)


def hyena(mixer, u):
    n, d = mixer.order, mixer.d_model
    projected = u @ mixer.in_proj.weight.T + mixer.in_proj.bias
    short = mixer.short_filter
    projected = convolved(projected, short.weight[:, 0].flip(-1)) + short.bias
    *x, v = projected.split(d, -1)
    h = implicit(mixer.filter_fn, mixer.l_max, d * (n - 1))
    for i in range(n - 1):
        v = x[n - 1 - i] * v
        own = torch.arange(d) * (n - 1) + i
        v = convolved(v, h[own]) + mixer.filter_fn.bias[own] * v
    return (x[0] * v) @ mixer.out_proj.weight.T + mixer.out_proj.bias


def base_conv(mixer, u):
    h = mixer.conv.weight if hasattr(mixer.conv, "weight") else implicit(mixer.conv, mixer.l_max, mixer.d_model)
    return (convolved(u, h) + u) * (u @ mixer.projection.weight.T + mixer.projection.bias) + u


DEFINITIONS = {"long-conv": long_conv, "hyena": hyena, "base-conv": base_conv}
CASES = [
    ("long-conv", {"smooth": 5, "lam": 0.05}),
    ("long-conv", {"weight_init": "random"}),
    ("hyena", {"filter_order": 7, "emb_dim": 5, "w": 3.0}),
    ("hyena", {"order": 4, "filter_order": 5, "short_filter_order": 2}),
    ("base-conv", {"emb_dim": 7}),
    ("base-conv", {"filter": "explicit"}),
]


@pytest.mark.parametrize("l_max", [12, 80])
@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
@pytest.mark.parametrize("time", [1, 12, 75])
def test_outputs_and_gradients_follow_the_definition(time, name, settings, l_max):
    torch.manual_seed(0)
    mixer = shaken(build_mixer(name, 4, settings | {"l_max": l_max})).double()
    # Windows and positions were rounded to float32 when they were made: the definition has its own.
    for module in mixer.modules():
        if hasattr(module, "deltas"):
            channels = module.deltas.shape[-1]
            module.deltas = -torch.linspace(
                math.log(100) / 1.5, math.log(100) / 0.3, channels, dtype=torch.float64
            ).view(1, 1, -1)
        if hasattr(module, "t"):
            module.t = (torch.arange(l_max, dtype=torch.float64) / (l_max - 1)).view(1, -1, 1)
    assert_follows(mixer, DEFINITIONS[name], torch.randn(2, time, 4, dtype=torch.float64))


@pytest.mark.parametrize("l_max", [2, 9, 300])
@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_they_continue(name, settings, l_max):
    torch.manual_seed(0)
    mixer = shaken(build_mixer(name, 4, settings | {"l_max": l_max}).double())
    assert_continues(mixer, torch.randn(2, 37, 4, dtype=torch.float64))


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_they_stack(name, settings):
    assert_stacks(name, 4, settings | {"l_max": 30})


@pytest.mark.parametrize("name", NAMES)
def test_a_long_sequence_in_float32(name):
    torch.manual_seed(0)
    mixer = build_mixer(name, 8, {"l_max": 4096})
    x = torch.randn(1, 4096, 8)
    y = mixer(x)
    y.square().mean().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in mixer.parameters())
    wide = mixer.double()(x.double())
    assert (y - wide).abs().max() < 1e-4 * wide.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_the_inputs_that_the_kernel_still_reaches(name):
    fixed = 2 * 3 * 8 if name == "hyena" else 0
    mixer = build_mixer(name, 8, {"l_max": 20})
    for time, seen in ((7, 7), (19, 19), (33, 19)):
        _, state = mixer.prefill(torch.randn(1, time, 8), mixer.init_state(1))
        assert total(measure(state))[0] == fixed + 8 * seen
        assert {part.component for part in measure(state)} == {"convolution"}


@pytest.mark.parametrize("name", NAMES)
def test_the_audit_sees_how_the_state_grows(name):
    verdict = audit(name, settings={"l_max": 40}, lengths=(7,), fresh_process=False)
    assert verdict.findings == ()
    assert verdict.growth == "grows, then stays at 39 tokens"


def test_hyenas_filter_starts_and_learns_as_published():
    torch.manual_seed(0)
    model = LanguageModel(8, 6, [("hyena", {"l_max": 50, "emb_dim": 5, "w": 10.0})])
    mixer = model.blocks[0].mixer
    t = torch.arange(50)
    angle = 2 * math.pi * t / 50
    waves = [wave(f * angle) for wave in (torch.cos, torch.sin) for f in (1e-4, 1)]
    z = torch.stack([t / 49, *waves[:2], *(-w for w in waves[2:])], -1)
    torch.testing.assert_close(mixer.filter_fn.pos_emb.z[0], z, rtol=1e-4, atol=1e-5)
    network = mixer.filter_fn.implicit_filter
    assert (network[1].freq == 10).all()
    assert network[1].freq is network[3].freq is network[5].freq
    assert not torch.equal(network[2].weight, network[4].weight)
    groups = optimised(model, 1e-2, 0.1)
    assert {groups[id(p)] for p in mixer.filter_fn.implicit_filter.parameters()} == {(1e-3, 0.0)}
    assert groups[id(mixer.filter_fn.pos_emb.z)] == (1e-5, 0.0)
    assert groups[id(mixer.filter_fn.bias)] == (1e-2, 0.0)
    assert groups[id(mixer.in_proj.weight)] == (1e-2, 0.1)


def test_the_explicit_kernels_start_as_published():
    torch.manual_seed(0)
    decaying = build_mixer("long-conv", 256, {"l_max": 512}).kernel.kernel[0]
    for channel in (0, 128, 255):
        want = 0.02 * torch.exp(-torch.arange(512) / 512 * 128 ** (channel / 256))
        ratio = (decaying[channel] / want)[:128]  # further on they are 0 in float32
        assert abs(ratio.std() - 1) < 0.25
    flat = build_mixer("long-conv", 256, {"l_max": 512, "weight_init": "random"}).kernel.kernel
    assert abs(flat.std() - 0.002) < 1e-4
    assert flat._optim == {"weight_decay": 0.0}
    assert abs(build_mixer("base-conv", 64, {"filter": "explicit"}).conv.weight.std() - 1) < 0.02


def test_a_squashed_weight_is_0():
    mixer = build_mixer("long-conv", 4, {"l_max": 8, "lam": 0.5})
    with torch.no_grad():
        mixer.kernel.kernel.copy_(torch.tensor([-0.75, -0.25, 0.0, 0.25, 0.5, 0.625, 1.0, -2.0]).expand(1, 4, 8))
    want = torch.tensor([-0.25, 0, 0, 0, 0, 0.125, 0.5, -1.5])
    assert torch.equal(mixer.kernel(), want.expand(4, 8))


def test_the_names_are_the_public_ones():
    def keys(name, settings):
        return set(build_mixer(name, 4, settings).state_dict())

    network = {f"implicit_filter.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")}
    network |= {f"implicit_filter.{i}.freq" for i in (1, 3, 5)} | {"implicit_filter.6.weight"}
    network |= {"pos_emb.z", "pos_emb.t", "modulation.deltas"}
    linear = {f"{name}.{kind}" for name in ("in_proj", "out_proj", "short_filter") for kind in ("weight", "bias")}
    assert keys("hyena", {}) == linear | {"filter_fn.bias"} | {f"filter_fn.{key}" for key in network}
    assert keys("base-conv", {}) == {"projection.weight", "projection.bias"} | {f"conv.{key}" for key in network}
    assert keys("long-conv", {}) == {"D", "kernel.kernel", "output_linear.0.weight", "output_linear.0.bias"}


def test_dials_and_bad_settings():
    for name in NAMES:
        assert dials(get_architecture(name).Config) == {}
        with pytest.raises(InputError, match=rf"^{name}: l_max = 1: .*greater than or equal to 2"):
            build_mixer(name, 8, {"l_max": 1})
    for name in ("hyena", "base-conv"):
        with pytest.raises(InputError, match=rf"^{name}: emb_dim = 4: must be odd"):
            build_mixer(name, 8, {"emb_dim": 4})
    with pytest.raises(InputError, match=r"^long-conv: smooth = 4: must be odd"):
        build_mixer("long-conv", 8, {"smooth": 4})
    with pytest.raises(InputError, match=r"^hyena: order = 1: "):
        build_mixer("hyena", 8, {"order": 1})
    with pytest.raises(InputError, match=r"filter = 'none'.*'implicit' or 'explicit'"):
        build_mixer("base-conv", 8, {"filter": "none"})
