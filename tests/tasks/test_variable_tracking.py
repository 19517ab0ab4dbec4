import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoology.registry import InputError
from zoology.tasks.base import IGNORE, batch_hash, draw
from zoology.tasks.variable_tracking import ASSIGN, QUESTION, VariableTracking

from .checks import check_refused
from .chisquare import excess


@st.composite
def slices(draw):
    chains, hops = draw(st.integers(1, 4)), draw(st.integers(0, 4))
    count = chains * (hops + 1)
    return VariableTracking(
        chains=chains,
        hops=hops,
        vocab_size=draw(st.integers(max(3 * count + 2, 8), 80)),
        length=3 * count + draw(st.sampled_from([0, 1, 2, 15])),
        question=draw(st.sampled_from(["variables", "value"])),
        passes=draw(st.integers(1, 3)),
    )


def value_of(name, assigned):
    """What a variable comes down to."""
    return value_of(assigned[name], assigned) if name in assigned else name


@settings(deadline=None, max_examples=60)
@given(task=slices(), seed=st.integers(0, 2**32))
def test_sequences_follow_the_definition(task, seed):
    batch = task.sample(np.random.default_rng(seed), 20)
    assert batch.tokens.shape == batch.labels.shape == (20, task.seq_len)
    assert batch.tokens.dtype == batch.labels.dtype == np.int32
    np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels)
    part = (task.vocab_size - 2) // 3
    variables, values = range(2, 2 + part), range(2 + part, 2 + 2 * part)
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        hay = tokens[: task.length]
        assert tokens[: task.context_length + 1] == hay * task.passes + [QUESTION]
        assigned, i = {}, 0  # in the order of assignment
        while i < len(hay):
            if hay[i] in variables:
                target, sign, source = hay[i : i + 3]
                assert sign == ASSIGN
                assert target not in assigned
                assert source in assigned or source in values
                assert source not in assigned.values()
                assigned[target] = source
                i += 3
            else:
                assert 2 + 2 * part <= hay[i] < task.vocab_size
                i += 1
        assert len(assigned) == task.chains * (task.hops + 1)
        assert sum(source in values for source in assigned.values()) == task.chains
        question, answers = tokens[task.context_length + 1 :], labels[task.context_length + 1 :]
        assert labels[: task.context_length + 1] == [IGNORE] * (task.context_length + 1)
        if task.question == "variables":
            having = [name for name in assigned if value_of(name, assigned) == question[0]]
            assert len(having) == task.hops + 1
            assert answers == having
            assert question == [question[0], *having[:-1]]
        else:
            assert question[0] not in assigned.values()
            assert answers == [value_of(question[0], assigned)]


def test_solver_works_from_the_tokens():
    # 2..4 variables, 5..7 values: 3 = 6, 2 = 3 and hay
    tokens = np.array([[3, 1, 6, 8, 2, 1, 3, 0, 6, 3]], np.int32)
    variables = VariableTracking(vocab_size=11, length=7, hops=1)
    assert variables.solve(tokens)[0].tolist() == [*[IGNORE] * 8, 3, 2]
    value = VariableTracking(vocab_size=11, length=7, hops=1, question="value")
    assert value.solve(np.array([[3, 1, 6, 8, 2, 1, 3, 0, 2]], np.int32))[0].tolist() == [*[IGNORE] * 8, 6]
    assert variables.roles(tokens)[0].tolist() == [
        *("key", "assign", "value", "filler", "key", "assign", "key", "separator", "query", "query")
    ]


def test_the_chain_asked_for_stands_anywhere():
    task = VariableTracking(vocab_size=14, length=8, chains=2, hops=0)
    tokens = task.sample(np.random.default_rng(0), 20_000).tokens
    asked = (tokens[:, 2:8] == tokens[:, -1:]).argmax(axis=1)
    sign = np.nonzero(tokens[:, :8] == ASSIGN)[1].reshape(-1, 2) - 1
    other = sign.sum(axis=1) - asked
    counts = np.zeros((6, 6))
    np.add.at(counts, (asked, other), 1)
    apart = np.abs(np.subtract.outer(np.arange(6), np.arange(6))) >= 3
    assert abs(excess(counts, apart / apart.sum())) < 4


def test_state_bits():
    task = VariableTracking(vocab_size=32, chains=2, hops=1)  # 4 of 10 variables
    assert task.state_bits() == pytest.approx(math.log2(10 * 9 * 8 * 7))
    h = -0.9 * math.log2(0.9) - 0.1 * math.log2(0.1)
    assert task.state_bits(0.9) == pytest.approx(math.log2(5040) - 4 * (h + 0.1 * math.log2(9)))
    assert VariableTracking(vocab_size=32, chains=2, hops=1, question="value").state_bits() == pytest.approx(
        math.log2(90)
    )
    assert task.state_bits(0.1) == 0
    with pytest.raises(InputError, match="accuracy"):
        task.state_bits(-1)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"vocab_size": 16}, "chains = 1 and hops = 4: these have 5 variables, and vocab_size = 16 has 4; .*least 17"),
        ({"length": 14}, "chains = 1 and hops = 4: these assignments need 15 tokens, and length = 14"),
        ({"chains": 0}, "chains = 0"),
        ({"hops": -1}, "hops = -1"),
        ({"question": "which"}, "question = 'which': .*'variables' or 'value'"),
        ({"passes": 0}, "passes = 0"),
        ({"length": 2}, "length = 2"),
        ({"vocab_size": 7}, "vocab_size = 7"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(params, message):
    check_refused("variable-tracking", params, message)


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        (VariableTracking(), "1719dcaebafd00fb"),
        (VariableTracking(chains=3, hops=2, question="value", passes=2), "28eed402d9191529"),
    ],
)
def test_same_seed_same_bytes(task, digest):
    assert batch_hash(draw(task, 2000, seed=("train", 0))) == digest


def test_names_and_defaults():
    assert VariableTracking().slice_name == "L128-C1-H4"
    assert VariableTracking(passes=2, question="value").slice_name == "L128-C1-H4-P2-value"
