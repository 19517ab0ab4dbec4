import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoology.registry import InputError
from zoology.tasks.base import IGNORE, batch_hash, draw
from zoology.tasks.forgetting_mqar import ForgettingMqar

from .checks import best_accuracy, check_batch, check_refused
from .chisquare import excess


@st.composite
def slices(draw):
    pairs, passes = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    updates = draw(st.integers(1, pairs))
    return ForgettingMqar(
        num_pairs=pairs,
        num_updates=updates,
        passes=passes,
        seq_len=2 * (pairs + updates) * passes + 2 * pairs + 2 * draw(st.integers(0, 9)),
        vocab_size=max(2 * (pairs + updates), 2 * pairs + 2) + 2 * draw(st.sampled_from([0, 1, 3, 40])),
        fillers=draw(st.sampled_from(["strict", "papers", "zero"])),
        power=draw(st.sampled_from([0.01, 1.0, 3.0])),
    )


@settings(deadline=None, max_examples=40)
@given(task=slices(), seed=st.integers(0, 2**32))
def test_sequences_follow_the_definition(task, seed):
    batch = task.sample(np.random.default_rng(seed), 20)
    check_batch(task, batch)
    n, half, context = task.num_pairs, task.vocab_size // 2, task.context_length
    once = 2 * (n + task.num_updates)
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        keys, values = tokens[:once:2], tokens[1:once:2]
        assert tokens[:context] == tokens[:once] * task.passes
        assert len(set(keys[:n])) == n
        assert set(keys) <= set(range(1, half))
        assert set(keys[n:]) <= set(keys[:n])
        assert len(set(keys[n:])) == task.num_updates
        assert len(set(values)) == len(values)  # so a new value is never an old one
        assert set(values) <= set(range(half, 2 * half))
        last = {}
        for key, value in zip(keys, values, strict=True):
            last[key] = value
        scored = {i: label for i, label in enumerate(labels) if label != IGNORE}
        assert all(i >= context and (i - context) % 2 == 0 and last[tokens[i]] == v for i, v in scored.items())
        assert sorted(tokens[i] for i in scored) == sorted(keys[:n])
        fillers = {i: tokens[i] for i in range(context, task.seq_len) if i not in scored}
        if task.fillers == "strict":
            assert set(fillers.values()) <= set(range(half)) - set(keys)
        elif task.fillers == "zero":
            assert not any(fillers.values())
        else:
            assert not {t for i, t in fillers.items() if (i - context) % 2 == 0} & set(keys)


def test_solver_works_from_the_tokens():
    task = ForgettingMqar(vocab_size=20, seq_len=16, num_pairs=3, num_updates=2)
    tokens = np.array([[1, 11, 2, 12, 3, 13, 3, 14, 1, 15, 2, 0, 3, 5, 1, 0]], dtype=np.int32)
    assert task.solve(tokens)[0].tolist() == [IGNORE] * 10 + [12, IGNORE, 14, IGNORE, 15, IGNORE]


def test_every_key_is_as_likely_updated_and_every_slot_drawn_by_the_law():
    task = ForgettingMqar(vocab_size=64, seq_len=24, num_pairs=4, num_updates=2, power=2.0)
    batch = task.sample(np.random.default_rng(0), 30_000)
    order = (batch.tokens[:, 8:12:2, None] == batch.tokens[:, None, 0:8:2]).argmax(axis=2)
    counts = np.zeros((4, 4))
    np.add.at(counts, tuple(order.T), 1)
    assert abs(excess(counts, (1 - np.eye(4)) / 12)) < 4
    first = (batch.tokens[:, 12::2] == batch.tokens[:, :1]) & (batch.labels[:, 12::2] != IGNORE)
    p = np.arange(1, 7) ** 1.0
    assert abs(excess(first.sum(axis=0), p / p.sum())) < 4


@pytest.mark.parametrize("states", [1, 2, 3])
def test_no_code_beats_the_limit(states):
    """Two keys and three values: the last values are any two different ones, equally likely."""
    task = ForgettingMqar(num_pairs=2, num_updates=1, vocab_size=6, seq_len=10)
    batch = task.sample(np.random.default_rng(0), 12_000)
    at = np.nonzero(batch.labels != IGNORE)
    asked, answers = (part[at].reshape(-1, 2).tolist() for part in batch)
    finals = [dict(zip(keys, values, strict=True)) for keys, values in zip(asked, answers, strict=True)]
    last = list(itertools.permutations((3, 4, 5), 2))
    counts = [sum((final[1], final[2]) == pair for final in finals) for pair in last]
    assert abs(excess(counts, np.full(6, 1 / 6))) < 4
    best = best_accuracy(last, states)
    assert task.state_bits(best) <= math.log2(states) + 1e-9
    assert task.state_bits() == pytest.approx(math.log2(6))


def test_updates_cost_no_state():
    bits = [ForgettingMqar(num_pairs=64, num_updates=u, seq_len=512).state_bits() for u in (1, 64)]
    assert bits[0] == bits[1]
    assert round(bits[0]) == 767


def test_names_tell_slices_apart():
    assert ForgettingMqar().slice_name == "T64-N8-U4"
    task = ForgettingMqar(seq_len=128, num_updates=8, passes=2, power=0.5, fillers="papers")
    assert task.slice_name == "T128-N8-U8-P2-a0.5-papers"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"num_updates": 9}, "num_updates = 9: each key is updated once at most, and num_pairs = 8"),
        ({"num_updates": 0}, "num_updates = 0: .*greater than or equal to 1"),
        ({"num_pairs": 15}, "num_pairs = 15 and num_updates = 4: with passes = 1 these need 68 tokens, and seq_len"),
        ({"passes": 3}, "with passes = 3 these need 88 tokens, and seq_len = 64"),
        ({"vocab_size": 16}, "num_pairs = 8: vocab_size = 16 has 7 different keys; use at least 18"),
        ({"vocab_size": 18}, "num_pairs = 8 and num_updates = 4: vocab_size = 18 has 9 different values; .*least 24"),
        ({"vocab_size": 31}, "vocab_size = 31: must be even"),
        ({"seq_len": 63}, "seq_len = 63: must be even"),
        ({"power": 0}, "power = 0: .*greater than 0"),
        ({"fillers": "none"}, "fillers = 'none': .*'strict', 'papers' or 'zero'"),
        ({"updates": 3}, "no parameter 'updates'; it has .*num_updates"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(params, message):
    check_refused("forgetting-mqar", params, message)


def test_limits_themselves_are_allowed():
    ForgettingMqar(num_pairs=14)
    ForgettingMqar(vocab_size=24)
    with pytest.raises(InputError, match="accuracy"):
        ForgettingMqar().state_bits(2)


@pytest.mark.parametrize(
    ("params", "digest"),
    [
        ({}, "48b0fe77aeaccc77"),
        ({"vocab_size": 64, "seq_len": 96, "num_pairs": 9, "passes": 2, "fillers": "papers"}, "051983bf6565fefe"),
    ],
)
def test_same_seed_same_bytes(params, digest):
    assert batch_hash(draw(ForgettingMqar(**params), 3000, seed=("train", 0))) == digest


def test_paper_preset():
    preset = ForgettingMqar.presets()["paper"]
    assert [(t.seq_len, t.num_pairs, t.num_updates, n) for t, n in preset.train] == [
        (64, 4, 4, 100_000),
        (128, 9, 4, 20_000),
        (256, 16, 4, 20_000),
        (256, 25, 4, 20_000),
        (256, 36, 4, 20_000),
    ]
    assert [t.num_pairs for t in preset.test] == [4, 9, 16, 36, 64, 144, 256]
