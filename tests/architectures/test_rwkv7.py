import math

import pytest
import torch
from mixer_checks import assert_continues, assert_follows, assert_stacks, shaken

from zoology.architectures.base import build_mixer, get_architecture
from zoology.architectures.config import dials
from zoology.architectures.rwkv7 import low_rank
from zoology.architectures.state import leaves
from zoology.model import LanguageModel
from zoology.registry import InputError


def definition(mixer, x):
    """RWKV-7's layer 0 in inference mode, one token after the other: S = S (diag(w) - kappa (a kappa)^T) + v k^T."""
    batch, time, width = x.shape
    n = mixer.head_size
    heads = width // n
    p = {name: value.reshape(-1) if value.shape[:2] == (1, 1) else value for name, value in mixer.named_parameters()}
    s, last, outputs = x.new_zeros(batch, heads, n, n), torch.zeros_like(x[:, 0]), []
    for t in range(time):
        now = x[:, t]
        xr, xw, xk, xv, xa, xg = (now + (last - now) * p[f"x_{c}"] for c in "rwkvag")
        last = now
        r, k, v = xr @ p["receptance.weight"].T, xk @ p["key.weight"].T, xv @ p["value.weight"].T
        decay = torch.exp(-math.exp(-0.5) / (1 + torch.exp(-(p["w0"] + torch.tanh(xw @ p["w1"]) @ p["w2"]))))
        a = 1 / (1 + torch.exp(-(p["a0"] + xa @ p["a1"] @ p["a2"])))
        g = 1 / (1 + torch.exp(-(xg @ p["g1"]))) @ p["g2"]
        kappa = (k * p["k_k"]).view(batch, heads, n)
        kappa = kappa / kappa.square().sum(-1, keepdim=True).sqrt()
        k = k * (1 + (a - 1) * p["k_a"])
        r, k, v, a, decay = (y.view(batch, heads, n) for y in (r, k, v, a, decay))
        removal = torch.einsum("bhi,bhj->bhij", kappa, a * kappa)
        s = s @ (torch.diag_embed(decay) - removal) + torch.einsum("bhi,bhj->bhij", v, k)
        o = torch.einsum("bhij,bhj->bhi", s, r)
        centred = o - o.mean(-1, keepdim=True)
        o = (centred / (centred.square().mean(-1, keepdim=True) + 64e-5).sqrt()).reshape(batch, width)
        o = o * p["ln_x.weight"] + p["ln_x.bias"]
        o = o + ((r * k * p["r_k"]).sum(-1, keepdim=True) * v).reshape(batch, width)
        outputs.append((o * g) @ p["output.weight"].T)
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("size", [4, 6, 12])
@pytest.mark.parametrize("time", [1, 17, 131])
def test_outputs_and_gradients_follow_the_definition(time, size):
    torch.manual_seed(0)
    mixer = shaken(build_mixer("rwkv7", 12, {"head_size": size}).double(), size=0.3)
    assert_follows(mixer, definition, torch.randn(2, time, 12, dtype=torch.float64), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("bias", [-12.0, 12.0])
@pytest.mark.parametrize("gate", ["w0", "a0"])
def test_gates_that_are_all_but_shut_or_open(gate, bias):
    torch.manual_seed(0)
    mixer = shaken(build_mixer("rwkv7", 8).double(), size=0.3)
    with torch.no_grad():
        getattr(mixer, gate).add_(bias)
    assert_follows(mixer, definition, torch.randn(2, 80, 8, dtype=torch.float64), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("size", [4, 12])
def test_pieces_steps_and_replicas(size):
    torch.manual_seed(0)
    mixer = shaken(build_mixer("rwkv7", 12, {"head_size": size}).double())
    assert_continues(mixer, torch.randn(2, 13, 12, dtype=torch.float64))
    assert_stacks("rwkv7", 12, {"head_size": size})


@pytest.mark.parametrize("bias", [-8.0, 0.0, 8.0], ids=["kept", "mixed", "strongest decay"])
def test_a_long_sequence_in_float32(bias):
    """The same few tokens again and again, at either end of the decay and between, head by head of 32 channels."""
    torch.manual_seed(0)
    mixer = shaken(build_mixer("rwkv7", 32, {"head_size": 32}), size=0.1)
    with torch.no_grad():
        mixer.w0.add_(bias)
    x = torch.randn(5, 32)[torch.randint(5, (1, 4096))].requires_grad_()
    y = mixer(x)
    y.square().mean().backward()
    wide = build_mixer("rwkv7", 32, {"head_size": 32}).double()
    wide.load_state_dict(mixer.state_dict())
    want = wide(x.detach().double())
    want.square().mean().backward()
    torch.testing.assert_close(y.double(), want, rtol=1e-3, atol=1e-3 * want.abs().max().item())
    for (name, one), other in zip(mixer.named_parameters(), wide.parameters(), strict=True):
        scale = other.grad.abs().max().item()
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-2, atol=1e-2 * scale, msg=name)


def test_autocast_keeps_the_memory_in_float32():
    torch.manual_seed(0)
    mixer = shaken(build_mixer("rwkv7", 16))
    x = torch.randn(2, 150, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer.prefill(x, mixer.init_state(2))
    want = mixer(x)
    assert state.memory.dtype == torch.float32
    torch.testing.assert_close(y.float(), want, rtol=0.1, atol=0.05 * want.abs().max().item())


def test_a_key_written_again_replaces_its_value():
    """a = 1, no decay, one unit key twice: S kappa is the second value. In the paper's words, full replacement."""
    mixer = build_mixer("rwkv7", 4, {"head_size": 4}).double()
    with torch.no_grad():
        for mu in "rwkvag":
            getattr(mixer, f"x_{mu}").zero_()
        mixer.w0.fill_(-60.0)
        mixer.a0.fill_(60.0)
        mixer.k_k.fill_(1.0)
        mixer.key.weight.zero_()
        mixer.key.weight[0, 0] = 1.0  # the first channel is the key, all are the value
        mixer.value.weight.copy_(torch.eye(4))
    x = torch.tensor([[[1.0, 5.0, 6.0, 7.0], [1.0, -2.0, 3.0, 8.0]]], dtype=torch.float64)
    with torch.no_grad():
        _, state = mixer.prefill(x, mixer.init_state(1))
    torch.testing.assert_close(state.memory[0, 0, 0], x[0, 1])


def test_it_begins_as_published():
    """Layer 0 of 1 at the published width of a head: values worked out from the recipe by hand."""
    torch.manual_seed(0)
    mixer = LanguageModel(8, 128, [("rwkv7", {"head_size": 64})]).blocks[0].mixer
    assert mixer.x_r.shape == mixer.w0.shape == mixer.a0.shape == mixer.k_k.shape == (1, 1, 128)
    assert mixer.x_k[0, 0, 0] == 1
    assert mixer.x_k[0, 0, 64].item() == pytest.approx(1 - 0.5**0.7)
    assert mixer.x_g[0, 0, 32].item() == pytest.approx(1 - 0.25**0.2)
    # Channel 0 is the first of its head, where the zigzag is -1, and 127 the last, where it is 1.
    assert mixer.w0[0, 0, [0, 127]].tolist() == pytest.approx([-6 + 0.5 - 2.5, 0.5 + 2.5])
    assert mixer.a0[0, 0, [0, 127]].tolist() == pytest.approx([-0.19 - 0.3 - 0.2, -0.19 + 0.3 + 0.2])
    assert mixer.k_k[0, 0, [0, 127]].tolist() == pytest.approx([0.76, 0.66])
    assert (mixer.k_a == 1.02).all()
    assert mixer.r_k.shape == (2, 64)
    assert (mixer.r_k == -0.04).all()
    assert mixer.w1.shape == (128, 32)
    assert mixer.g2.shape == (64, 128)
    assert not mixer.w1.any()
    torch.testing.assert_close(mixer.w2 @ mixer.w2.T, 0.01 * torch.eye(32), rtol=1e-4, atol=1e-6)
    assert 0.95 * 0.05 < mixer.key.weight.abs().max() * 128**0.5 <= 0.05
    assert 0.95 * 0.5 < mixer.receptance.weight.abs().max() * 128**0.5 <= 0.5
    assert not mixer.output.weight.any()
    decaying = [n for n, p in mixer.named_parameters() if p.ndim > 1 and not hasattr(p, "_no_weight_decay")]
    assert decaying == ["receptance.weight", "key.weight", "value.weight", "output.weight"]


@pytest.mark.parametrize(("width", "ranks"), [(8, (8, 8)), (64, (32, 32)), (768, (64, 128)), (4096, (160, 320))])
def test_ranks_are_those_published_for_the_width(width, ranks):
    assert (low_rank(width, 2.5), low_rank(width, 5.0)) == ranks


def test_the_state_is_as_large_as_its_formula():
    sizes = {path[-1]: leaf.numel() for path, leaf in leaves(build_mixer("rwkv7", 24).init_state(1))}
    assert sizes == {"memory": 24 * 8, "conv_last": 24}


def test_dials_and_bad_settings():
    assert dials(get_architecture("rwkv7").Config) == {"head_size": (4, 8)}
    with pytest.raises(InputError, match="head_size = 5 does not divide d_model = 12: must be one of 2, 3, 4, 6, 12"):
        build_mixer("rwkv7", 12, {"head_size": 5})
    for bad in (0, 1):
        with pytest.raises(InputError, match=f"rwkv7: head_size = {bad}"):
            build_mixer("rwkv7", 12, {"head_size": bad})
