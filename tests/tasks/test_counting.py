import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoology.registry import InputError
from zoology.tasks.base import IGNORE, batch_hash, draw, tasks
from zoology.tasks.counting import Majority, Parity

from .checks import check_refused
from .chisquare import excess

scores = st.sampled_from(["cumulative", "final"])


@settings(deadline=None, max_examples=40)
@given(cls=st.sampled_from([Parity, Majority]), seq_len=st.integers(2, 40), score=scores, seed=st.integers(0, 2**32))
def test_sequences_follow_the_definition(cls, seq_len, score, seed):
    task = cls(seq_len=seq_len, score=score)
    batch = task.sample(np.random.default_rng(seed), 20)
    assert batch.tokens.shape == batch.labels.shape == (20, seq_len)
    assert batch.tokens.dtype == batch.labels.dtype == np.int32
    np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels)
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        assert set(tokens) <= {0, 1}
        for i, label in enumerate(labels):
            bits = tokens[: i + 1]
            if cls is Parity:
                expected = int(bin(int("".join(map(str, bits)), 2)).count("1") & 1)
            else:
                expected = int(bits.count(1) > bits.count(0))
            assert label == (expected if score == "cumulative" or i == seq_len - 1 else IGNORE)


def test_worked_examples():
    bits = np.array([[1, 0, 1, 1, 0, 0]], np.int32)
    assert Parity(seq_len=6).solve(bits)[0].tolist() == [1, 1, 0, 1, 1, 1]
    assert Majority(seq_len=6).solve(bits)[0].tolist() == [1, 0, 1, 1, 1, 0]
    assert Majority(seq_len=6, score="final").solve(bits)[0].tolist() == [*[IGNORE] * 5, 0]


def test_bits_are_even_and_independent():
    tokens = Parity(seq_len=4).sample(np.random.default_rng(0), 20_000).tokens
    assert abs(excess(np.bincount(tokens @ np.array([1, 2, 4, 8]), minlength=16), np.full(16, 1 / 16))) < 4


@pytest.mark.parametrize("seq_len", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("score", ["cumulative", "final"])
@pytest.mark.parametrize("cls", [Parity, Majority])
def test_limits_are_the_least_number_of_states(cls, seq_len, score):
    """Prefixes that every rest of the sequence answers alike can share a state; all others cannot."""
    task = cls(seq_len=seq_len, score=score)
    bits = np.array(list(itertools.product((0, 1), repeat=seq_len)), np.int32)
    answers = task.solve(bits)[:, task.context_length :].reshape(2**task.context_length, -1)
    states = len({tuple(row) for row in answers.tolist()})
    assert task.state_bits() == math.ceil(math.log2(states))


def test_worked_limits():
    assert Parity().state_bits() == 1
    assert Majority(seq_len=200).state_bits() == math.ceil(math.log2(101))
    assert Majority().state_bits(0.9) is None
    h = -0.9 * math.log2(0.9) - 0.1 * math.log2(0.1)
    assert Parity(score="final").state_bits(0.9) == pytest.approx(1 - h)
    assert Parity(seq_len=10).state_bits(0.95) == pytest.approx(1 - h)  # half of them right anyway
    assert Parity(seq_len=10).state_bits(0.75) == 0
    assert Parity(seq_len=10).state_bits(0) == 0
    for cls in (Parity, Majority):
        with pytest.raises(InputError, match="accuracy"):
            cls().state_bits(1.01)


@pytest.mark.parametrize("name", ["parity", "majority"])
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"seq_len": 1}, "seq_len = 1: .*greater than or equal to 2"),
        ({"score": "last"}, "score = 'last': .*'cumulative' or 'final'"),
        ({"vocab_size": 4}, "no parameter 'vocab_size'; it has seq_len, score"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(name, params, message):
    check_refused(name, params, message)


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        (Parity(), "38d840d69f469f7c"),
        (Parity(score="final"), "f2e2b324fe0e085b"),
        (Majority(), "0194747ae4260814"),
        (Majority(seq_len=33, score="final"), "207f76ae8590912c"),
    ],
)
def test_same_seed_same_bytes(task, digest):
    assert batch_hash(draw(task, 2000, seed=("train", 0))) == digest


def test_names_and_presets():
    assert Parity().slice_name == "T64"
    assert Majority(score="final").slice_name == "T64-final"
    for task in tasks.get("majority").presets()["small"].test:
        batch = draw(task, 4000, seed=("even",))
        assert (batch.labels[:, -1] == 1).mean() == pytest.approx(0.5, abs=0.04)
