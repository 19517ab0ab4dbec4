"""What holds for every registered task, whatever its parameters: a new one is tested as soon as it is registered."""

import functools
import io
import itertools
import math
import tracemalloc
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

import zoology.tasks  # noqa: F401 - registers
from zoology import cli
from zoology.registry import InputError, paper
from zoology.tasks.base import IGNORE, batch_hash, build_task, draw, tasks
from zoology.tasks.display import render

NAMES = sorted(tasks)
WANTED, ENOUGH, TRIES = 24, 10, 4000
"""Valid slices looked for, and those that must be found, of each task, among so many random ones."""

every_task = pytest.mark.parametrize("name", NAMES)


def values(field, usual, rng):
    """A random value of a field that is within its own bounds: near one of the usual ones, or small."""
    annotation = field.annotation
    options = [a for a in get_args(annotation) if a is not type(None)] if get_origin(annotation) else [annotation]
    if get_origin(annotation) is Literal:
        return options[rng.integers(len(options))]
    if bool in options:
        return bool(rng.integers(2))
    low = max([getattr(c, "ge", getattr(c, "gt", None)) or 0 for c in field.metadata], default=0)
    high = min([getattr(c, "le", getattr(c, "lt", math.inf)) for c in field.metadata], default=math.inf)
    known = usual[rng.integers(len(usual))]
    if int in options:
        near = [low, low + 1, low + int(rng.integers(8)), low + int(rng.integers(200))]
        if isinstance(known, int):
            near += [known, known, known // 2, 2 * known, known + int(rng.integers(-4, 5))]
        return int(min(max(near[rng.integers(len(near))], low), high))
    if float in options:
        return float(rng.choice([low, min(high, 1.0), known or 0.0, rng.uniform(low, min(high, 1.0))]))
    return known


@functools.lru_cache
def slices(name):
    """Random slices of a task, of sizes that a test can draw."""
    cls, rng = tasks.get(name), np.random.default_rng(0)
    shown = [cls(), *cls.presets()["small"].test]
    found = {}
    for _ in range(TRIES):
        base = shown[rng.integers(len(shown))].model_dump()
        for key, field in cls.model_fields.items():
            if rng.random() < 0.5:
                base[key] = values(field, [task.model_dump()[key] for task in shown], rng)
        try:
            task = cls(**base)
        except ValidationError:
            continue
        if task.seq_len <= 400 and task.vocab_size <= 10_000:
            found[task] = None
        if len(found) == WANTED:
            break
    assert len(found) >= ENOUGH, f"only {len(found)} of {TRIES} random slices are valid"
    return tuple(found)


def small(name):
    return tasks.get(name).presets()["small"]


@every_task
def test_sequences_are_as_the_contract_says(name):
    for index, task in enumerate(slices(name)):
        batch = task.sample(np.random.default_rng(index), 60)
        assert batch.tokens.shape == batch.labels.shape == (60, task.seq_len), task
        assert batch.tokens.dtype == batch.labels.dtype == np.int32, task
        assert batch.tokens.min() >= 0, task
        assert batch.tokens.max() < task.vocab_size, task
        labels = batch.labels[batch.labels != IGNORE]
        assert labels.min() >= 0, task
        assert labels.max() < task.vocab_size, task
        assert (batch.labels != IGNORE).any(axis=1).all(), task


@every_task
def test_the_solver_is_right_on_every_sample(name):
    for index, task in enumerate(slices(name)):
        batch = task.sample(np.random.default_rng(index), 200)
        before = batch.tokens.copy()
        np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels, err_msg=repr(task))
        np.testing.assert_array_equal(batch.tokens, before, err_msg="the solver changed what it was given")


@every_task
def test_the_solver_takes_each_sequence_by_itself(name):
    for task in slices(name)[:5]:
        tokens = task.sample(np.random.default_rng(1), 20).tokens
        whole = task.solve(tokens)
        for i in (0, 7, 19):
            np.testing.assert_array_equal(task.solve(tokens[i : i + 1]), whole[i : i + 1], err_msg=repr(task))


@every_task
def test_no_label_depends_on_a_later_token(name):
    """Its position has been read when a model must answer: what comes after is exchanged for another's.

    At the position itself, only what the label *is*: whether there is one may be seen by the token that follows.
    """
    compared = 0
    for index, task in enumerate(slices(name)):
        batch = task.sample(np.random.default_rng(index), 40)
        labelled = np.flatnonzero((batch.labels != IGNORE).any(axis=0))
        for cut in {int(labelled[0]), int(labelled[len(labelled) // 2]), int(labelled[-1])} - {task.seq_len - 1}:
            tokens = batch.tokens.copy()
            tokens[:, cut + 1 :] = np.roll(tokens[:, cut + 1 :], 1, axis=0)
            try:
                solved = task.solve(tokens)
            except (IndexError, ValueError):  # what came out is no sequence of the task
                continue
            np.testing.assert_array_equal(solved[:, :cut], batch.labels[:, :cut], err_msg=f"{task!r} before {cut}")
            both = (solved[:, cut] != IGNORE) & (batch.labels[:, cut] != IGNORE)
            np.testing.assert_array_equal(solved[both, cut], batch.labels[both, cut], err_msg=f"{task!r} at {cut}")
            compared += both.sum()
    last_only = all((task.sample(np.random.default_rng(0), 9).labels[:, :-1] == IGNORE).all() for task in slices(name))
    assert compared or last_only


@every_task
def test_same_seed_same_bytes_and_another_seed_others(name):
    for task in slices(name)[:6]:
        first, again, other = (task.sample(np.random.default_rng(seed), 50) for seed in (3, 3, 4))
        assert batch_hash(first) == batch_hash(again), task
    task = small(name).test[0]  # large enough a space for two seeds to differ
    first, again, other = (batch_hash(draw(task, 50, seed=("train", seed))) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@every_task
def test_global_randomness_is_neither_used_nor_touched(name, monkeypatch):
    task = small(name).test[0]
    calls = []
    for function in ("rand", "randint", "random", "choice", "permutation", "shuffle", "seed", "default_rng"):
        monkeypatch.setattr(np.random, function, lambda *_, function=function, **__: calls.append(function))
    task.solve(task.sample(np.random.Generator(np.random.PCG64(0)), 20).tokens)
    assert not calls


@every_task
def test_splits_of_the_small_preset_are_apart(name):
    preset, avoid, seen = small(name), [], []
    for word, parts, n in (("test", preset.test, 1000), ("valid", preset.test, 256)):
        drawn = [draw(task, n, seed=(word,), avoid=avoid) for task in parts]
        seen.append({row.tobytes() for batch in drawn for row in batch.tokens})
        avoid += drawn
    drawn = [draw(task, min(n, 3000), seed=("train", 0), avoid=avoid) for task, n in preset.train]
    seen.append({row.tobytes() for batch in drawn for row in batch.tokens})
    test, valid, train = seen
    assert not test & valid
    assert not train & (test | valid)
    for task, batch in zip((task for task, _ in preset.train), drawn, strict=True):
        np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels)


@every_task
def test_none_and_one_sequence(name):
    for task in slices(name):
        for n in (0, 1):
            batch = task.sample(np.random.default_rng(0), n)
            assert batch.tokens.shape == batch.labels.shape == (n, task.seq_len), task
            np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels, err_msg=repr(task))
            assert task.roles(batch.tokens).shape == (n, task.seq_len), task


@every_task
def test_the_context_is_within_the_sequence(name):
    for task in slices(name):
        assert 0 <= task.context_length <= task.seq_len, task
        assert isinstance(task.context_length, int), task


@every_task
def test_the_prompt_holds_the_context_and_no_answer(name):
    """What comes after the first question is never in it, unless questions come inside the context all along."""
    for task in slices(name):
        asked = np.flatnonzero((task.sample(np.random.default_rng(0), 30).labels != IGNORE).any(axis=0))
        assert isinstance(task.prompt_length, int), task
        assert task.context_length <= task.prompt_length <= max(asked[0], task.context_length), task


@every_task
def test_state_bits_are_a_bound_that_rises_with_the_accuracy(name):
    for task in slices(name):
        bits = [task.state_bits(float(p)) for p in np.linspace(0, 1, 41)]
        known = [b for b in bits if b is not None]
        assert all(math.isfinite(b) and b >= 0 for b in known), task
        assert all(b >= a - 1e-9 for a, b in itertools.pairwise(known)), task
        assert task.state_bits() == bits[-1], task


@every_task
def test_roles_are_words(name):
    for task in slices(name):
        roles = task.roles(task.sample(np.random.default_rng(0), 30).tokens)
        assert roles.shape == (30, task.seq_len), task
        assert roles.dtype.kind == "U", task
        assert (roles != "").all(), task


@every_task
def test_presets(name):
    presets = tasks.get(name).presets()
    assert "small" in presets
    for preset in presets.values():
        for parts in (preset.test, [task for task, _ in preset.train]):
            assert parts
            assert len({task.slice_name for task in parts}) == len(parts) == len(set(parts))
            assert all(type(task) is tasks.get(name) for task in parts)
        assert all(n > 0 for _, n in preset.train)
    small_ = presets["small"]
    for task in (*small_.test, *(task for task, _ in small_.train)):
        assert task.vocab_size <= 256
        assert task.seq_len <= 128
    assert sum(n for _, n in small_.train) <= 90_000  # a minute on one core


@every_task
def test_parameters_are_described_and_the_source_named(name):
    cls = tasks.get(name)
    assert paper(cls), "its docstring has no line `Source: ...`"
    for key, field in cls.model_fields.items():
        assert field.description, f"{key} has no description"


@every_task
def test_parameters_are_frozen_and_known(name):
    task = small(name).test[0]
    key, value = next(iter(task.model_dump().items()))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(task, key, value)
    with pytest.raises(InputError, match="no parameter 'colour'"):
        build_task(name, {"colour": 1})


@every_task
def test_memory_stays_near_the_output(name):
    for task in small(name).test[:2]:
        rng = np.random.default_rng(0)
        task.sample(rng, 10)
        tracemalloc.start()
        try:
            batch = task.sample(rng, 2000)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 3 * (batch.tokens.nbytes + batch.labels.nbytes) + 4e6, f"{task!r}: {peak}"


@every_task
def test_it_can_be_shown(name):
    for task in slices(name)[:6]:
        text = io.StringIO()
        Console(file=text, width=100).print(render(task, draw(task, 2, seed=("sample", 0))))
        assert f"{name} {task.slice_name}" in " ".join(text.getvalue().split())


@every_task
@pytest.mark.parametrize("command", ["sample", "export", "score", "sweep"])
def test_its_parameters_collide_with_no_flag(name, command):
    cli.build_app([command, "--task", name] if command == "sweep" else [command, name])
