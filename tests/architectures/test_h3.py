import math

import pytest
import torch
from mixer_checks import assert_continues, assert_follows, assert_stacks, optimised, shaken

from zoology.architectures.base import build_mixer, get_architecture
from zoology.architectures.config import dials
from zoology.architectures.state import measure, total
from zoology.model import LanguageModel
from zoology.registry import InputError


def definition(mixer, u):
    """Both models as recurrences with their own states: a shift register, and N complex numbers in conjugate pairs."""
    batch, time, width = u.shape
    d, heads = mixer.head_dim, mixer.num_heads
    q, k, v = (u @ p.weight.T + p.bias for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    shift, diagonal = mixer.ssm_k_kernel["kernel"], mixer.kernel["kernel"]
    step = torch.diag(torch.ones(shift.B.shape[1] - 1, dtype=u.dtype), -1)
    dt = diagonal.log_dt.exp()[:, None]
    a, b, c = (
        torch.cat((z, z.conj()), -1)
        for z in (
            torch.complex(-diagonal.inv_A_real.exp(), diagonal.A_imag),
            torch.complex(diagonal.B[..., 0], diagonal.B[..., 1]),
            torch.complex(diagonal.C[0, ..., 0], diagonal.C[0, ..., 1]),
        )
    )
    decay, enters = (1 + dt * a / 2) / (1 - dt * a / 2), dt * b / (1 - dt * a / 2)
    r = torch.zeros(batch, width, shift.B.shape[1], dtype=u.dtype)
    h = torch.zeros(batch, heads, d, d, c.shape[-1], dtype=c.dtype)
    rows = []
    for t in range(time):
        r = r @ step.T + shift.B * k[:, t, :, None]
        key = (shift.C[0] * r).sum(-1) + mixer.ssm_k_D * k[:, t]
        kv = key.view(batch, heads, d, 1) * v[:, t].view(batch, heads, 1, d)
        h = decay[:, None, None] * h + enters[:, None, None] * kv[..., None]
        y = (c[:, None, None] * h).sum(-1).real + mixer.D[:, None, None] * kv
        o = torch.einsum("bhi,bhij->bjh", q[:, t].view(batch, heads, d), y)  # the public code has the heads last here
        rows.append(o.reshape(batch, width))
    return torch.stack(rows, 1) @ mixer.output_linear.weight.T + mixer.output_linear.bias


@pytest.mark.parametrize("shift", [-6.0, 0.0, 4.0], ids=["keeps", "between", "forgets"])
@pytest.mark.parametrize("head_dim", [1, 3])
@pytest.mark.parametrize("time", [1, 17, 41])
def test_outputs_and_gradients_follow_the_definition(time, head_dim, shift):
    torch.manual_seed(0)
    mixer = shaken(build_mixer("h3", 6, {"d_state": 4, "head_dim": head_dim}).double())
    with torch.no_grad():
        mixer.kernel["kernel"].inv_A_real += shift
    assert_follows(mixer, definition, torch.randn(2, time, 6, dtype=torch.float64))


@pytest.mark.parametrize("init", ["lin", "inv", "legs"])
@pytest.mark.parametrize("head_dim", [1, 4])
def test_it_continues_and_stacks(head_dim, init):
    torch.manual_seed(0)
    settings = {"head_dim": head_dim, "d_state": 6, "measure": init}
    mixer = shaken(build_mixer("h3", 8, settings).double())
    assert_continues(mixer, torch.randn(2, 37, 8, dtype=torch.float64))
    assert_stacks("h3", 8, settings)


def test_a_long_sequence_in_float32():
    torch.manual_seed(0)
    mixer = build_mixer("h3", 8, {"head_dim": 2})
    x = torch.randn(1, 4096, 8)
    y = mixer(x)
    y.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in mixer.parameters())
    wide = mixer.double()(x.double())
    assert (y - wide).abs().max() < 1e-3 * wide.abs().max()


def test_it_starts_as_published():
    torch.manual_seed(0)
    model = LanguageModel(8, 64, [("h3", {"d_state": 8, "head_dim": 2})], init="papers")
    mixer = model.blocks[0].mixer
    shift, diagonal = mixer.ssm_k_kernel["kernel"], mixer.kernel["kernel"]
    assert torch.equal(shift.B, torch.eye(8)[0].expand(64, 8))
    torch.testing.assert_close(shift().flip(-1), shift.C[0])
    assert shift.C.abs().max() <= 8**-0.5
    torch.testing.assert_close(diagonal.A_imag, math.pi * torch.arange(4.0).expand(32, 4))
    torch.testing.assert_close(diagonal.inv_A_real.exp(), torch.full((32, 4), 0.5))
    assert torch.equal(diagonal.B, torch.tensor((1.0, 0.0)).expand(32, 4, 2))
    assert math.log(1e-3) <= diagonal.log_dt.min()
    assert diagonal.log_dt.max() <= math.log(0.1)
    decays = {key: decay for key, (_, decay) in optimised(model, 1e-2, 0.1).items()}
    published = (shift.B, diagonal.log_dt, diagonal.B, diagonal.inv_A_real, diagonal.A_imag)
    assert {decays[id(p)] for p in published} == {0.0}
    assert decays[id(shift.C)] == decays[id(diagonal.C)] == 0.1


def test_the_names_are_the_public_ones():
    shapes = {key: tuple(p.shape) for key, p in build_mixer("h3", 6, {"d_state": 4, "head_dim": 2}).named_parameters()}
    linear = {f"{name}.{key}": s for name in ("q_proj", "k_proj", "v_proj", "output_linear") for key, s in LINEAR}
    assert shapes == linear | {
        "ssm_k_D": (6,),
        "D": (3,),
        "ssm_k_kernel.kernel.B": (6, 4),
        "ssm_k_kernel.kernel.C": (1, 6, 4),
        "kernel.kernel.C": (1, 3, 2, 2),
        "kernel.kernel.B": (3, 2, 2),
        "kernel.kernel.log_dt": (3,),
        "kernel.kernel.inv_A_real": (3, 2),
        "kernel.kernel.A_imag": (3, 2),
    }


LINEAR = (("weight", (6, 6)), ("bias", (6,)))


@pytest.mark.parametrize("head_dim", [1, 4])
def test_the_state_has_as_many_elements_as_the_formula_says(head_dim):
    mixer = build_mixer("h3", 12, {"d_state": 6, "head_dim": head_dim})
    _, state = mixer.prefill(torch.randn(1, 40, 12), mixer.init_state(1))
    assert total(measure(state))[0] == 12 * 5 + head_dim * 12 * 6


def test_dials_and_bad_settings():
    assert set(dials(get_architecture("h3").Config)) == {"d_state", "head_dim"}
    with pytest.raises(InputError, match=r"^h3: d_model = 8 .* head_dim = 3: head_dim must be one of 1, 2, 4, 8$"):
        build_mixer("h3", 8, {"head_dim": 3})
    with pytest.raises(InputError, match=r"^h3: d_state = 5: must be even"):
        build_mixer("h3", 8, {"d_state": 5})
    with pytest.raises(InputError, match=r"h3: head_dim = 0: "):
        build_mixer("h3", 8, {"head_dim": 0})
