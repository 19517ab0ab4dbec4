"""What is kept, measured, against the formulas of the papers; and that it is all that is needed to go on."""

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import nn

import zoology.architectures  # noqa: F401  registers the mixers
from zoology.architectures.base import ContextMixer, Mixer, build_mixer, get_architecture, mixers
from zoology.architectures.state import by_component, copy_state, leaves, measure, total
from zoology.model import LanguageModel

D, VOCAB = 24, 37

STACKS = {
    "attention": {"num_heads": 2},
    "sliding-window": {"window": 5},
    "linear-attention": {"feature_dim": 4, "num_heads": 2},
    "short-conv": {"kernel_size": 4},
    "based": {"feature_dim": 3, "window": 4},
    "short-conv+linear-attention+sliding-window": {"feature_map": "elu"},
    "attention+short-conv": {"rotary": True},
}


def model(name: str, dials: dict, d_model: int = D) -> LanguageModel:
    """In float64, its weights large enough that every part of it matters."""
    torch.manual_seed(0)
    architecture = get_architecture(name)
    built = LanguageModel(VOCAB, d_model, architecture.layers(architecture.Config(**dials))).double().eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(std=0.4)
    return built


def kept(name: str, settings: dict, context: int, d_model: int = D) -> dict[str, int]:
    """Elements in the state of one mixer after `context` tokens of one sequence, by component."""
    mixer = build_mixer(name, d_model, settings)
    with torch.no_grad():
        _, state = mixer.prefill(torch.randn(1, context, d_model), mixer.init_state(1))
    found: dict[str, int] = {}
    for part in measure(state):
        assert part.bytes == 4 * part.elements
        found[part.component] = found.get(part.component, 0) + part.elements
    return found


@pytest.mark.parametrize("context", [7, 50])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_kept_elements_are_the_papers_formulas(heads, context):
    d = D // heads
    assert kept("attention", {"num_heads": heads}, context) == {"kv": 2 * heads * d * context}
    for window in (1, 7, 16):
        expected = {"kv": 2 * heads * d * min(context, window)}
        assert kept("sliding-window", {"window": window, "num_heads": heads}, context) == expected
    for f in (1, 4, 9):
        settings = {"feature_dim": f, "num_heads": heads}
        packed = (f + 1) * (f + 2) // 2
        assert kept("linear-attention", settings, context) == {"recurrent": heads * (d + 1) * packed}
        assert kept("linear-attention", {**settings, "feature_map": "elu"}, context) == {
            "recurrent": heads * (d + 1) * f
        }
    for taps in (1, 3, 4):
        assert kept("short-conv", {"kernel_size": taps}, context) == {"convolution": (taps - 1) * D}


@pytest.mark.parametrize("name", ["attention", "sliding-window", "linear-attention", "short-conv"])
def test_steps_keep_as_much_as_a_prefill(name):
    mixer = build_mixer(name, D)
    with torch.no_grad():
        x = torch.randn(1, 20, D)
        _, prefilled = mixer.prefill(x, mixer.init_state(1))
        state = mixer.init_state(1)
        for t in range(20):
            _, state = mixer.step(x[:, t], state)
    assert measure(state) == measure(prefilled)


def test_based_keeps_the_sum_of_its_layers():
    built = model("based", {"feature_dim": 16, "window": 16}, d_model=64).float()
    parts = built.measure_state(torch.zeros(1, 40, dtype=torch.long))
    expected = {"convolution": 2 * 64 * 4, "recurrent": 65 * 153 * 4, "kv": 2 * 64 * 16 * 4}
    assert {name: row["float32"] for name, row in by_component(parts).items()} == expected
    assert total(parts) == (sum(expected.values()) // 4, sum(expected.values()))


@pytest.mark.parametrize("name", STACKS)
def test_forward_and_prefill_and_steps_agree(name):
    built = model(name, STACKS[name])
    tokens = torch.randint(VOCAB, (3, 19), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = built(tokens)
        assert expected.std() > 0.1
        for cuts in ((0, 19), (0, 1, 8, 8, 19), (0, 12, 19)):
            state, pieces = built.init_state(3), []
            for a, b in itertools.pairwise(cuts):
                logits, state = built.prefill(tokens[:, a:b], copy_state(state))
                pieces.append(logits)
            torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-9, atol=1e-9)
        state = built.init_state(3)
        for t in range(19):
            before = copy_state(state)
            logits, after = built.step(tokens[:, t], state)
            torch.testing.assert_close(logits, expected[:, t], rtol=1e-9, atol=1e-9)
            for (_, x), (_, y) in zip(leaves(state), leaves(before), strict=True):
                assert torch.equal(x, y)  # the old state is not written into
            state = copy_state(after)


@pytest.mark.parametrize("name", sorted({"attention", "sliding-window", "linear-attention", "short-conv"}))
def test_what_comes_later_changes_nothing(name):
    mixer = build_mixer(name, D).double()
    x = torch.randn(1, 12, D, dtype=torch.float64, requires_grad=True)
    for t in (0, 5, 11):
        (seen,) = torch.autograd.grad(mixer(x)[0, t].sum(), x)
        assert not seen[0, t + 1 :].any()
        assert seen[0, t].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["attention", "sliding-window", "linear-attention", "short-conv"])
def test_the_dtype_held_is_that_of_the_weights_or_wider(name, dtype):
    """And the same at the beginning as later: sums over the past are float32 at least."""
    mixer = build_mixer(name, D).to(dtype)
    state = mixer.init_state(2)
    with torch.no_grad():
        y, after = mixer.prefill(torch.randn(2, 4, D, dtype=dtype), state)
        z, last = mixer.step(y[:, 0], after)
    assert y.dtype == z.dtype == dtype
    held = torch.promote_types(dtype, torch.float32) if name == "linear-attention" else dtype
    for _, x in (*leaves(state), *leaves(after), *leaves(last)):
        assert x.dtype == held


def test_what_cannot_be_measured_is_refused():
    class Hidden(NamedTuple):
        keys: object

    for state in (3, "kept", {"a": 1.0}, Hidden({3: torch.ones(1)}), nn.Linear(1, 1), torch.ones(2).to_sparse()):
        with pytest.raises(TypeError, match=r"measured|strings"):
            measure(state)


def test_a_copied_state_leaves_behind_what_hangs_on_it():
    class Kept(NamedTuple):
        keys: torch.Tensor
        rest: list

    whole = torch.arange(12.0, requires_grad=True)
    view = (whole * 2)[:3]
    view.secret = whole
    copied = copy_state(Kept(view, [{"conv": view[::2]}]))
    assert torch.equal(copied.keys, view)
    assert torch.equal(copied.rest[0]["conv"], view[::2])
    for _, x in leaves(copied):
        assert x.untyped_storage().nbytes() == x.numel() * x.element_size()
        assert not x.requires_grad
        assert not hasattr(x, "secret")
    assert [part.component for part in measure(copied)] == ["kv", "convolution"]


def test_every_mixer_of_the_package_is_covered_here():
    """Those that read their context whole have tests of their own."""
    ours = {name for name in mixers if mixers.get(name).__module__.startswith("zoology.")}
    ours = {name for name in ours if not issubclass(mixers.get(name), ContextMixer)}
    assert ours <= {part for name in STACKS for part in name.split("+")}
    assert all(issubclass(mixers.get(name), Mixer) for name in ours)
