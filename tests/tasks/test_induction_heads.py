import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoology.registry import InputError
from zoology.tasks.base import IGNORE, batch_hash, draw, tasks
from zoology.tasks.induction_heads import TRIGGER, InductionHeads

from .checks import check_refused
from .chisquare import excess

slices = st.builds(InductionHeads, vocab_size=st.integers(3, 30), length=st.integers(2, 20), passes=st.integers(1, 3))


@settings(deadline=None, max_examples=40)
@given(task=slices, seed=st.integers(0, 2**32))
def test_sequences_follow_the_definition(task, seed):
    batch = task.sample(np.random.default_rng(seed), 20)
    assert batch.tokens.shape == batch.labels.shape == (20, task.seq_len)
    assert batch.tokens.dtype == batch.labels.dtype == np.int32
    np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels)
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        context = tokens[: task.length]
        assert tokens == context * task.passes + [TRIGGER]
        assert context.count(TRIGGER) == 1
        assert min(context) >= 0
        assert max(context) < task.vocab_size
        assert labels == [IGNORE] * task.context_length + [context[context.index(TRIGGER) + 1]]


def test_solver_takes_the_first_special_token():
    tokens = np.array([[4, 0, 2, 0, 3, 0]], np.int32)
    assert InductionHeads(vocab_size=5, length=5).solve(tokens)[0].tolist() == [*[IGNORE] * 5, 2]


def test_places_and_letters_are_even():
    batch = InductionHeads(vocab_size=6, length=5).sample(np.random.default_rng(0), 20_000)
    place = (batch.tokens[:, :5] == TRIGGER).argmax(axis=1)
    counts = np.zeros((5, 6))
    np.add.at(counts, (place, batch.labels[:, -1]), 1)
    law = np.outer([1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]) / 20
    assert abs(excess(counts, law)) < 4


def test_roles():
    tokens = np.array([[4, 0, 2, 3, 4, 0, 2, 3, 0]], np.int32)
    once = ["filler", "key", "value", "filler"]
    assert InductionHeads(length=4, passes=2).roles(tokens)[0].tolist() == [*once, *once, "query"]


def test_state_bits():
    task = InductionHeads(vocab_size=17)
    assert task.state_bits() == pytest.approx(4)
    # h(0.5) = 1 and half of log2 15
    assert task.state_bits(0.5) == pytest.approx(4 - 1 - math.log2(15) / 2)
    assert task.state_bits(1 / 16) == 0
    with pytest.raises(InputError, match=r"accuracy = 1\.5"):
        task.state_bits(1.5)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"length": 1}, "length = 1: .*greater than or equal to 2"),
        ({"vocab_size": 2}, "vocab_size = 2: .*greater than or equal to 3"),
        ({"passes": 0}, "passes = 0: .*greater than or equal to 1"),
        ({"seq_len": 30}, "no parameter 'seq_len'; it has vocab_size, length, passes"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(params, message):
    check_refused("induction-heads", params, message)


def test_same_seed_same_bytes():
    assert batch_hash(draw(InductionHeads(passes=2), 2000, seed=("train", 0))) == "dd9a914893ae8a3b"


def test_names_and_presets():
    assert InductionHeads().slice_name == "L30"
    assert InductionHeads(length=9, passes=2).slice_name == "L9-P2"
    [(task, examples)] = tasks.get("induction-heads").presets()["paper"].train
    assert (task.vocab_size, task.length, task.seq_len, examples) == (20, 30, 31, 5000)
