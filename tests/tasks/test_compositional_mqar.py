import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoology.registry import InputError
from zoology.tasks.base import IGNORE, batch_hash, draw
from zoology.tasks.compositional_mqar import CompositionalMqar

from .checks import best_accuracy, check_batch, check_refused
from .chisquare import excess


@st.composite
def slices(draw):
    side, passes = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    pairs = side * side
    return CompositionalMqar(
        num_pairs=pairs,
        passes=passes,
        seq_len=3 * pairs * (passes + 1) + draw(st.integers(0, 11)),
        vocab_size=3 * max(side + 1, pairs) + draw(st.sampled_from([0, 1, 2, 40])),
        fillers=draw(st.sampled_from(["strict", "papers", "zero"])),
        power=draw(st.sampled_from([0.01, 1.0, 3.0])),
    )


@settings(deadline=None, max_examples=40)
@given(task=slices(), seed=st.integers(0, 2**32))
def test_sequences_follow_the_definition(task, seed):
    batch = task.sample(np.random.default_rng(seed), 20)
    check_batch(task, batch)
    n, third, context = task.num_pairs, task.vocab_size // 3, task.context_length
    side = math.isqrt(n)
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        assert tokens[:context] == tokens[: 3 * n] * task.passes
        table = {(tokens[i], tokens[i + 1]): tokens[i + 2] for i in range(0, 3 * n, 3)}
        assert len(table) == len(set(table.values())) == n
        assert set(table.values()) <= set(range(2 * third, task.vocab_size))
        for part, ids in ((0, range(1, third)), (1, range(third, 2 * third))):
            assert {pair[part] for pair in table} <= set(ids)
            for key in {pair[part] for pair in table}:  # either key alone leaves as many answers open as there are
                assert len({value for pair, value in table.items() if pair[part] == key}) == side
        asked = {i: (tokens[i - 1], tokens[i]) for i, label in enumerate(labels) if label != IGNORE}
        assert all((i - context) % 3 == 1 and labels[i] == table[pair] for i, pair in asked.items())
        assert sorted(asked.values()) == sorted(table)
        fillers = {i: tokens[i] for i in range(context, task.seq_len) if not {i, i + 1} & set(asked)}
        used = set(itertools.chain.from_iterable(table))
        if task.fillers == "strict":
            assert set(fillers.values()) <= set(range(2 * third)) - used
        elif task.fillers == "zero":
            assert not any(fillers.values())


def test_solver_works_from_the_tokens():
    task = CompositionalMqar(vocab_size=30, seq_len=26, num_pairs=4)
    context = [1, 11, 21, 1, 12, 22, 2, 11, 23, 2, 12, 24]
    tokens = np.array([[*context, 2, 11, 0, 1, 12, 11, 0, 11, 2, 1, 11, 0, 2, 12]], dtype=np.int32)
    labels = task.solve(tokens)[0].tolist()
    assert {i: label for i, label in enumerate(labels) if label != IGNORE} == {13: 23, 16: 22, 22: 21}


def test_papers_fillers_may_be_keys_and_values_and_are_no_queries():
    task = CompositionalMqar(vocab_size=15, seq_len=90, num_pairs=4, fillers="papers")
    batch = task.sample(np.random.default_rng(0), 500)
    np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels)
    assert ((batch.labels != IGNORE).sum(axis=1) == 4).all()
    context, question = batch.tokens[:, :12], batch.tokens[:, 12:]
    assert (question[:, 2::3, None] == context[:, None, 0::3]).any(axis=2).mean() > 0.1
    assert (question[:, 2::3] >= 10).mean() == pytest.approx(1 / 3, abs=0.02)


def test_combinations_come_in_any_order_and_slots_by_the_law():
    task = CompositionalMqar(vocab_size=30, seq_len=30, num_pairs=4, power=2.0)
    batch = task.sample(np.random.default_rng(0), 30_000)
    tokens = batch.tokens
    same = np.stack([tokens[:, 0] == tokens[:, 3], tokens[:, 0] == tokens[:, 6], tokens[:, 0] == tokens[:, 9]])
    assert abs(excess(same.sum(axis=1), np.full(3, 1 / 3))) < 4
    first = (batch.labels[:, 13::3] == tokens[:, 2:3]).sum(axis=0)
    p = np.arange(1, 7) ** 1.0
    assert abs(excess(first, p / p.sum())) < 4


@pytest.mark.parametrize("states", [1, 2])
def test_no_code_beats_the_limit(states):
    """Four pairs and four values; of the 24 orders a search can do 12, which have one bit less to tell."""
    task = CompositionalMqar(vocab_size=12, num_pairs=4, seq_len=24)
    orders = [order for order in itertools.permutations(range(4)) if order[0] < order[1]]
    best = best_accuracy(orders, states)
    assert task.state_bits() == pytest.approx(math.log2(24))
    assert task.state_bits(best) - 1 <= math.log2(states) + 1e-9


def test_state_bits_are_those_of_mqar_with_as_many_values():
    task = CompositionalMqar(vocab_size=8192, seq_len=512, num_pairs=64)
    exact = sum(math.log2(2732 - i) for i in range(64))
    assert task.state_bits() == pytest.approx(exact)
    assert task.state_bits(1 / 2732) == 0
    with pytest.raises(InputError, match="accuracy"):
        task.state_bits(-1)


def test_names_tell_slices_apart():
    assert CompositionalMqar().slice_name == "T64-N4"
    task = CompositionalMqar(seq_len=128, num_pairs=9, passes=2, power=1, fillers="papers")
    assert task.slice_name == "T128-N9-P2-a1-papers"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"num_pairs": 8}, "num_pairs = 8: must be a square.*nearest are 4 and 9"),
        ({"num_pairs": 1}, "num_pairs = 1: .*greater than or equal to 4"),
        ({"num_pairs": 16}, "num_pairs = 16: with passes = 1 these need 96 tokens, and seq_len = 64"),
        ({"num_pairs": 9, "passes": 2}, "num_pairs = 9: with passes = 2 these need 81 tokens"),
        ({"num_pairs": 9, "vocab_size": 11}, "num_pairs = 9: vocab_size = 11 has 2 different first keys.*at least 12"),
        ({"num_pairs": 9, "vocab_size": 24}, "num_pairs = 9: vocab_size = 24 has 8 different values; use about 27"),
        ({"power": 11}, "power = 11: .*less than or equal to 10"),
        ({"fillers": "x"}, "fillers = 'x'"),
        ({"passes": 0}, "passes = 0"),
        ({"keys": 2}, "no parameter 'keys'"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(params, message):
    check_refused("compositional-mqar", params, message)


def test_limits_themselves_are_allowed():
    task = CompositionalMqar(num_pairs=9, vocab_size=27, seq_len=54)
    batch = task.sample(np.random.default_rng(0), 10)
    assert all(set(row[2:27:3]) == set(range(18, 27)) for row in batch.tokens.tolist())


@pytest.mark.parametrize(
    ("params", "digest"),
    [
        ({}, "399a49488cff2064"),
        ({"vocab_size": 64, "seq_len": 100, "num_pairs": 9, "passes": 2, "fillers": "papers"}, "714508970c5b80f8"),
    ],
)
def test_same_seed_same_bytes(params, digest):
    assert batch_hash(draw(CompositionalMqar(**params), 3000, seed=("train", 0))) == digest


def test_paper_preset():
    preset = CompositionalMqar.presets()["paper"]
    sizes = [(t.seq_len, t.num_pairs, n) for t, n in preset.train]
    assert sizes == [(64, 4, 100_000), (128, 9, 20_000), (256, 16, 20_000), (256, 25, 20_000), (256, 36, 20_000)]
    tested = [(t.seq_len, t.num_pairs) for t in preset.test]
    assert tested == [(64, 4), (64, 9), (128, 16), (256, 36), (512, 64), (1024, 144), (2048, 256)]
