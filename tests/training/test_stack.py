"""Replicas trained as one are what each is alone, and none knows of the others."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from trials import mqar_slice, numbers, trial

import zoology.train
from zoology.architectures.base import Mixer, register_mixer
from zoology.data import load_data
from zoology.tasks.base import IGNORE
from zoology.train import build_model, fit, seeded
from zoology.training.stack import Stack

CPU = torch.device("cpu")
RATES, SEEDS = (1e-3, 1e-2), (0, 1)
LONG = {"learning_rates": RATES, "seeds": SEEDS, "train": (mqar_slice(3200),), "validate_every": 1}


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are fastest on one, and sums are then in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # a CPU's flash attention has no vmap rule
        yield
    torch.set_num_threads(before)


def stack_of(spec, seeds=(0, 1, 2)):
    data = load_data(spec)
    models = []
    for seed in seeds:
        with seeded(seed, CPU):
            models.append(build_model(spec, data.vocab_size))
    with seeded(0, CPU):
        return Stack(models), data


@pytest.mark.parametrize("architecture", ["attention", "based"])
def test_a_stacked_replica_follows_the_lone_one(architecture):
    """A hundred steps: every loss of every replica to 1e-4."""
    spec = trial(architecture, **LONG)
    alone, together = fit(spec, stacked=False), fit(spec, stacked=True)
    assert together.notes == ()
    for one, other in zip(alone.replicas, together.replicas, strict=True):
        assert len(one.curve) == 100
        assert [point[0] for point in one.curve] == [point[0] for point in other.curve]
        losses = torch.tensor([[point[1] for point in replica.curve] for replica in (one, other)])
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("architecture", ["attention", "based"])
def test_losses_and_gradients_are_those_of_each_model(architecture):
    spec = trial(architecture)
    stack, data = stack_of(spec)
    part = data.train[0]
    batch = part.rows(torch.arange(9))
    context = part.task.context_length
    leaves = stack.leaves_of(stack.flat)
    losses = stack.mean_loss(leaves, *batch, context)
    gradients = torch.autograd.grad(losses.sum(), leaves)
    for r in range(3):
        with seeded(r, CPU):
            model = build_model(spec, data.vocab_size)
        tokens, positions, targets = batch
        logits = model(tokens, positions, context).flatten(0, 1)
        loss = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE)
        torch.testing.assert_close(losses[r], loss)
        loss.backward()
        named = dict(model.named_parameters())
        for entry, gradient in zip(stack.entries, gradients, strict=True):
            torch.testing.assert_close(gradient[r], named[entry.name].grad, rtol=1e-4, atol=1e-6)


def test_a_batch_without_labels_moves_nothing():
    stack, data = stack_of(trial())
    tokens, positions, targets = data.train[0].rows(torch.arange(2))
    leaves = stack.leaves_of(stack.flat)
    losses = stack.mean_loss(leaves, tokens, torch.zeros_like(positions), torch.full_like(targets, IGNORE), 4)
    gradients = torch.autograd.grad(losses.sum(), leaves)
    assert losses.tolist() == [0, 0, 0]
    assert not any(gradient.any() for gradient in gradients)


def test_each_replica_alone_is_the_model_it_was():
    spec = trial("based")
    stack, data = stack_of(spec)
    for r in (2, 0, 1):
        with seeded(r, CPU):
            model = build_model(spec, data.vocab_size)
        found = stack.alone(stack.flat, r)
        tokens = data.test[0].tokens[:3]
        torch.testing.assert_close(found(tokens), model(tokens), rtol=0, atol=0)
        assert stack.weights(stack.flat, r).keys() == dict(model.state_dict()).keys()


@pytest.mark.parametrize("stacked", [False, True])
def test_nan_in_one_replica_leaves_the_others_bit_equal(stacked, monkeypatch):
    spec = trial("based", learning_rates=(1e-2, 3e-3, 1e-3), train=(mqar_slice(640),), validate_every=5)
    clean = fit(spec, stacked=stacked)
    start = zoology.train.Loop.__init__

    def spoil(loop, stack, *args, **kwargs):
        start(loop, stack, *args, **kwargs)
        if stack.size == 3:
            stack.flat[1] = torch.nan
        elif args[2] == [3e-3]:
            stack.flat[:] = torch.nan

    monkeypatch.setattr(zoology.train.Loop, "__init__", spoil)
    spoiled = fit(spec, stacked=stacked)
    assert [replica.status for replica in spoiled.replicas] == ["ok", "diverged", "ok"]
    for index in (0, 2):
        assert numbers(clean.replicas[index]) == numbers(spoiled.replicas[index])


def test_replicas_stop_when_they_are_done_and_the_others_go_on():
    sizes = {"train": (mqar_slice(3200),), "valid": (mqar_slice(128),), "d_model": 32, "validate_every": 10}
    spec = trial(learning_rates=(1e-4, 2e-2, 1e38), threshold=0.5, **sizes)
    slow, quick, bad = fit(spec, stacked=True).replicas
    assert (bad.status, bad.steps) == ("diverged", 10)
    assert quick.steps < slow.steps == 100
    assert [len(replica.curve) for replica in (slow, quick, bad)] == [10, quick.steps // 10, 1]
    (alone,) = fit(
        spec.model_copy(update={"training": spec.training.model_copy(update={"learning_rates": (2e-2,)})})
    ).replicas
    assert alone.steps == quick.steps


def test_what_cannot_be_stacked_is_trained_one_by_one_and_says_why(own_registries):
    @register_mixer("looker")
    class Looker(Mixer):
        """Looks at a value on the way, which no stack of replicas can do."""

        def __init__(self, d_model, config):
            super().__init__()
            self.mix = torch.nn.Linear(d_model, d_model)

        def init_state(self, batch_size):
            return self.zeros(batch_size, 1)

        def step(self, x, state):
            return (self.mix(x) if self.mix.weight.sum().item() < 1e9 else x), state

    spec = trial(layers=("looker",), learning_rates=RATES)
    result = fit(spec, stacked=True)
    (note,) = result.notes
    assert note.startswith("its replicas cannot be trained as one, so they were trained one by one: RuntimeError")
    assert [numbers(r) for r in result.replicas] == [numbers(r) for r in fit(spec).replicas]
    assert all(row["notes"] == [note] for row in result.rows())


def test_a_group_that_does_not_fit_is_halved(monkeypatch):
    train = zoology.train.Loop.train
    seen = []

    def small(loop):
        seen.append(loop.stack.size)
        if loop.stack.size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(loop)

    monkeypatch.setattr(zoology.train.Loop, "train", small)
    spec = trial(learning_rates=(1e-3, 3e-3, 1e-2, 2e-2, 3e-2))
    result = fit(spec, stacked=True)
    assert seen == [5, 3, 2, 1, 2]
    assert result.notes == (
        "out of memory with 5 replicas together: went on with 3",
        "out of memory with 3 replicas together: went on with 2",
    )
    assert [r.learning_rate for r in result.replicas] == [1e-3, 3e-3, 1e-2, 2e-2, 3e-2]
    assert {r.status for r in result.replicas} == {"ok"}


def test_a_model_too_large_alone_fails(monkeypatch):
    def broken(loop):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(zoology.train.Loop, "train", broken)
    with pytest.raises(torch.OutOfMemoryError):
        fit(trial())
