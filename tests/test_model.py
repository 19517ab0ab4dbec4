"""The model around the mixers: three ways to run it that agree, what it starts from, and what it keeps."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoology.architectures  # noqa: F401  (registers the mixers)
from zoology.architectures.base import Mixer, mixers, register_mixer
from zoology.architectures.state import by_component, total
from zoology.model import LanguageModel

VOCAB, WIDTH, TIME, CONTEXT = 24, 16, 21, 8

STACKS = {
    **{name: [("short-conv", {}), (name, {})] for name in mixers if mixers.get(name).__module__.startswith("zoology.")},
    "no-layers": [],
    "based": [
        ("short-conv", {"kernel_size": 3}),
        ("linear-attention", {"feature_dim": 4, "num_heads": 2}),
        ("sliding-window", {"window": 5, "num_heads": 2}),
    ],
    "rotary-first": [("attention", {"rotary": True, "num_heads": 4}), ("linear-attention", {"feature_map": "elu"})],
}
every_stack = pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS)


def build(layers, *, seed: int = 0, d_model: int = WIDTH, **options) -> LanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LanguageModel(VOCAB, d_model, layers, **options)


def exact(layers, **options) -> LanguageModel:
    """In float64, with enough noise on every parameter that no part of it is silent."""
    model = build(layers, **options).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def draw_tokens(batch: int = 3, time: int = TIME, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, time), generator=torch.Generator().manual_seed(seed))


@every_stack
def test_forward_prefill_and_steps_agree(layers):
    model, tokens = exact(layers), draw_tokens()
    whole = model(tokens, context_length=CONTEXT)
    logits, state = model.read_context(tokens[:, :CONTEXT])
    assert torch.allclose(logits, whole[:, :CONTEXT], rtol=1e-9, atol=1e-9)
    starts = [(CONTEXT, state)]
    if not model.reads_context:
        starts.append((0, model.init_state(len(tokens))))
    for start, first in starts:
        steps, state = [], first
        for t in range(start, TIME):
            logits, state = model.step(tokens[:, t], state)
            steps.append(logits)
        assert torch.allclose(torch.stack(steps, dim=1), whole[:, start:], rtol=1e-9, atol=1e-9)

        pieces, state = [], first
        for piece in tokens[:, start:].split([7, 1, TIME - 8 - start], dim=1):
            logits, state = model.prefill(piece, state)
            pieces.append(logits)
        assert torch.allclose(torch.cat(pieces, dim=1), whole[:, start:], rtol=1e-9, atol=1e-9)


@every_stack
def test_no_logit_depends_on_later_tokens_or_other_rows(layers):
    model, tokens = exact(layers), draw_tokens()
    before = model(tokens, context_length=CONTEXT)
    for cut in (CONTEXT, TIME - 1) if model.reads_context else (1, CONTEXT, TIME - 1):
        others = torch.cat([tokens[:, :cut], (tokens[:, cut:] + 1) % VOCAB], dim=1)
        after = model(others, context_length=CONTEXT)
        assert torch.allclose(after[:, :cut], before[:, :cut], rtol=1e-10, atol=1e-10)
        assert not torch.allclose(after[:, cut], before[:, cut], rtol=1e-3)
    alone = torch.cat([model(row.unsqueeze(0), context_length=CONTEXT) for row in tokens])
    assert torch.allclose(alone, before, rtol=1e-10, atol=1e-10)


@every_stack
def test_logits_at_positions_are_those_of_the_whole(layers):
    model, tokens = exact(layers), draw_tokens()
    positions = torch.tensor([[0, 20, 3], [5, 5, 5], [19, 1, 0]])
    some, whole = model(tokens, positions, CONTEXT), model(tokens, context_length=CONTEXT)
    assert some.shape == (3, 3, VOCAB)
    for row in range(3):
        for label, time in enumerate(positions[row].tolist()):
            assert torch.allclose(some[row, label], whole[row, time], rtol=1e-12, atol=1e-12)


def test_a_context_that_is_read_whole_must_be_given():
    model, tokens = exact(STACKS["prefix-linear-attention"]), draw_tokens()
    assert model.reads_context
    for missing in (None, 0):
        with pytest.raises(ValueError, match=f"context_length = {missing}"):
            model(tokens, context_length=missing)
    others = tokens.clone()
    others[:, CONTEXT - 1] = (others[:, CONTEXT - 1] + 1) % VOCAB
    before, after = (model(t, context_length=CONTEXT) for t in (tokens, others))
    assert (after != before).any(-1).all()  # its last token is seen from the first on
    causal = exact(STACKS["linear-attention"])
    assert not causal.reads_context
    assert torch.equal(causal(tokens), causal(tokens, context_length=3))


def test_the_model_is_pre_norm_residual_with_a_final_norm():
    model, tokens = exact([("attention", {})]), draw_tokens()
    x = model.embedding.weight[tokens]
    block = model.blocks[0]
    x = x + block.mixer(F.layer_norm(x, (WIDTH,), block.norm.weight, block.norm.bias))
    x = F.layer_norm(x, (WIDTH,), model.norm.weight, model.norm.bias)
    assert torch.allclose(model(tokens), x @ model.embedding.weight.T, rtol=1e-12, atol=1e-12)


def test_the_head_is_the_embedding():
    model = build([])
    assert {name: p.numel() for name, p in model.named_parameters()} == {
        "embedding.weight": VOCAB * WIDTH,
        "norm.weight": WIDTH,
        "norm.bias": WIDTH,
    }
    tokens = torch.zeros(1, 1, dtype=torch.long)
    before = model(tokens)
    with torch.no_grad():
        model.embedding.weight[5] *= 2  # of a token that is not read, only answered
    expected = before.clone()
    expected[..., 5] *= 2
    assert torch.allclose(model(tokens), expected)


@every_stack
def test_every_parameter_gets_a_finite_gradient(layers):
    """With noise on all of them: RWKV's blocks, as published, begin as nothing."""
    model = exact(layers, init="fan-in")
    model(draw_tokens(), context_length=CONTEXT).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("init", "std"), [("papers", 0.02), ("fan-in", 256**-0.5)])
def test_weights_begin_as_they_should(init, std):
    """By the 65536 weights of each map, whose standard deviation is known to about 0.3 %."""
    layers = [("attention", {}), ("short-conv", {}), ("attention", {})]
    model = build(layers, init=init, d_model=256)
    for block in (model.blocks[0], model.blocks[2]):
        for name in ("q_proj", "k_proj", "v_proj"):
            weight = getattr(block.mixer, name).weight
            assert weight.std().item() == pytest.approx(std, rel=0.02)
            assert abs(weight.mean().item()) < std / 40
        out = std / math.sqrt(2 * 3) if init == "papers" else std
        assert block.mixer.out_proj.weight.std().item() == pytest.approx(out, rel=0.02)
    assert model.blocks[1].mixer.gate.weight.std().item() == pytest.approx(std, rel=0.02)
    assert (model.blocks[1].mixer.gate.bias == (init == "fan-in")).all()
    assert model.embedding.weight.std().item() == pytest.approx(std, rel=0.05)
    assert not torch.equal(model.blocks[0].mixer.q_proj.weight, model.blocks[2].mixer.q_proj.weight)


def test_an_unknown_init_is_refused():
    with pytest.raises(ValueError, match="init 'xavier': must be fan-in or papers"):
        build([], init="xavier")


def test_a_mixer_keeps_the_initial_values_that_it_asks_to_keep(own_registries):
    @register_mixer("settled")
    class Settled(Mixer):
        def __init__(self, d_model, config):
            super().__init__()
            self.kept, self.drawn = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
            self.out_proj, self.table = nn.Linear(d_model, d_model), nn.Embedding(4, d_model)
            self.rate = nn.Parameter(torch.full((d_model,), 7.0))
            for module in (self.kept, self.drawn, self.out_proj, self.table):
                nn.init.constant_(module.weight, 7.0)
            for module in (self.kept, self.drawn):
                nn.init.constant_(module.bias, 7.0)
            for parameter in (self.kept.weight, self.kept.bias, self.out_proj.weight, self.table.weight):
                parameter._no_reinit = True
            self.drawn.weight._no_reinit = False

        def init_state(self, batch_size):
            return ()

        def step(self, x, state):
            return x, state

    mixer = build([("settled", {})]).blocks[0].mixer
    for kept in (mixer.kept.weight, mixer.kept.bias, mixer.out_proj.weight, mixer.table.weight, mixer.rate):
        assert (kept == 7).all()
    assert mixer.drawn.weight.abs().max() < 1
    assert not mixer.drawn.bias.any()


def test_dropout_is_on_the_embedding_and_in_training_only():
    model, tokens = build([], dropout=0.5).train(), torch.arange(VOCAB).unsqueeze(0)
    x = model.embed(tokens)
    kept = x != 0
    assert 0.35 < kept.float().mean() < 0.65
    assert torch.allclose(x[kept], 2 * model.embedding(tokens)[kept])
    model.eval()
    assert torch.equal(model.embed(tokens), model.embedding(tokens))


def test_state_is_measured_at_the_end_of_the_context():
    layers = [("short-conv", {"kernel_size": 4}), ("attention", {}), ("linear-attention", {"feature_dim": 3})]
    parts = build(layers).measure_state(draw_tokens(1, 10))
    attention, conv, recurrent = 2 * 10 * WIDTH, 3 * WIDTH, (WIDTH + 1) * 10
    assert by_component(parts) == {
        "convolution": {"float32": 4 * conv},
        "kv": {"float32": 4 * attention},
        "recurrent": {"float32": 4 * recurrent},
    }
    assert total(parts) == (attention + conv + recurrent, 4 * (attention + conv + recurrent))
    assert total(build(layers).measure_state(draw_tokens(1, 20)))[0] == 2 * attention + conv + recurrent
    assert total(build([]).measure_state(draw_tokens(1, 10))) == (0, 0)


def test_two_models_of_one_seed_are_one():
    for layers in STACKS.values():
        one, same, other = (build(layers, seed=seed).state_dict() for seed in (0, 0, 1))
        assert list(one) == list(same)
        assert all(torch.equal(one[key], same[key]) for key in one)
        assert not torch.equal(one["embedding.weight"], other["embedding.weight"])
