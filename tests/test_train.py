"""Training: the same numbers every time, replicas that do not touch one another, and scores that are proved."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trials import TINY, mqar_slice, numbers, stopped, trial

import zoology.training.adamw
import zoology.training.evaluate
from zoology.architectures.base import Mixer, register_mixer
from zoology.data import load_data
from zoology.record import ReplicaResult, Slice, TrialResult, rows_expected
from zoology.registry import InputError
from zoology.tasks.base import IGNORE, build_task
from zoology.train import Progress, build_model, fit, run_trial, seeded
from zoology.training.evaluate import evaluate_all
from zoology.training.loop import Loop
from zoology.training.stack import Stack
from zoology.training.steps import Steps

CPU = torch.device("cpu")
RATES = (1e-3, 1e-2)


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are fastest on one, and sums are then in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Seen:
    """What passes through training: the first weights of each group, and the batches it is trained on."""

    def __init__(self):
        self.stacks: list[Stack] = []
        self.first: list[dict[str, torch.Tensor]] = []
        self.batches: list[list[torch.Tensor]] = []


@pytest.fixture
def seen(monkeypatch) -> Seen:
    watched = Seen()
    train, step = Loop.train, Steps.__call__

    def watch(loop):
        watched.stacks.append(loop.stack)
        watched.first.append(loop.stack.weights(loop.stack.flat, 0))
        watched.batches.append([])
        return train(loop)

    def look(steps, part, rows):
        watched.batches[-1].append(part.tokens[rows])
        return step(steps, part, rows)

    monkeypatch.setattr(Loop, "train", watch)
    monkeypatch.setattr(Steps, "__call__", look)
    return watched


def by_replica(result: TrialResult) -> dict[tuple[float, int], dict[str, Any]]:
    return {(replica.learning_rate, replica.seed): numbers(replica) for replica in result.replicas}


def accuracy(replica: ReplicaResult, split: str, which: str = "accuracy") -> float:
    values = [getattr(score, which) for score in replica.scores if score.split == split]
    return sum(values) / len(values)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


# --- What decides the numbers ---


@pytest.mark.parametrize("architecture", ["attention", "based"])
def test_a_spec_gives_the_same_result_to_the_last_bit(architecture):
    spec = trial(architecture, learning_rates=RATES, seeds=(0, 1), embedding_dropout=0.1)
    one = fit(spec)
    torch.rand(7)  # whatever else happened meanwhile
    other = fit(spec)
    assert by_replica(one) == by_replica(other)
    assert one.parameters == other.parameters
    assert len({replica.scores[0].loss for replica in one.replicas}) == 4


def test_a_worker_gets_what_the_library_gets():
    spec = trial()
    assert by_replica(run_trial(spec)) == by_replica(fit(spec))


def test_the_random_state_outside_is_left_alone():
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    before = states()
    fit(trial("based", embedding_dropout=0.1))
    assert states() == before


@pytest.mark.parametrize("flushed", [False, True])
def test_how_the_cpu_treats_denormal_numbers_is_left_alone(flushed):
    def product() -> float:
        return (torch.full((1,), 1e-39) * 1.0).item()

    torch.set_flush_denormal(flushed)
    try:
        fit(trial())
        assert (product() == 0) == flushed
    finally:
        torch.set_flush_denormal(False)


def test_a_replica_does_not_depend_on_the_others():
    together = by_replica(fit(trial(learning_rates=RATES, seeds=(0, 1, 2), embedding_dropout=0.1)))
    turned = by_replica(fit(trial(learning_rates=RATES[::-1], seeds=(2, 0), embedding_dropout=0.1)))
    assert len(together) == 6
    assert turned == {key: together[key] for key in turned}


def test_a_model_seed_changes_the_first_weights_and_nothing_of_the_data(seen):
    fit(trial(seeds=(0, 1), learning_rates=RATES))
    (zero, one), (again, _) = seen.first[:2], seen.first[2:]
    assert equal(zero, again)
    assert not any(torch.equal(zero[key], one[key]) for key in zero if zero[key].ndim == 2)
    for batches in seen.batches[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen.batches[0], batches, strict=True))


def test_the_data_seed_changes_the_data_and_not_the_first_weights(seen):
    results = [fit(trial(data_seed=seed)) for seed in (0, 1)]
    assert equal(*seen.first)
    assert not any(torch.equal(a, b) for a, b in zip(*seen.batches, strict=True))
    tests = [[score.test_hash for score in result.replicas[0].scores] for result in results]
    assert tests[0] == tests[1]


def test_an_epoch_after_another_comes_in_another_order(seen):
    fit(trial(epochs=2))
    batches = seen.batches[0]
    assert len(batches) == 20
    first, second = torch.cat(batches[:10]), torch.cat(batches[10:])
    assert not torch.equal(first, second)
    assert sorted(first.tolist()) == sorted(second.tolist())


# --- What is measured ---


def untrained(spec):
    data = load_data(spec)
    with seeded(0, CPU):
        model = build_model(spec, data.vocab_size).eval()
    return model, Stack([model]), data


def test_loss_and_accuracy_at_labelled_positions_are_those_of_all_logits():
    spec = trial("based", valid=(mqar_slice(70), mqar_slice(70, num_pairs=4)), test=(mqar_slice(9), TWO))
    model, stack, data = untrained(spec)
    (measured,) = evaluate_all(stack, stack.flat, data.valid)
    for part, found in zip(data.valid, measured, strict=True):
        labels = torch.from_numpy(part.task.solve(part.tokens.numpy())).long()
        logits = model(part.tokens).detach().double()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())  # the labels' own mark of "none" is torch's
        assert found.loss == pytest.approx(loss.item(), rel=1e-5)
        right = (logits.argmax(-1) == labels)[labels != IGNORE]
        assert found.accuracy == pytest.approx(right.double().mean().item(), abs=1e-12)


TWO = mqar_slice(9, num_pairs=4)


def test_accuracy_by_where_the_answers_stand():
    model, stack, data = untrained(trial(test=(mqar_slice(200),), valid=(mqar_slice(200),)))
    (part,) = data.test
    ((found,),) = evaluate_all(stack, stack.flat, data.test, places=True)
    labels = torch.from_numpy(part.task.solve(part.tokens.numpy())).long()
    right = model(part.tokens).argmax(-1) == labels
    asked = labels != IGNORE
    assert 4 <= len(found.places) <= 8
    assert sum(place.answers for place in found.places) == asked.sum()
    assert [place.first for place in found.places] == sorted(place.first for place in found.places)
    for place in found.places:
        there = slice(place.first, place.last + 1)
        assert place.answers == asked[:, there].sum()
        assert place.accuracy == pytest.approx((right & asked)[:, there].sum().item() / place.answers)
    (row,) = [row for row in fit(trial()).rows() if row["split"] == "test"]
    assert sum(answers for _, _, answers, _ in row["by_position"]) == 96 * 2


def test_evaluation_does_not_depend_on_how_much_is_done_at_a_time(monkeypatch):
    _, stack, data = untrained(trial())
    ((whole,),) = evaluate_all(stack, stack.flat, data.test)
    monkeypatch.setattr(zoology.training.evaluate, "CPU_EVALUATION_TOKENS", 7 * TINY["seq_len"])
    ((pieces,),) = evaluate_all(stack, stack.flat, data.test)
    assert pieces.accuracy == whole.accuracy
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-6)


@pytest.fixture
def spoiled(monkeypatch):
    """From step 30 on the learning rate is a hundred times too large: what was learned is lost."""
    monkeypatch.setattr(
        zoology.training.adamw, "learning_rate_at", lambda step, steps, warmup: 1.0 if step < 30 else 100.0
    )


def test_best_is_never_below_last_on_validation(spoiled):
    spec = trial(learning_rates=(1e-2, 3e-2), seeds=(0, 1), d_model=32, train=(mqar_slice(1600),), validate_every=3)
    for replica in fit(spec).replicas:
        assert (replica.status, replica.steps) == ("ok", 50)
        assert replica.best_step <= 30
        assert replica.best_step % 3 == 0
        assert accuracy(replica, "valid") > accuracy(replica, "valid", "accuracy_last")


def test_what_is_called_best_is_the_model_of_its_step(spoiled):
    spec = trial(d_model=32, train=(mqar_slice(1600),), validate_every=3)
    (whole,) = fit(spec).replicas
    (cut,) = fit(stopped(spec, whole.best_step)).replicas
    assert cut.steps == whole.best_step < whole.steps
    for at_best, at_last in zip(whole.scores, cut.scores, strict=True):
        assert (at_best.accuracy, at_best.loss) == (at_last.accuracy_last, at_last.loss_last)
        assert at_best.loss < at_best.loss_last


def test_training_stops_where_validation_reaches_the_threshold():
    never = fit(trial(threshold=1.0, train=(mqar_slice(640),))).replicas[0]
    assert never.steps == 20
    early = fit(trial(threshold=0.02, train=(mqar_slice(640),))).replicas[0]
    assert early.steps == early.best_step < 20
    assert early.steps % 5 == 0
    assert accuracy(early, "valid") >= 0.02


def test_progress_tells_where_a_trial_is():
    told: list[Progress] = []
    fit(trial(train=(mqar_slice(1280),), seeds=(0, 1)), progress=told.append)
    assert [(p.replica, p.together, p.replicas, p.step, p.steps) for p in told] == [
        (replica, 1, 2, step, 40) for replica in (0, 1) for step in (20, 40)
    ]
    assert all(0 <= p.accuracy <= 1 for p in told)


def test_parameters_are_counted():
    spec = trial(d_model=16)
    d, vocab, kernel = 16, 32, 3
    short_conv = d * d + d + d * kernel + d
    assert fit(spec).parameters == vocab * d + 2 * (2 * d) + 2 * d + short_conv + 4 * d * d


def test_state_bytes_are_those_at_the_end_of_each_context():
    scored = (mqar_slice(8), mqar_slice(8, num_pairs=4))
    (replica,) = fit(trial(d_model=16, train=scored, valid=scored, test=scored)).replicas
    assert [(s.split, s.slice) for s in replica.scores] == [
        (split, name) for split in ("valid", "test") for name in ("T16-N2", "T16-N4")
    ]
    for score, pairs in zip(replica.scores, (2, 4, 2, 4), strict=True):
        context, taps = 2 * pairs, 2
        assert score.state_parts == {
            "kv": {"float32": 2 * 16 * context * 4},
            "convolution": {"float32": taps * 16 * 4},
        }
        assert score.state_bytes == 4 * score.state_elements == 2 * 16 * context * 4 + taps * 16 * 4
        assert score.limit_bits == pytest.approx(math.log2(math.perm(16, pairs)))
        assert score.examples == 8


def test_rows_are_as_many_as_expected_and_tell_the_frozen_test_set():
    spec = trial(learning_rates=RATES, seeds=(0, 1), valid=(mqar_slice(5), TWO), test=(mqar_slice(9), TWO))
    rows = fit(spec).rows()
    assert len(rows) == rows_expected(spec) == 16
    hashes = {part.name: part.hash for part in load_data(spec).test}
    assert all(row["test_hash"] == hashes[row["slice"]] for row in rows)


@pytest.mark.parametrize("examples", [1, 2])
def test_a_few_test_sequences_are_enough(examples):
    few = (mqar_slice(examples),)
    assert fit(trial(valid=(mqar_slice(1),), test=few)).status == "ok"


# --- What models learn ---


def test_attention_learns_a_small_recall_task_and_a_memoryless_stack_does_not():
    def best(*layers: str) -> ReplicaResult:
        sizes = {"train": (mqar_slice(9600),), "valid": (mqar_slice(128),), "test": (mqar_slice(256),)}
        return fit(trial(layers=layers, d_model=32, validate_every=20, threshold=0.98, **sizes)).replicas[0]

    solved, lost = best("short-conv", "attention"), best("short-conv", "short-conv")
    assert accuracy(solved, "test") > 0.95
    assert solved.steps < lost.steps == 300
    assert 1 / 16 < accuracy(lost, "test") < 0.6  # queries right after the context are within its five tokens


def test_the_hints_of_a_parameter_reach_its_optimiser(own_registries, seen):
    @register_mixer("hinted")
    class Hinted(Mixer):
        def __init__(self, d_model, config):
            super().__init__()
            self.still = nn.Parameter(torch.ones(d_model, d_model))
            self.still._optim = {"lr": 0.0}
            self.moved = nn.Linear(d_model, d_model)

        def init_state(self, batch_size):
            return ()

        def step(self, x, state):
            return self.moved(x @ self.still), state

    fit(trial(layers=("hinted",)))
    (stack,), (first,) = seen.stacks, seen.first
    changed = {key for key, value in stack.weights(stack.flat, 0).items() if not torch.equal(value, first[key])}
    assert changed == set(first) - {"blocks.0.mixer.still"}


def test_a_context_that_is_read_whole_is_trained_and_verified():
    (replica,) = fit(trial("jrt-rnn")).replicas
    assert replica.status == "ok"
    sizes = {score.state_elements for score in replica.scores}
    (based,) = fit(trial("based")).replicas
    assert sizes == {score.state_elements for score in based.scores}  # the encoder leaves nothing but the sums


def test_what_is_asked_inside_the_context_is_refused_where_that_is_read_whole():
    task = build_task("in-context-recall", {"vocab_size": 16, "seq_len": 32})
    part = Slice(name=task.slice_name, params=task.model_dump(mode="json"), examples=64)
    parts = {"task": "in-context-recall", "train": (part,), "valid": (part,), "test": (part,)}
    with pytest.raises(InputError, match=r"in-context-recall .* asks at token \d+, inside its context of \d+ tokens"):
        fit(trial("jrt-rnn", **parts))
    assert fit(trial("based", **parts)).replicas[0].status == "ok"
