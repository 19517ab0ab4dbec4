import math

import pytest
import torch
from mixer_checks import assert_continues, assert_follows, assert_stacks, shaken

from zoology.architectures.base import build_mixer, get_architecture
from zoology.architectures.config import dials
from zoology.architectures.state import leaves
from zoology.model import LanguageModel
from zoology.registry import InputError


def definition(mixer, x):
    """The paper's sums as they stand, one token after the other, in float64 without any shift."""
    p = {name: value.reshape(-1) if value.shape[:2] == (1, 1) else value for name, value in mixer.named_parameters()}
    fade, u = torch.exp(-torch.exp(p["time_decay"])), p["time_first"]
    last, outputs = torch.zeros_like(x[:, 0]), []
    numerator = denominator = last * fade
    for t in range(x.shape[1]):
        now = x[:, t]
        r, k, v = (
            (now * p[f"time_mix_{c}"] + last * (1 - p[f"time_mix_{c}"])) @ p[f"{name}.weight"].T
            for c, name in (("r", "receptance"), ("k", "key"), ("v", "value"))
        )
        own = torch.exp(u + k)
        y = (numerator + own * v) / (denominator + own) / (1 + torch.exp(-r))
        numerator, denominator = fade * numerator + torch.exp(k) * v, fade * denominator + torch.exp(k)
        outputs.append(y @ p["output.weight"].T)
        last = now
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("time", [1, 17, 131])
def test_outputs_and_gradients_follow_the_definition(time):
    torch.manual_seed(0)
    mixer = shaken(build_mixer("rwkv4", 12).double(), size=0.5)
    assert_follows(mixer, definition, torch.randn(2, time, 12, dtype=torch.float64))


@pytest.mark.parametrize("shift", [-12.0, 4.0], ids=["kept", "forgotten"])
def test_fading_at_either_end_and_large_keys(shift):
    torch.manual_seed(0)
    mixer = shaken(build_mixer("rwkv4", 8).double(), size=0.5)
    with torch.no_grad():
        mixer.time_decay.add_(shift)
        mixer.key.weight.mul_(10)
    assert_follows(mixer, definition, torch.randn(2, 60, 8, dtype=torch.float64))


def test_pieces_steps_and_replicas():
    torch.manual_seed(0)
    assert_continues(shaken(build_mixer("rwkv4", 12).double()), torch.randn(2, 37, 12, dtype=torch.float64))
    assert_stacks("rwkv4", 12)


def test_a_long_sequence_in_float32():
    torch.manual_seed(0)
    mixer = shaken(build_mixer("rwkv4", 8), size=0.5)
    with torch.no_grad():
        mixer.key.weight.mul_(30)
    x = torch.randn(1, 4096, 8, requires_grad=True)
    y = mixer(x)
    y.square().mean().backward()
    assert all(torch.isfinite(t.grad).all() for t in (x, *mixer.parameters()))
    wide = build_mixer("rwkv4", 8).double()
    wide.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(y.double(), wide(x.double()), rtol=1e-3, atol=1e-3)


def test_autocast_keeps_the_sums_in_float32():
    torch.manual_seed(0)
    mixer = shaken(build_mixer("rwkv4", 16))
    x = torch.randn(2, 150, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer.prefill(x, mixer.init_state(2))
    want = mixer(x)
    assert {t.dtype for t in state.wkv} == {torch.float32}
    torch.testing.assert_close(y.float(), want, rtol=0.1, atol=0.05 * want.abs().max().item())


def test_without_fading_and_with_equal_keys_it_is_the_mean():
    mixer = build_mixer("rwkv4", 4).double()
    with torch.no_grad():
        mixer.time_decay.fill_(-100.0)
        mixer.time_first.zero_()
        mixer.time_mix_v.fill_(1.0)
        mixer.value.weight.copy_(torch.eye(4))
        mixer.output.weight.copy_(2 * torch.eye(4))  # the receptance is 0, so its sigmoid 1 / 2
        x = torch.randn(2, 30, 4, dtype=torch.float64)
        torch.testing.assert_close(mixer(x), x.cumsum(1) / torch.arange(1, 31).view(1, -1, 1))


def test_it_begins_as_published():
    """The first layer of the published model: values worked out from its recipe by hand."""
    torch.manual_seed(0)
    mixer = LanguageModel(8, 101, [("rwkv4", {})]).blocks[0].mixer
    assert mixer.time_decay[[0, 50, 100]].tolist() == pytest.approx([-5, -5 + 8 * 0.5**0.7, 3])
    assert mixer.time_first[:4].tolist() == pytest.approx([math.log(0.3) + z for z in (0, 0.5, -0.5, 0)])
    assert mixer.time_mix_k.shape == (1, 1, 101)
    assert mixer.time_mix_k[0, 0, 25].item() == mixer.time_mix_v[0, 0, 25].item() == pytest.approx(25 / 101)
    assert mixer.time_mix_r[0, 0, 25].item() == pytest.approx((25 / 101) ** 0.5)
    torch.testing.assert_close(mixer.value.weight @ mixer.value.weight.T, torch.eye(101), rtol=1e-4, atol=1e-5)
    assert not any(getattr(mixer, name).weight.any() for name in ("key", "receptance", "output"))
    assert all(getattr(mixer, f"time_mix_{c}")._no_weight_decay for c in "rkv")


def test_the_state_is_as_large_as_its_formula():
    sizes = {path[-1]: leaf.numel() for path, leaf in leaves(build_mixer("rwkv4", 24).init_state(1))}
    assert sizes == {"numerator": 24, "denominator": 24, "exponent": 24, "conv_last": 24}


def test_there_is_nothing_to_set():
    assert dials(get_architecture("rwkv4").Config) == {}
    with pytest.raises(InputError, match="rwkv4: unknown setting 'head_size'"):
        build_mixer("rwkv4", 8, {"head_size": 4})
