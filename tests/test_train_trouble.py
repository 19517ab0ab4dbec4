"""Training that goes wrong: replicas that diverge, trials that raise, and mixers that cheat where no audit looks."""

import json

import pytest
import torch
from torch import nn
from trials import TINY, mqar_slice, numbers, stopped, trial

import zoology.train
import zoology.training.adamw
from zoology.architectures.base import Mixer, register_mixer
from zoology.data import load_data
from zoology.record import Plugin, rows_expected
from zoology.train import fit, run_trial
from zoology.training.proof import AuditError


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are fastest on one, and sums are then in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_replica_that_diverges_is_a_result_and_leaves_the_others_alone():
    result = fit(trial(learning_rates=(1e-2, 1e38, 1e-3)))
    good, bad, late = result.replicas
    assert [good.status, bad.status, late.status] == ["ok", "diverged", "ok"]
    assert result.status == "ok"
    assert [numbers(good), numbers(late)] == [
        numbers(fit(trial(learning_rates=(rate,))).replicas[0]) for rate in (1e-2, 1e-3)
    ]
    assert bad.steps == 5  # the first look at it
    assert bad.best_step == 0
    for score, other in zip(bad.scores, good.scores, strict=True):
        assert score.accuracy is score.loss is score.accuracy_last is score.loss_last is None
        assert score.state_bytes == other.state_bytes
    rows = result.rows()
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert len(rows) == rows_expected(result.spec)


def test_what_was_good_before_it_diverged_is_kept(monkeypatch):
    monkeypatch.setattr(
        zoology.training.adamw, "learning_rate_at", lambda step, steps, warmup: 1.0 if step < 10 else 1e40
    )
    spec = trial(train=(mqar_slice(1600),), validate_every=5)
    (replica,) = fit(spec).replicas
    assert replica.status == "diverged"
    assert replica.best_step in (5, 10)
    assert replica.steps == 15
    (good,) = fit(stopped(spec, replica.best_step)).replicas
    for kept, score in zip(replica.scores, good.scores, strict=True):
        assert (kept.accuracy, kept.loss) == (score.accuracy, score.loss)
        assert kept.accuracy_last is kept.loss_last is None


def test_scores_are_proven_on_as_many_sequences_as_fit_into_memory(monkeypatch):
    proven = []

    def narrow(factory, model, tokens, *args, **kwargs):
        if len(tokens) > 8:
            raise torch.OutOfMemoryError
        proven.append((len(tokens), len(kwargs["scored"])))

    monkeypatch.setattr(zoology.training.proof, "verify_trained", narrow)
    result = fit(trial())
    assert proven == [(8, 8)]
    assert result.notes == (
        "out of memory with 32 sequences to prove T16-N2 on: took 16",
        "out of memory with 16 sequences to prove T16-N2 on: took 8",
    )


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # attention on a CPU under vmap
def test_replicas_that_cannot_step_together_are_proven_alone(monkeypatch):
    def refused(*args):
        raise RuntimeError("no batching rule")

    spec = trial(seeds=(0, 1, 2))
    together = fit(spec, stacked=True)
    monkeypatch.setattr(zoology.training.proof, "step_together", refused)
    alone = fit(spec, stacked=True)
    assert [numbers(r) for r in together.replicas] == [numbers(r) for r in alone.replicas]
    assert together.notes == alone.notes == ()


def broken(raised: BaseException) -> type[Mixer]:
    class Broken(Mixer):
        def init_state(self, batch_size):
            return ()

        def step(self, x, state):
            raise raised

        def __init__(self, d_model, config):
            super().__init__()

    return Broken


@pytest.mark.parametrize(
    "raised", [RuntimeError("out of luck"), SystemExit("out of luck")], ids=lambda e: type(e).__name__
)
def test_a_trial_that_raises_keeps_its_traceback(own_registries, raised):
    register_mixer("broken")(broken(raised))
    result = run_trial(trial(layers=("broken",)))
    assert (result.status, result.replicas) == ("failed", ())
    assert result.error.startswith("Traceback (most recent call last)")
    assert result.error.rstrip().endswith(f"{type(raised).__name__}: out of luck")
    assert "in step" in result.error
    assert "test_train_trouble.py" in result.error


def test_an_interrupt_is_no_result(own_registries):
    register_mixer("broken")(broken(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run_trial(trial(layers=("broken",)))


def test_a_worker_loads_the_plugins_of_its_trial(own_registries):
    source = """
from zoology import Mixer, register_mixer
@register_mixer("carried")
class Carried(Mixer):
    def __init__(self, d_model, config):
        super().__init__()
    def init_state(self, batch_size):
        return ()
    def step(self, x, state):
        return x, state
"""
    spec = trial(plugins=(Plugin(path="/on/another/machine/carried.py", source=source),))
    spec = spec.model_copy(update={"layers": (spec.layers[0].model_copy(update={"mixer": "carried", "settings": {}}),)})
    result = run_trial(spec)
    assert result.status == "ok", result.error


class Honest(Mixer):
    """A leaky sum. The cheaters below are this until something happens that happens only in training or in scoring."""

    def __init__(self, d_model, config):
        super().__init__()
        self.mix = nn.Linear(d_model, d_model)
        self.calls = 0

    def init_state(self, batch_size):
        return self.zeros(batch_size, self.mix.in_features)

    def step(self, x, state):
        state = 0.5 * state + x
        return self.mix(state), state

    def forward(self, x):
        self.calls += 1
        y, _ = self.prefill(x, self.init_state(x.shape[0]))
        return self.cheat(x, y) if self.cheats(x) else y

    def cheats(self, x):
        return self.calls > 50

    def cheat(self, x, y):
        return y


class LateLeak(Honest):
    """Sees the next token after fifty calls."""

    def cheat(self, x, y):
        return y + x.roll(-1, dims=1)


class LongLeak(Honest):
    """Sees the next token of sequences as long as those that are scored."""

    def cheats(self, x):
        return x.shape[1] == TINY["seq_len"] and x.shape[0] > 3

    cheat = LateLeak.cheat


class LateMixing(Honest):
    """Looks at the other rows of a batch, after fifty calls."""

    def cheat(self, x, y):
        return y + x.mean(dim=0, keepdim=True)


class Hoarder(Honest):
    """Keeps all that it has seen in training beside its state."""

    def cheat(self, x, y):
        if self.training:
            self.kept = x.detach().mean(dim=(0, 1))
        return y + self.kept


class Longer(Honest):
    """Its forward is another function than its step, after fifty calls."""

    def cheat(self, x, y):
        return self.mix(x.cumsum(dim=1))


@pytest.mark.parametrize("cheater", [LateLeak, LongLeak, LateMixing, Longer])  # a Hoarder `vmap` refuses by itself
def test_a_mixer_that_cheats_is_found_out_among_replicas_that_are_proven_together(own_registries, cheater):
    register_mixer("cheater")(cheater)
    spec = trial("cheater", layers=("cheater",), train=(mqar_slice(1920),), seeds=(0, 1, 2))
    with pytest.raises(AuditError, match="cheater on T16-N2, after training"):
        fit(spec, stacked=True)


@pytest.mark.parametrize("cheater", [LateLeak, LongLeak, LateMixing, Hoarder, Longer])
def test_a_mixer_that_cheats_only_in_training_is_found_out(own_registries, cheater):
    register_mixer("cheater")(cheater)
    spec = trial("cheater", layers=("cheater",), train=(mqar_slice(1920),))
    found = "forward gives other logits|logits depend on the other rows"
    with pytest.raises(AuditError, match=f"cheater on T16-N2, after training: .*({found})"):
        fit(spec)
    result = run_trial(spec)
    assert result.status == "failed"
    assert "AuditError: cheater on T16-N2, after training" in result.error


def test_the_same_mixer_without_the_cheat_passes(own_registries):
    register_mixer("honest")(Honest)
    assert run_trial(trial(layers=("honest",), train=(mqar_slice(1920),))).status == "ok"


def test_a_leak_at_the_scored_positions_alone_is_found_out(own_registries):
    """One position in 128 is below the share that is forgiven, but it is all that counts."""

    @register_mixer("sniper")
    class Sniper(Honest):
        def cheats(self, x):
            return True

        def cheat(self, x, y):
            return torch.cat([y[:, :2], y[:, 2:3] + 5 * y[:, 3:4], y[:, 3:]], dim=1)

    task = {"vocab_size": 32, "seq_len": 256, "num_pairs": 1, "power": 0.01}
    part = (mqar_slice(40, **task),)
    data = load_data(trial(train=part, valid=part, test=part))
    assert data.test[0].positions.eq(2).float().mean() > 0.1
    with pytest.raises(AuditError, match="after training"):
        fit(trial(layers=("sniper",), train=part, valid=part, test=part))
