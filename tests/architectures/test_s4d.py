import math

import pytest
import torch
import torch.nn.functional as F
from mixer_checks import assert_continues, assert_follows, assert_stacks, optimised, shaken

from zoology.architectures.base import build_mixer, get_architecture
from zoology.architectures.config import dials
from zoology.architectures.s4d import imaginary_parts
from zoology.architectures.state import measure, total
from zoology.model import LanguageModel
from zoology.registry import InputError


def definition(mixer, u):
    """The recurrence with both halves of every conjugate pair, a token at a time."""
    k = mixer.kernel
    a = torch.complex(-k.log_A_real.exp(), k.A_imag)
    a = torch.cat((a, a.conj()), -1)
    c = torch.complex(k.C[..., 0], k.C[..., 1])
    c = torch.cat((c, c.conj()), -1)
    dt = k.log_dt.exp()[:, None]
    decay, enters = (dt * a).exp(), ((dt * a).exp() - 1) / a
    h, rows = torch.zeros(len(u), *a.shape, dtype=a.dtype), []
    for t in range(u.shape[1]):
        h = decay * h + enters * u[:, t, :, None]
        y = (c * h).sum(-1)
        assert y.imag.abs().max() < 1e-9
        rows.append(y.real + mixer.D * u[:, t])
    y = F.gelu(torch.stack(rows, 1))
    value, gate = (y @ mixer.output_linear[0].weight[..., 0].T + mixer.output_linear[0].bias).chunk(2, -1)
    return value * torch.sigmoid(gate)


@pytest.mark.parametrize("shift", [-6.0, 0.0, 6.0], ids=["keeps", "between", "forgets"])
@pytest.mark.parametrize("init", ["lin", "inv", "legs"])
@pytest.mark.parametrize("time", [1, 17, 67])
def test_outputs_and_gradients_follow_the_definition(time, init, shift):
    torch.manual_seed(0)
    mixer = shaken(build_mixer("s4d", 5, {"d_state": 6, "measure": init}).double())
    with torch.no_grad():
        mixer.kernel.log_A_real += shift
    assert_follows(mixer, definition, torch.randn(2, time, 5, dtype=torch.float64))


def test_it_continues_and_stacks():
    torch.manual_seed(0)
    assert_continues(shaken(build_mixer("s4d", 6).double()), torch.randn(2, 37, 6, dtype=torch.float64))
    assert_stacks("s4d", 6, {"measure": "inv"})


def test_a_long_sequence_in_float32():
    torch.manual_seed(0)
    mixer = build_mixer("s4d", 8, {"d_state": 32, "measure": "inv"})
    x = torch.randn(1, 4096, 8)
    y = mixer(x)
    y.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in mixer.parameters())
    wide = mixer.double()(x.double())
    assert (y - wide).abs().max() < 2e-3 * wide.abs().max()  # the phases of a^4096 are rounded in float32


def test_it_starts_as_published_with_its_own_learning_rates():
    torch.manual_seed(0)
    for init, imag in (
        ("lin", [math.pi * n for n in range(4)]),
        ("inv", [8 / math.pi * (8 / (2 * n + 1) - 1) for n in range(4)]),
    ):
        model = LanguageModel(8, 200, [("s4d", {"d_state": 8, "measure": init, "kernel_lr": 3e-4})], init="papers")
        kernel = model.blocks[0].mixer.kernel
        torch.testing.assert_close(kernel.log_A_real.exp(), torch.full((200, 4), 0.5))
        torch.testing.assert_close(kernel.A_imag, torch.tensor(imag).expand(200, 4))
        assert kernel.log_dt.min() >= math.log(1e-3)
        assert kernel.log_dt.max() <= math.log(0.1)
        assert abs(kernel.C.std() - 0.5**0.5) < 0.05
    groups = optimised(model, 1e-2, 0.1)
    assert {groups[id(p)] for p in (kernel.log_dt, kernel.log_A_real, kernel.A_imag)} == {(3e-4, 0.0)}
    assert groups[id(kernel.C)] == (1e-2, 0.1)


def test_legs_has_the_eigenvalues_of_the_hippo_matrix_made_normal():
    """A = -P P^T + what is normal, with A and P as in HiPPO-LegS."""
    n, root = torch.arange(8.0, dtype=torch.float64), (2 * torch.arange(8.0, dtype=torch.float64) + 1).sqrt()
    hippo = -torch.outer(root, root).tril(-1) - torch.diag(n + 1)
    eigenvalues = torch.linalg.eigvals(hippo + 0.5 * torch.outer(root, root))
    torch.testing.assert_close(eigenvalues.real, torch.full((8,), -0.5, dtype=torch.float64))
    want = eigenvalues.imag.sort().values[4:]
    torch.testing.assert_close(imaginary_parts(8, "legs"), want.float())


def test_the_names_are_state_spaces():
    shapes = {key: tuple(p.shape) for key, p in build_mixer("s4d", 6, {"d_state": 4}).named_parameters()}
    assert shapes == {
        "D": (6,),
        "kernel.C": (6, 2, 2),
        "kernel.log_dt": (6,),
        "kernel.log_A_real": (6, 2),
        "kernel.A_imag": (6, 2),
        "output_linear.0.weight": (12, 6, 1),
        "output_linear.0.bias": (12,),
    }


@pytest.mark.parametrize("n", [2, 8])
def test_the_state_has_as_many_elements_as_the_formula_says(n):
    mixer = build_mixer("s4d", 12, {"d_state": n})
    _, state = mixer.prefill(torch.randn(1, 40, 12), mixer.init_state(1))
    assert total(measure(state)) == (12 * n, 12 * n * 4)


def test_dials_and_bad_settings():
    assert dials(get_architecture("s4d").Config) == {"d_state": (8, 16, 32)}
    with pytest.raises(InputError, match=r"^s4d: d_state = 5: must be even"):
        build_mixer("s4d", 8, {"d_state": 5})
    with pytest.raises(InputError, match=r"s4d: d_state = 0: .*greater than or equal to 2"):
        build_mixer("s4d", 8, {"d_state": 0})
    with pytest.raises(InputError, match=r"s4d: measure = 'fout': .*'lin', 'inv' or 'legs'"):
        build_mixer("s4d", 8, {"measure": "fout"})
