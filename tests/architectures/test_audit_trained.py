"""The backstop compares a trained model with itself, and catches what acts only on real data, lengths and weights."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

import zoology.architectures  # noqa: F401 registers the mixers that come with the package
from zoology import ContextMixer, Mixer, register_mixer
from zoology.architectures.audit import audit, step_together, verify_trained
from zoology.architectures.base import mixers
from zoology.model import LanguageModel

VOCAB, D_MODEL, TIME, CONTEXT = 64, 32, 48, 20


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(mixers, "_entries", dict(mixers._entries))


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (8, TIME), generator=torch.Generator().manual_seed(seed))


def factory(*names: str, vocab: int = VOCAB):
    return lambda: LanguageModel(vocab, D_MODEL, [(name, {}) for name in names])


def trained(make, size: float) -> nn.Module:
    """A model whose weights have grown to `size` times their width's natural scale, as training makes them."""
    model = make()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.copy_(size * torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
    return model


@pytest.mark.parametrize("size", [0.1, 1.0, 4.0])
@pytest.mark.parametrize(
    "name", ["attention", "linear-attention", "prefix-linear-attention", "sliding-window", "short-conv"]
)
def test_honest_models_agree_with_themselves(name, size):
    make = factory("short-conv", name)
    model = trained(make, size)
    model.train()
    scored = torch.zeros(8, TIME, dtype=torch.bool)
    scored[:, CONTEXT::3] = True
    assert verify_trained(make, model, tokens(), CONTEXT, scored=scored) is None
    assert model.training  # left as it was


@pytest.mark.parametrize("context", [1, TIME - 1, TIME])
def test_the_context_may_be_all_or_next_to_nothing(context):
    make = factory("short-conv", "sliding-window")
    assert verify_trained(make, trained(make, 1.0), tokens(), context) is None


def weights_of(models: list[nn.Module]) -> dict[str, torch.Tensor]:
    each = [dict((*model.named_parameters(), *model.named_buffers())) for model in models]
    return {name: torch.stack([mine[name].detach() for mine in each]) for name in each[0]}


@pytest.mark.parametrize("name", list(mixers))
def test_models_step_together_as_they_do_alone(name):
    make = factory("short-conv", name)
    models = [trained(make, size) for size in (0.5, 1.0, 2.0)]
    together = step_together(make, weights_of(models), tokens(), CONTEXT)
    assert together.shape == (3, 8, TIME, D_MODEL)
    for model, stepped in zip(models, together, strict=True):
        with torch.no_grad():
            want = model.eval()(tokens(), context_length=CONTEXT)
            got = model.head(stepped)
        assert (got - want).abs().amax() < 1e-3 * want.std()
        assert verify_trained(make, model, tokens(), CONTEXT, stepped=stepped) is None


def test_what_was_stepped_together_saves_the_steps_and_decides_nothing_alone(monkeypatch):
    make = factory("short-conv", "linear-attention")
    model = trained(make, 1.0)
    (stepped,) = step_together(make, weights_of([model]), tokens(), CONTEXT)
    taken = []
    step = LanguageModel.step

    def counted(self, *args):
        taken.append(1)
        return step(self, *args)

    monkeypatch.setattr(LanguageModel, "step", counted)
    assert verify_trained(make, model, tokens(), CONTEXT, stepped=stepped) is None
    assert not taken
    assert verify_trained(make, model, tokens(), CONTEXT, stepped=stepped + 1.0) is None
    assert len(taken) == 2 * (TIME - CONTEXT)  # it went alone, each half of the batch


class Decay(Mixer):
    """h = 0.9 h + x, y = W h: honest, to be bent."""

    def __init__(self, d_model, config):
        super().__init__()
        self.w = nn.Linear(d_model, d_model)

    def init_state(self, batch_size):
        return {"h": self.zeros(batch_size, self.w.in_features)}

    def step(self, x, state):
        h = 0.9 * state["h"] + x
        return self.w(h), {"h": h}

    def leak(self, x):
        """What each position sees of the next one."""
        return torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)


class ReadsTheCaller(Decay):
    """Looks up the stack for the tokens: no such thing is there when the mixer runs by itself."""

    def forward(self, x):
        y = super().forward(x)
        frame: Any = sys._getframe()
        while frame is not None:
            seen = frame.f_locals.get("tokens")
            if isinstance(seen, torch.Tensor) and seen.shape == x.shape[:2]:
                return y + torch.nn.functional.one_hot(seen.roll(-1, 1) % D_MODEL, D_MODEL)
            frame = frame.f_back
        return y


class WakesUpTrained(Decay):
    """A buffer counts training steps; the leak opens after some of them."""

    def __init__(self, d_model, config):
        super().__init__(d_model, config)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.steps += 1
        return super().forward(x) + (self.steps > 3) * self.leak(x)


class OneLength(Decay):
    """Leaks at one length only, which the audit does not try."""

    def forward(self, x):
        return super().forward(x) + (x.shape[1] == TIME) * self.leak(x)


class RemembersOnRealLengths(Decay):
    """Keeps all inputs in an attribute, but only of batches of 4 or 8, which the audit's are not."""

    kept: Any = None

    def prefill(self, x, state):
        y, state = super().prefill(x, state)
        self.kept = x if len(x) in (4, 8) else None
        return y + (0 if self.kept is None else x.cumsum(1)), state

    def step(self, x, state):
        y, state = super().step(x, state)
        return y + (0 if self.kept is None or len(self.kept) != len(x) else self.kept.sum(1)), state

    def forward(self, x):
        y = x
        state = self.init_state(len(x))
        outputs = []
        for t in range(x.shape[1]):
            y, state = Decay.step(self, x[:, t], state)
            outputs.append(y)
        return torch.stack(outputs, 1) + (x.cumsum(1) if len(x) in (4, 8) else 0)


@pytest.mark.parametrize(
    ("cheater", "finding"),
    [
        (ReadsTheCaller, "forward gives other logits"),
        (WakesUpTrained, "forward gives other logits"),
        (OneLength, "forward gives other logits"),
        (RemembersOnRealLengths, "forward gives other logits"),
    ],
)
def test_what_passes_the_audit_and_cheats_on_real_data_is_found(cheater, finding):
    register_mixer("sleeper")(cheater)
    assert audit("sleeper", d_model=D_MODEL, fresh_process=False).findings == ()
    make = factory("sleeper")
    model = trained(make, 1.0)
    model.train()
    for _ in range(5):
        model(tokens(1))
    found = verify_trained(make, model, tokens(), CONTEXT)
    assert found is not None
    assert found.startswith(finding)
    assert "\n" not in found


def test_an_honest_decay_is_no_finding():
    register_mixer("decay-here")(Decay)
    make = factory("decay-here")
    assert verify_trained(make, trained(make, 1.0), tokens(), CONTEXT) is None


class LeakyModel(LanguageModel):
    """The model itself, not its mixers, sees the next token or the other rows, at any length."""

    how = ""

    def bend(self, logits, tokens):
        if self.how == "rows":
            return logits - logits.mean(0)
        return logits + nn.functional.one_hot(tokens.roll(-1, 1), VOCAB)

    def forward(self, tokens, *args, **kwargs):
        return self.bend(super().forward(tokens, *args, **kwargs), tokens)

    def prefill(self, tokens, state):
        logits, state = super().prefill(tokens, state)
        return self.bend(logits, tokens), state


@pytest.mark.parametrize(("how", "finding"), [("future", "see the future"), ("rows", "the other rows of the batch")])
def test_a_model_whose_ways_to_run_agree_and_leak_is_found(how, finding):
    def make():
        model = LeakyModel(VOCAB, D_MODEL, [("short-conv", {})])
        model.how = how
        return model

    assert finding in verify_trained(make, trained(make, 1.0), tokens(), TIME)


class LooksBeyondItsContext(ContextMixer):
    """Honest but on the length that is scored: there its encoder reads all."""

    def __init__(self, d_model, config):
        super().__init__()
        self.w = nn.Linear(d_model, d_model)

    def init_state(self, batch_size):
        return {"h": self.zeros(batch_size, self.w.in_features)}

    def read_context(self, x):
        return self.prefill(x, {"h": x.mean(1)})

    def step(self, x, state):
        h = 0.9 * state["h"] + x
        return self.w(h), {"h": h}

    def forward(self, x, context_length):
        return self.prefill(x, {"h": x[:, : TIME if x.shape[1] == TIME else context_length].mean(1)})[0]


def test_who_reads_the_context_whole_must_not_read_more():
    register_mixer("looks-beyond")(LooksBeyondItsContext)
    assert audit("looks-beyond", d_model=D_MODEL, fresh_process=False).findings == ()
    make = factory("looks-beyond")
    found = verify_trained(make, trained(make, 1.0), tokens(), CONTEXT)
    assert found is not None
    assert found.startswith("forward gives other logits")
    assert verify_trained(make, trained(make, 1.0), tokens()[:, :-1], CONTEXT) is None
    assert verify_trained(make, trained(make, 1.0), tokens()[:, :-1], TIME - 1) is None


def test_scored_positions_count_for_themselves():
    """A leak at few positions, all of them scored."""

    class Late(Decay):
        def forward(self, x):
            y = super().forward(x)
            return torch.cat([y[:, :-2], y[:, -2:-1] + 5 * x[:, -1:], y[:, -1:]], 1)

    register_mixer("late")(Late)
    make = factory("late")
    model = trained(make, 1.0)
    scored = torch.zeros(8, TIME, dtype=torch.bool)
    scored[:, -2] = True
    assert verify_trained(make, model, tokens(), CONTEXT, share=0.5) is None
    assert verify_trained(make, model, tokens(), CONTEXT, share=0.5, scored=scored) is not None


def test_a_state_with_more_than_tensors_is_found():
    class Hides(Decay):
        def step(self, x, state):
            y, new = super().step(x, state)
            return y, {**new, "n": 1}

    register_mixer("hides")(Hides)
    make = factory("hides")
    assert "is a int" in verify_trained(make, trained(make, 1.0), tokens(), CONTEXT)


def test_logits_that_are_not_finite_are_found():
    make = factory("short-conv")
    model = trained(make, 1.0)
    with torch.no_grad():
        model.embedding.weight[:] = torch.nan
    assert verify_trained(make, model, tokens(), CONTEXT) == "the logits are not finite"


def test_arguments_are_checked():
    make = factory("short-conv")
    for bad in (0, TIME + 1):
        with pytest.raises(ValueError, match=f"context of {bad}"):
            verify_trained(make, make(), tokens(), bad)
    with pytest.raises(ValueError, match="needs 2 rows"):
        verify_trained(make, make(), tokens()[:1], CONTEXT)
