import math

import pytest
import torch
from mixer_checks import assert_continues, assert_follows, shaken

from zoology.architectures.base import Layer, build_mixer, get_architecture
from zoology.architectures.config import dials
from zoology.architectures.state import measure, total
from zoology.registry import InputError


def make(d_model=12, f=5, heads=1):
    torch.manual_seed(0)
    settings = {"feature_dim": f, "num_heads": heads}
    return build_mixer("prefix-linear-attention", d_model, settings).double()


def definition(mixer, x, context):
    """Token by token and head by head: sums over the encoder's keys, then the decoder's join one by one."""
    heads, f = mixer.num_heads, mixer.feature_dim
    d = x.shape[-1] // heads

    def w(q, k):
        s = (q * k).sum(-1) / math.sqrt(f)
        return (1 + s + s * s / 2).unsqueeze(-1)

    rows = []
    for t in range(x.shape[1]):
        out = []
        for h in range(heads):
            keys, values = slice(h * f, (h + 1) * f), slice(h * d, (h + 1) * d)
            q = x[:, t] @ mixer.proj_q.weight[keys].T
            numerator = denominator = 0
            for s in range(min(context, x.shape[1])):
                weight = w(q, x[:, s] @ mixer.proj_k_enc.weight[keys].T)
                numerator = numerator + weight * (x[:, s] @ mixer.proj_v_enc.weight[values].T)
                denominator = denominator + weight
            for s in range(t + 1):
                weight = w(q, x[:, s] @ mixer.proj_k.weight[keys].T)
                numerator = numerator + weight * (x[:, s] @ mixer.proj_v.weight[values].T)
                denominator = denominator + weight
            out.append(numerator / (denominator + 1e-6))
        rows.append(torch.cat(out, -1) @ mixer.out_proj.weight.T)
    return torch.stack(rows, 1)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(("time", "context"), [(1, 1), (17, 1), (17, 6), (17, 16), (17, 17)])
def test_outputs_and_gradients_follow_the_definition(time, context, heads):
    mixer = shaken(make(heads=heads), size=0.3)
    assert_follows(mixer, definition, torch.randn(2, time, 12, dtype=torch.float64), context=context)


@pytest.mark.parametrize(("time", "context"), [(21, 8), (300, 140), (300, 290)])
def test_it_goes_on_from_its_state_across_chunks(time, context):
    mixer = shaken(make(heads=2), size=0.3)
    x = torch.randn(2, time, 12, dtype=torch.float64)
    assert_continues(mixer, x[:, :21])
    whole = mixer(x, context)
    y, state = mixer.read_context(x[:, :context])
    z, _ = mixer.prefill(x[:, context:], state)
    torch.testing.assert_close(torch.cat((y, z), 1), whole, rtol=1e-9, atol=1e-10)


def test_the_context_is_read_whole_and_nothing_after_it():
    mixer = shaken(make(), size=0.3)
    x = torch.randn(1, 10, 12, dtype=torch.float64)
    y = mixer(x, 6)
    last = x.clone()
    last[:, 5] += 1
    assert ((mixer(last, 6) - y).abs().amax((0, 2)) > 1e-6).all()  # from the first token on
    after = x.clone()
    after[:, 6] += 1
    changed = (mixer(after, 6) - y).abs().amax((0, 2)) > 1e-12
    assert changed.tolist() == [False] * 6 + [True] * 4


def test_without_an_encoder_it_is_linear_attention():
    """Encoder keys of 0 and values of 0 add M to the denominator and nothing above: remove that, and Based is left."""
    mixer = shaken(make(heads=2), size=0.3)
    based = build_mixer("linear-attention", 12, {"feature_dim": 5, "num_heads": 2}).double()
    names = {"q_proj": "proj_q", "k_proj": "proj_k", "v_proj": "proj_v", "out_proj": "out_proj"}
    based.load_state_dict({f"{ours}.weight": getattr(mixer, theirs).weight for ours, theirs in names.items()})
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    torch.testing.assert_close(mixer.prefill(x, mixer.init_state(2))[0], based(x))


def test_the_same_projections_show_the_context_twice():
    """With the encoder's projections equal to the decoder's, a context is what linear attention makes of two readings:
    just read twice."""
    mixer = shaken(make(), size=0.3)
    with torch.no_grad():
        mixer.proj_k_enc.weight.copy_(mixer.proj_k.weight)
        mixer.proj_v_enc.weight.copy_(mixer.proj_v.weight)
    x = torch.randn(2, 11, 12, dtype=torch.float64)
    twice, _ = mixer.prefill(torch.cat((x[:, :7], x), 1), mixer.init_state(2))
    torch.testing.assert_close(mixer(x, 7), twice[:, 7:])


def test_its_state_is_that_of_linear_attention():
    mixer = make(12, 4, 2)
    for context in (1, 50):
        _, state = mixer.read_context(torch.randn(1, context, 12, dtype=torch.float64))
        elements, _ = total(measure(state))
        assert elements == 2 * (6 + 1) * 15
    assert {t.dtype for t in make().float().bfloat16().init_state(1)} == {torch.float32}


def test_a_long_sequence_in_float32():
    mixer = make(8, 4, 2).float()
    x = (10 * torch.randn(1, 4096, 8)).requires_grad_()
    y = mixer(x, 3000)
    y.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in (x, *mixer.parameters()))
    torch.testing.assert_close(y.double(), mixer.double()(x.double(), 3000), rtol=1e-4, atol=1e-4)


def test_stacks_and_bad_settings():
    config = get_architecture("jrt-rnn").Config(feature_dim=4, window=8, num_heads=2)
    assert get_architecture("jrt-rnn").layers(config) == (
        Layer("short-conv", {"kernel_size": 3}),
        Layer("prefix-linear-attention", {"feature_dim": 4, "num_heads": 2}),
        Layer("sliding-window", {"window": 8, "num_heads": 2, "dropout": 0.0}),
    )
    assert dials(get_architecture("prefix-linear-attention").Config) == {"feature_dim": (4, 8, 16)}
    with pytest.raises(InputError, match="prefix-linear-attention: feature_dim = 0"):
        build_mixer("prefix-linear-attention", 8, {"feature_dim": 0})
    with pytest.raises(InputError, match="num_heads = 3"):
        build_mixer("prefix-linear-attention", 8, {"num_heads": 3})
