import pytest
import torch
import torch.nn.functional as F
from mixer_checks import assert_continues, assert_stacks, shaken

from zoology.architectures.base import ContextMixer, build_mixer, mixers
from zoology.architectures.parts import DepthwiseConv, RMSNorm, l2_normalise

OURS = [name for name in mixers if mixers.get(name).__module__.startswith("zoology.")]


@pytest.mark.parametrize("name", OURS)
def test_every_mixer_stacks_along_a_replica_axis(name):
    assert_stacks(name, 16)


@pytest.mark.parametrize("name", OURS)
def test_every_mixer_continues_from_its_state(name):
    torch.manual_seed(0)
    assert_continues(build_mixer(name, 16).double(), torch.randn(2, 21, 16, dtype=torch.float64))


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_convolution_is_a_conv1d(bias, silu):
    conv = DepthwiseConv(6, 4, bias=bias, silu=silu).double()
    twin = torch.nn.Conv1d(6, 6, 4, groups=6, padding=3, bias=bias).double()
    twin.load_state_dict(conv.state_dict())
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    want = twin(x.mT)[..., :9].mT
    want = F.silu(want) if silu else want
    torch.testing.assert_close(conv(x)[0], want)
    first, state = conv(x[:, :5])
    second, state = conv(x[:, 5:8], state)
    last, _ = conv.step(x[:, 8], state)
    torch.testing.assert_close(torch.cat((first, second, last.unsqueeze(1)), 1), want)


@pytest.mark.parametrize("gate_first", [False, True])
def test_the_norm_is_its_definition(gate_first):
    norm = RMSNorm(5, eps=1e-3, gate_first=gate_first).double()
    torch.nn.init.normal_(norm.weight)
    x, gate = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    silu = gate / (1 + (-gate).exp())
    y = x * silu if gate_first else x
    y = y / (y.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
    torch.testing.assert_close(norm(x, gate), y if gate_first else y * silu)
    torch.testing.assert_close(norm(x), x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight)
    assert norm(x.half()).dtype == torch.float16
    assert list(RMSNorm(5, affine=False).parameters()) == []


def test_unit_length():
    x = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(l2_normalise(x, 0.0), F.normalize(x, dim=-1))
    assert torch.isfinite(l2_normalise(torch.zeros(2, 3))).all()


@pytest.mark.parametrize("name", OURS)
def test_every_mixer_runs_in_bfloat16_under_autocast(name):
    """As a GPU trains: weights in float32, the stream and the products in bfloat16, gradients in float32."""
    torch.manual_seed(0)
    mixer = shaken(build_mixer(name, 16))
    x = torch.randn(2, 21, 16)
    context = (7,) if isinstance(mixer, ContextMixer) else ()
    want = mixer(x, *context)
    with torch.autocast("cpu", torch.bfloat16):
        got = mixer(x.bfloat16(), *context)
    assert (got.float() - want).norm() < 0.05 * want.norm()
    cotangent = torch.randn_like(want)
    expected = torch.autograd.grad(want, list(mixer.parameters()), cotangent)
    found = torch.autograd.grad(got, list(mixer.parameters()), cotangent.to(got.dtype))
    whole = torch.cat([g.flatten() for g in expected])
    assert (torch.cat([g.flatten() for g in found]) - whole).norm() < 0.1 * whole.norm()
