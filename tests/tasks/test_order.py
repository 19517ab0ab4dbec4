import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoology.registry import InputError
from zoology.tasks.base import IGNORE, batch_hash, draw
from zoology.tasks.order import NO, ONE, QUESTION, SEPARATOR, TWO, YES, Recognition, SequenceOrder

from .checks import check_refused
from .chisquare import excess

few = settings(deadline=None, max_examples=40)


@st.composite
def orders(draw):
    segment = draw(st.integers(1, 4))
    length = draw(st.integers(2 * segment, 20))
    return SequenceOrder(
        segment=segment, length=length, vocab_size=length + draw(st.integers(4, 40)), passes=draw(st.integers(1, 3))
    )


@st.composite
def recognitions(draw):
    length = draw(st.integers(1, 10))
    queries = draw(st.integers(1, length))
    return Recognition(
        length=length,
        queries=queries,
        vocab_size=3 + length + queries + draw(st.integers(0, 40)),
        passes=draw(st.integers(1, 3)),
    )


@few
@given(task=orders(), seed=st.integers(0, 2**32))
def test_orders_follow_the_definition(task, seed):
    batch = task.sample(np.random.default_rng(seed), 20)
    assert batch.tokens.shape == batch.labels.shape == (20, task.seq_len)
    assert batch.tokens.dtype == batch.labels.dtype == np.int32
    np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels)
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        text, s, context = tokens[: task.length], task.segment, task.context_length
        assert tokens[:context] == [*text, SEPARATOR] * task.passes
        assert len(set(text)) == task.length
        assert min(text) >= 4
        assert max(text) < task.vocab_size
        one, two = tokens[context : context + s], tokens[context + s + 1 : -1]
        assert tokens[context:] == [*one, SEPARATOR, *two, QUESTION]
        at = [[i for i in range(task.length) if text[i : i + s] == part] for part in (one, two)]
        assert [len(found) for found in at] == [1, 1]
        assert abs(at[0][0] - at[1][0]) >= s
        assert labels == [IGNORE] * (task.seq_len - 1) + [ONE if at[0] < at[1] else TWO]


@pytest.mark.parametrize("segment", [1, 2, 3])
def test_pairs_of_places_are_equally_likely(segment):
    task = SequenceOrder(length=7, segment=segment, vocab_size=16)
    tokens = task.sample(np.random.default_rng(0), 20_000).tokens
    start = [(tokens[:, :7] == tokens[:, 8 + i : 9 + i]).argmax(axis=1) for i in (0, segment + 1)]
    counts = np.zeros((7, 7))
    np.add.at(counts, tuple(start), 1)
    apart = np.abs(np.subtract.outer(np.arange(7), np.arange(7))) >= segment
    fits = np.arange(7) <= 7 - segment
    law = apart & np.outer(fits, fits)
    assert abs(excess(counts, law / law.sum())) < 4


def test_order_solver_works_from_the_tokens():
    tokens = np.array([[9, 5, 7, 4, 0, 7, 4, 0, 9, 5, 1], [9, 5, 7, 4, 0, 9, 5, 0, 7, 4, 1]], np.int32)
    task = SequenceOrder(length=4, segment=2, vocab_size=10)
    assert task.solve(tokens)[:, -1].tolist() == [TWO, ONE]
    assert task.roles(tokens)[0].tolist() == [
        *["value"] * 4,
        *("separator", "key", "key", "separator", "key", "key", "query"),
    ]


def test_every_order_of_the_blocks_needs_its_own_state():
    """The limit's argument: two orders of the same blocks differ in a pair that the task can ask for."""
    task = SequenceOrder(length=7, segment=2, vocab_size=12)
    texts = [sum(order, ()) for order in itertools.permutations([(4, 5), (6, 7), (8, 9)])]
    for one, two in itertools.combinations(texts, 2):
        assert any(
            (one.index(a) < one.index(b)) != (two.index(a) < two.index(b)) for a in (4, 6) for b in (6, 8) if a != b
        )
    assert task.state_bits() == pytest.approx(math.log2(len(texts)))


def test_state_bits_of_orders():
    task = SequenceOrder(length=8, segment=1)
    assert task.state_bits() == pytest.approx(math.log2(math.factorial(8)))
    h = -0.99 * math.log2(0.99) - 0.01 * math.log2(0.01)
    assert task.state_bits(0.99) == pytest.approx(math.log2(math.factorial(8)) - 28 * h)
    assert task.state_bits(0.5) == 0
    assert SequenceOrder(segment=2).state_bits(0.99) is None
    with pytest.raises(InputError, match="accuracy = 7"):
        SequenceOrder(segment=2).state_bits(7)


@few
@given(task=recognitions(), seed=st.integers(0, 2**32))
def test_recognitions_follow_the_definition(task, seed):
    batch = task.sample(np.random.default_rng(seed), 20)
    assert batch.tokens.shape == batch.labels.shape == (20, task.seq_len)
    assert batch.tokens.dtype == batch.labels.dtype == np.int32
    np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels)
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        items, probes = tokens[: task.length], tokens[task.context_length :]
        assert tokens[: task.context_length] == [*items, SEPARATOR] * task.passes
        assert len(set(items)) == task.length
        assert len(set(probes)) == task.queries
        assert set(items) | set(probes) <= set(range(3, task.vocab_size))
        assert labels[: task.context_length] == [IGNORE] * task.context_length
        assert labels[task.context_length :] == [YES if probe in items else NO for probe in probes]


def test_answers_are_even_and_independent_of_each_other_and_of_the_probes():
    task = Recognition(length=3, queries=2, vocab_size=9)
    batch = task.sample(np.random.default_rng(0), 40_000)
    counts = np.zeros((2, 2, 6, 6))
    answers = batch.labels[:, -2:] - NO
    probes = batch.tokens[:, -2:] - 3
    np.add.at(counts, (*answers.T, *probes.T), 1)
    assert abs(excess(counts, np.broadcast_to((1 - np.eye(6)) / 30 / 4, counts.shape))) < 4


def test_state_bits_of_recognition_are_those_of_the_set():
    task = Recognition(length=16, vocab_size=2047)
    assert task.state_bits() == pytest.approx(math.log2(math.comb(2044, 16)))
    assert task.state_bits(0.5) == 0
    one = Recognition(length=16, queries=1, vocab_size=2047)
    assert task.state_bits(1 - 0.01 / 16) == pytest.approx(one.state_bits(0.99))
    falling = [one.state_bits(p) for p in (1, 0.999, 0.99, 0.9, 0.7, 0.5)]
    assert falling == sorted(falling, reverse=True)
    assert falling[-2] > 0
    with pytest.raises(InputError, match="accuracy"):
        one.state_bits(2)


@pytest.mark.parametrize("accuracy", [0.95, 0.8, 0.7])
def test_limit_of_recognition_against_the_best_model_with_so_many_states(accuracy):
    """All ways to sort the sets of 2 out of 5 into 2 states: none that is this accurate has less information."""
    task = Recognition(length=2, queries=1, vocab_size=8)
    sets = list(itertools.combinations(range(5), 2))
    least = math.inf
    for code in range(2 ** (len(sets) - 1)):
        states = [[s for i, s in enumerate(sets) if (code >> i) % 2 == state] for state in (0, 1)]
        right = sum(
            max(sum((item in s) / 2 for s in group), sum((item not in s) / 3 for s in group)) / 2
            for group in states
            for item in range(5)
        ) / len(sets)
        if right >= accuracy:
            least = min(least, -sum(len(g) / 10 * math.log2(len(g) / 10) for g in states if g))
    assert task.state_bits(accuracy) <= least
    assert task.state_bits() == pytest.approx(math.log2(10))


@pytest.mark.parametrize("false", [0.5, 0.25, 0.01])
def test_a_filter_that_affirms_some_others_is_above_the_limit(false):
    """A state that is a set in which all items shown are, and each other one with probability `false`."""
    shown, others = 4, 3996

    def log2_choose(m, k):
        return (math.lgamma(m + 1) - math.lgamma(k + 1) - math.lgamma(m - k + 1)) / math.log(2)

    left_open = sum(
        2 ** (log2_choose(others, m) + m * math.log2(false) + (others - m) * math.log2(1 - false))
        * log2_choose(shown + m, shown)
        for m in range(others + 1)
    )
    held = log2_choose(shown + others, shown) - left_open
    limit = Recognition(length=shown, queries=1, vocab_size=shown + others + 3).state_bits(1 - false / 2)
    assert held == pytest.approx(shown * math.log2(1 / false), rel=0.02)  # the source's law
    assert 0 < limit < held
    if false == 0.01:
        assert limit > 0.9 * held


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        (
            "sequence-order",
            {"segment": 33},
            "segment = 33: two of them need 66 tokens, and length = 64; use at most 32",
        ),
        ("sequence-order", {"vocab_size": 60}, "length = 64: vocab_size = 60 has 56 different tokens .*at least 68"),
        ("sequence-order", {"segment": 0}, "segment = 0"),
        ("sequence-order", {"length": 1}, "length = 1"),
        ("sequence-order", {"passes": 0}, "passes = 0"),
        ("sequence-order", {"vocab_size": 5}, "vocab_size = 5"),
        ("recognition", {"queries": 33}, "queries = 33: must be at most length = 32"),
        ("recognition", {"vocab_size": 40}, "length = 32 and queries = 16: vocab_size = 40 has 37 items.* at least 51"),
        ("recognition", {"length": 0}, "length = 0"),
        ("recognition", {"queries": 0}, "queries = 0"),
        ("recognition", {"passes": -1}, "passes = -1"),
        ("recognition", {"vocab_size": 4}, "vocab_size = 4"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(name, params, message):
    check_refused(name, params, message)


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        (SequenceOrder(), "9eda30f37903ad46"),
        (SequenceOrder(length=6, segment=3, vocab_size=12, passes=2), "ed0baeb541a4de1c"),
        (Recognition(passes=2), "c734141a54451ac2"),
    ],
)
def test_same_seed_same_bytes(task, digest):
    assert batch_hash(draw(task, 2000, seed=("train", 0))) == digest


def test_names_and_roles():
    assert SequenceOrder(passes=2).slice_name == "L64-S4-P2"
    assert Recognition(passes=2).slice_name == "L32-Q16-P2"
    assert Recognition(length=2, queries=1).roles(np.array([[5, 6, 0, 5]]))[0].tolist() == [
        *("key", "key", "separator", "query")
    ]
