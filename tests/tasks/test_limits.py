import itertools
import math

import numpy as np
import pytest

from zoology.registry import InputError
from zoology.tasks.copying import Copying
from zoology.tasks.induction_heads import InductionHeads
from zoology.tasks.joint_recall import JointRecall
from zoology.tasks.limits import check_accuracy, distinct_entropy, recall_bits
from zoology.tasks.mad_copying import Compression, Memorization, SelectiveCopying
from zoology.tasks.mqar import Mqar
from zoology.tasks.needles import NeedleMultiKey, NeedleMultiQuery, NeedleMultiValue
from zoology.tasks.order import SequenceOrder
from zoology.tasks.variable_tracking import VariableTracking

from .checks import best_accuracy


def test_worked_numbers():
    assert recall_bits(1.0, answers=16, choices=14) == pytest.approx(16 * math.log2(14))
    entropy = -0.7 * math.log2(0.7) - 0.3 * math.log2(0.3)
    assert recall_bits(0.7, answers=3, choices=32) == pytest.approx(3 * (5 - entropy - 0.3 * math.log2(31)))
    assert recall_bits(0.9, answers=10, choices=2) == pytest.approx(10 * (1 - 0.4689955935892812))
    assert distinct_entropy(3, 5) == pytest.approx(math.log2(60))
    assert distinct_entropy(2, 2) == pytest.approx(1)


@pytest.mark.parametrize("choices", [1, 2, 3, 50])
def test_it_rises_from_nothing_at_chance(choices):
    bits = [recall_bits(p, answers=5, choices=choices) for p in np.linspace(0, 1, 101)]
    assert bits[0] == recall_bits(1 / choices, answers=5, choices=choices) == 0
    assert all(low <= high for low, high in itertools.pairwise(bits))
    assert bits[-1] == pytest.approx(5 * math.log2(choices))


@pytest.mark.parametrize("states", [1, 2, 3])
@pytest.mark.parametrize(("answers", "choices"), [(2, 2), (3, 2), (2, 3)])
def test_no_code_beats_it(states, answers, choices):
    """Every way to keep one of so many states of independent uniform values: the best of them is within the limit."""
    best = best_accuracy(list(itertools.product(range(choices), repeat=answers)), states)
    assert recall_bits(best, answers=answers, choices=choices) <= math.log2(states) + 1e-9
    assert best > 1 / choices or states == 1


def bits(length):
    """Every row of so many bits, each of them asked for by itself."""
    return list(itertools.product(range(2), repeat=length))


def said(rows):
    """The rows as answers to one question, named token by token."""
    return [[row] for row in rows]


PAIRS = list(itertools.permutations(range(3), 2))
SMALL = [
    (Mqar(vocab_size=6, seq_len=8, num_pairs=2), PAIRS),
    (JointRecall(vocab_size=6, num_contexts=1, num_keys=2), bits(2)),
    (SelectiveCopying(vocab_size=4, num_tokens_to_copy=2, seq_len=9), bits(2)),
    (Compression(symbols=2, length=3), bits(3)),
    (Memorization(vocab_size=11), [[value] for value in range(5)]),
    (InductionHeads(vocab_size=5), [[value] for value in range(4)]),
    (Copying(vocab_size=3, length=3), said(bits(3))),
    (NeedleMultiKey(vocab_size=7, length=6, keys=2), bits(2)),
    (NeedleMultiQuery(vocab_size=7, length=6, keys=2, queries=2), bits(2)),
    (NeedleMultiValue(vocab_size=7, length=6, values=3), said(bits(3))),
    (VariableTracking(vocab_size=11, length=6, chains=2, hops=0, question="value"), PAIRS),
    (VariableTracking(vocab_size=11, length=6, chains=2, hops=0), PAIRS),
    (VariableTracking(vocab_size=11, length=6, hops=1), said(PAIRS)),
    (
        SequenceOrder(length=3, segment=1),
        [[a < b, a < c, b < c] for a, b, c in itertools.permutations(range(3))],
    ),
]
"""Slices and what they may ask: for each of the equally likely contents, the answer to each question."""


@pytest.mark.parametrize("states", [1, 2, 3])
@pytest.mark.parametrize(("task", "answers"), SMALL, ids=lambda value: getattr(value, "name", None))
def test_no_code_of_a_small_task_beats_its_limit(task, answers, states):
    assert task.state_bits(best_accuracy(answers, states)) <= math.log2(states) + 1e-9
    assert task.state_bits() == pytest.approx(math.log2(len(answers)))


@pytest.mark.parametrize("accuracy", [-0.1, 1.1, math.nan])
def test_what_is_no_frequency_is_refused(accuracy):
    with pytest.raises(InputError, match=r"accuracy = .*: must be from 0 to 1"):
        check_accuracy(accuracy)
    with pytest.raises(InputError, match="accuracy"):
        recall_bits(accuracy, answers=1, choices=2)
