import math

import pytest
import torch
import torch.nn.functional as F
from mixer_checks import assert_continues, assert_follows, assert_stacks, shaken

from zoology.architectures.base import build_mixer, get_architecture
from zoology.architectures.config import dials
from zoology.architectures.state import measure, total
from zoology.model import LanguageModel
from zoology.registry import InputError


def definition(mixer, u):
    """Equation 2 of the paper, a token at a time, the convolution as a padded nn.Conv1d."""
    time, inner, n = u.shape[1], mixer.A_log.shape[0], mixer.A_log.shape[1]
    x, z = (u @ mixer.in_proj.weight.T).split(inner, dim=-1)
    taps = mixer.conv1d.weight.shape[-1]
    x = F.conv1d(x.mT, mixer.conv1d.weight, mixer.conv1d.bias, padding=taps - 1, groups=inner)[..., :time].mT
    x = x / (1 + (-x).exp())
    dt, b, c = (x @ mixer.x_proj.weight.T).split((mixer.dt_proj.in_features, n, n), dim=-1)
    delta = torch.log1p((dt @ mixer.dt_proj.weight.T + mixer.dt_proj.bias).exp())
    a = -mixer.A_log.exp()
    h, rows = torch.zeros(len(u), inner, n, dtype=u.dtype), []
    for t in range(time):
        h = (delta[:, t, :, None] * a).exp() * h + (delta[:, t] * x[:, t])[..., None] * b[:, t, None, :]
        rows.append((h * c[:, t, None, :]).sum(-1) + mixer.D * x[:, t])
    y = torch.stack(rows, 1) * z / (1 + (-z).exp())
    return y @ mixer.out_proj.weight.T


@pytest.mark.parametrize("bias", [-8.0, 0.0, 8.0], ids=["keeps", "between", "forgets"])
@pytest.mark.parametrize("time", [1, 17, 51])
def test_outputs_and_gradients_follow_the_definition(time, bias):
    torch.manual_seed(0)
    settings = {"d_state": 3, "expand": 3, "d_conv": 4, "dt_rank": 2}
    mixer = shaken(build_mixer("mamba", 6, settings).double(), size=0.3)
    with torch.no_grad():
        mixer.dt_proj.bias += bias
    assert_follows(mixer, definition, torch.randn(2, time, 6, dtype=torch.float64))


@pytest.mark.parametrize("taps", [1, 4])
def test_it_continues_and_stacks(taps):
    torch.manual_seed(0)
    settings = {"d_state": 3, "d_conv": taps}
    mixer = shaken(build_mixer("mamba", 6, settings).double())
    assert_continues(mixer, torch.randn(2, 37, 6, dtype=torch.float64))
    assert_stacks("mamba", 6, settings)


def test_a_long_sequence_in_float32():
    torch.manual_seed(0)
    mixer = shaken(build_mixer("mamba", 8, {"d_state": 8}), size=0.3)
    x = 4 * torch.randn(1, 4096, 8)
    y = mixer(x)
    y.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in mixer.parameters())
    wide = mixer.double()(x.double())
    assert (y - wide).abs().max() < 1e-4 * wide.abs().max()


def test_it_starts_as_published():
    torch.manual_seed(0)
    model = LanguageModel(8, 128, [("mamba", {"d_state": 5})], init="papers")
    mixer = model.blocks[0].mixer
    assert mixer.dt_proj.in_features == 8
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 6).expand(256, 5))
    assert (mixer.D == 1).all()
    dt = F.softplus(mixer.dt_proj.bias).log()
    assert math.log(1e-3) - 1e-3 <= dt.min()
    assert dt.max() <= math.log(0.1) + 1e-3
    assert abs(dt.mean() - math.log(1e-2)) < 0.3  # uniform in the logarithm
    bound = 8**-0.5
    assert mixer.dt_proj.weight.abs().max() <= bound
    assert abs(mixer.dt_proj.weight.std() - bound / 3**0.5) < 0.02
    assert mixer.A_log._no_weight_decay
    assert mixer.D._no_weight_decay
    assert build_mixer("mamba", 17).dt_rank == 2
    assert build_mixer("mamba", 8).dt_rank == 1


def test_the_names_are_mamba_ssms():
    shapes = {key: tuple(p.shape) for key, p in build_mixer("mamba", 32, {"d_state": 16}).named_parameters()}
    assert shapes == {
        "in_proj.weight": (128, 32),
        "conv1d.weight": (64, 1, 4),
        "conv1d.bias": (64,),
        "x_proj.weight": (34, 64),
        "dt_proj.weight": (64, 2),
        "dt_proj.bias": (64,),
        "A_log": (64, 16),
        "D": (64,),
        "out_proj.weight": (32, 64),
    }


def test_the_state_has_as_many_elements_as_the_formula_says():
    for settings in ({"d_state": 4}, {"d_state": 8, "expand": 3, "d_conv": 2}):
        mixer = build_mixer("mamba", 12, settings)
        _, state = mixer.prefill(torch.randn(1, 40, 12), mixer.init_state(1))
        inner, taps = 12 * settings.get("expand", 2), settings.get("d_conv", 4)
        assert total(measure(state))[0] == inner * settings["d_state"] + (taps - 1) * inner


def test_dials_and_bad_settings():
    assert dials(get_architecture("mamba").Config) == {"d_state": (4, 8, 16)}
    for key in ("d_state", "expand", "d_conv"):
        with pytest.raises(InputError, match=rf"mamba: {key} = 0: .*greater than or equal to 1"):
            build_mixer("mamba", 8, {key: 0})
    with pytest.raises(InputError, match=r"mamba: dt_rank = -1"):
        build_mixer("mamba", 8, {"dt_rank": -1})
