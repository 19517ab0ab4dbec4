import pytest
import torch
import torch.nn.functional as F
from mixer_checks import assert_continues, assert_follows, assert_stacks, shaken

from zoology.architectures.base import build_mixer, get_architecture
from zoology.architectures.config import dials
from zoology.architectures.state import leaves
from zoology.registry import InputError


def convolved(x, weight, conv):
    """SiLU of W x, through the taps of a padded depthwise nn.Conv1d where there are any."""
    y = x @ weight.T
    if conv is not None:
        taps = conv.weight.shape[-1]
        y = F.conv1d(y.mT, conv.weight, padding=taps - 1, groups=y.shape[-1])[..., : x.shape[1]].mT
    return y / (1 + torch.exp(-y))


def definition(mixer, x):
    """S_t = S_{t-1} (I - beta k k^T) + beta v k^T, o = S q, token by token."""
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
    s = x.new_zeros(batch, heads, v.shape[-1], k.shape[-1])
    eye, outputs = torch.eye(k.shape[-1], dtype=x.dtype), []
    for t in range(time):
        b = beta[:, t, :, None, None]
        kk, vk = (torch.einsum("bhi,bhj->bhij", y[:, t], k[:, t]) for y in (k, v))
        s = s @ (eye - b * kk) + b * vk
        o = torch.einsum("bhij,bhj->bhi", s, q[:, t]) / k.shape[-1] ** 0.5
        o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.o_norm.weight
        outputs.append(o.reshape(batch, -1) @ mixer.o_proj.weight.T)
    return torch.stack(outputs, dim=1)


SETTINGS = [
    {"num_heads": 1},
    {"num_heads": 3, "expand_k": 0.5, "expand_v": 2.0, "allow_neg_eigval": True},
    {"num_heads": 2, "use_short_conv": False},
    {"num_heads": 1, "conv_size": 1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("time", [1, 17, 131])
def test_outputs_and_gradients_follow_the_definition(time, settings):
    torch.manual_seed(0)
    mixer = shaken(build_mixer("deltanet", 12, settings).double(), size=0.3)
    assert_follows(mixer, definition, torch.randn(2, time, 12, dtype=torch.float64))


def test_gates_that_are_all_but_shut_or_open():
    torch.manual_seed(0)
    mixer = build_mixer("deltanet", 8, {"num_heads": 2}).double()
    with torch.no_grad():
        mixer.b_proj.weight.mul_(60)
    assert_follows(mixer, definition, torch.randn(2, 40, 8, dtype=torch.float64))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_pieces_steps_and_replicas(settings):
    torch.manual_seed(0)
    mixer = shaken(build_mixer("deltanet", 12, settings).double())
    assert_continues(mixer, torch.randn(2, 13, 12, dtype=torch.float64))
    assert_stacks("deltanet", 12, settings)


def test_a_long_sequence_in_float32():
    """The same few tokens again and again, which make the triangular systems as full as they get."""
    torch.manual_seed(0)
    mixer = build_mixer("deltanet", 8, {"num_heads": 2})
    x = torch.randn(5, 8)[torch.randint(5, (1, 4096))].requires_grad_()
    y = mixer(x)
    y.square().sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in (x, *mixer.parameters()))
    want = build_mixer("deltanet", 8, {"num_heads": 2}).double()
    want.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(y.double(), want(x.double()), rtol=1e-3, atol=1e-4)


def test_autocast_keeps_the_memory_in_float32():
    torch.manual_seed(0)
    mixer = build_mixer("deltanet", 16, {"num_heads": 2})
    x = torch.randn(2, 150, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer.prefill(x, mixer.init_state(2))
    assert state.memory.dtype == torch.float32
    torch.testing.assert_close(y.float(), mixer(x), rtol=0.1, atol=0.05)


def test_the_state_is_as_large_as_its_formula():
    mixer = build_mixer("deltanet", 24, {"num_heads": 2, "expand_k": 0.5, "expand_v": 2.0, "conv_size": 5})
    sizes = {path[-1]: leaf.numel() for path, leaf in leaves(mixer.init_state(1))}
    assert sizes == {"memory": 2 * 6 * 24, "conv_inputs": 4 * (2 * 2 * 6 + 2 * 24)}
    bare = build_mixer("deltanet", 24, {"use_short_conv": False})
    assert sum(leaf.numel() for _, leaf in leaves(bare.init_state(1))) == 24 * 24


def test_a_key_bound_anew_gives_its_last_value():
    """beta = 1 and orthonormal keys: what is read is the last value of the key, not the sum of all."""
    mixer = build_mixer("deltanet", 8, {"use_short_conv": False}).double()
    with torch.no_grad():
        for name in "qk":  # tokens are (key, value): SiLU of 40 x is 40 x for x = 1 and 0 for x = 0
            getattr(mixer, f"{name}_proj").weight.copy_(torch.diag(torch.tensor([40.0] * 4 + [0.0] * 4)))
        mixer.v_proj.weight.copy_(torch.diag(torch.tensor([0.0] * 4 + [40.0] * 4)))
        mixer.b_proj.weight[:] = 100.0
        mixer.o_proj.weight.copy_(torch.eye(8))
        key, value = torch.eye(4, dtype=torch.float64)[[0, 1, 0, 1]], torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3]]
        y = mixer(torch.cat((key, value), -1).unsqueeze(0))[0, :, 4:]
    torch.testing.assert_close(y, value * 8**0.5, rtol=1e-5, atol=1e-5)  # one of 8 channels, at unit mean square


def test_dials_and_bad_settings():
    assert dials(get_architecture("deltanet").Config) == {"num_heads": (1, 2, 4)}
    with pytest.raises(InputError, match=r"expand_k \* d_model = 8 is not divisible by num_heads = 3: .* 1, 2, 4, 8"):
        build_mixer("deltanet", 8, {"num_heads": 3})
    with pytest.raises(InputError, match=r"expand_v \* d_model = 0.3 \* 8 = 2.4: must be a whole number"):
        build_mixer("deltanet", 8, {"expand_v": 0.3})
    for key, bad in (("conv_size", 0), ("num_heads", 0), ("expand_k", 0.0)):
        with pytest.raises(InputError, match=f"deltanet: {key} = {bad!r}"):
            build_mixer("deltanet", 8, {key: bad})
