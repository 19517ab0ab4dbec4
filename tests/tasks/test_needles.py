import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoology.registry import InputError
from zoology.tasks.base import IGNORE, batch_hash, draw, tasks
from zoology.tasks.needles import QUESTION, NeedleMultiKey, NeedleMultiQuery, NeedleMultiValue

from .checks import check_refused
from .chisquare import excess

ALL = [NeedleMultiKey, NeedleMultiValue, NeedleMultiQuery]


@st.composite
def slices(draw):
    keys, values = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return draw(st.sampled_from(ALL))(
        vocab_size=draw(st.integers(3 * max(keys, 2) + 1, 40)),
        keys=keys,
        values=values,
        queries=draw(st.integers(1, keys)),
        length=2 * keys * values + draw(st.sampled_from([0, 1, 2, 15])),
        passes=draw(st.integers(1, 3)),
    )


@settings(deadline=None, max_examples=60)
@given(task=slices(), seed=st.integers(0, 2**32))
def test_sequences_follow_the_definition(task, seed):
    batch = task.sample(np.random.default_rng(seed), 20)
    assert batch.tokens.shape == batch.labels.shape == (20, task.seq_len)
    assert batch.tokens.dtype == batch.labels.dtype == np.int32
    np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels)
    part, m = (task.vocab_size - 1) // 3, task.values
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        hay = tokens[: task.length]
        assert tokens[: task.context_length + 1] == hay * task.passes + [QUESTION]
        found, i = {}, 0
        while i < len(hay):  # read as one reads: a key takes the next token with it
            if hay[i] <= part:
                assert part < hay[i + 1] <= 2 * part
                found.setdefault(hay[i], []).append(hay[i + 1])
                i += 2
            else:
                assert 2 * part < hay[i] < task.vocab_size
                i += 1
        assert 0 not in found
        assert [len(values) for values in found.values()] == [m] * task.keys
        question, answers = tokens[task.context_length + 1 :], labels[task.context_length + 1 :]
        assert labels[: task.context_length + 1] == [IGNORE] * (task.context_length + 1)
        asked = question[::m]
        assert len(asked) == len(set(asked)) == task.queries
        for j, key in enumerate(asked):
            assert answers[j * m : (j + 1) * m] == found[key]
            assert question[j * m : (j + 1) * m] == [key, *found[key][:-1]]


def test_solver_works_from_the_tokens():
    tokens = np.array([[9, 1, 3, 8, 2, 4, 1, 4, 0, 1, 3]], np.int32)
    task = NeedleMultiValue(vocab_size=10, length=8, keys=1, values=2)
    assert task.solve(tokens)[0].tolist() == [*[IGNORE] * 9, 3, 4]
    assert task.roles(np.array([[9, 1, 4, 8, 1, 5, 7, 7, 0, 1, 4]]))[0].tolist() == [
        *("filler", "key", "value", "filler", "key", "value", "filler", "filler", "separator", "query", "query")
    ]


def test_needles_stand_anywhere():
    task = NeedleMultiKey(vocab_size=16, length=7, keys=2)
    tokens = task.sample(np.random.default_rng(0), 20_000).tokens
    asked = (tokens[:, :7] == tokens[:, -1:]).argmax(axis=1)
    other = ((tokens[:, :7] <= 5) & (tokens[:, :7] != tokens[:, -1:])).argmax(axis=1)
    counts = np.zeros((6, 6))
    np.add.at(counts, (asked, other), 1)
    apart = np.abs(np.subtract.outer(np.arange(6), np.arange(6))) >= 2
    assert abs(excess(counts, apart / apart.sum())) < 4


def test_values_are_uniform_and_independent():
    task = NeedleMultiValue(vocab_size=16, length=9, values=2)
    labels = task.sample(np.random.default_rng(0), 20_000).labels[:, -2:] - 6
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(labels.T), 1)
    assert abs(excess(counts, np.full((5, 5), 1 / 25))) < 4


def test_state_bits_are_those_of_all_needles():
    assert NeedleMultiKey(vocab_size=193, keys=4).state_bits() == pytest.approx(4 * 6)
    assert NeedleMultiValue(vocab_size=193, keys=2, values=4).state_bits() == pytest.approx(8 * 6)
    half = NeedleMultiQuery(vocab_size=193).state_bits(0.5)
    assert half == pytest.approx(4 * (6 - 1 - math.log2(63) / 2))
    assert NeedleMultiKey(vocab_size=193).state_bits(1 / 64) == 0
    with pytest.raises(InputError, match="accuracy"):
        NeedleMultiKey().state_bits(1.1)


@pytest.mark.parametrize("name", ["needle-multi-key", "needle-multi-value", "needle-multi-query"])
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"keys": 5, "vocab_size": 15}, "keys = 5: vocab_size = 15 has 4 different keys; .*at least 16"),
        (
            {"keys": 4, "values": 5, "length": 39},
            "keys = 4 and values = 5: these needles need 40 tokens, and length = 39",
        ),
        ({"keys": 2, "queries": 3}, "queries = 3: must be at most keys = 2"),
        ({"keys": 0}, "keys = 0"),
        ({"values": 0}, "values = 0"),
        ({"queries": 0}, "queries = 0"),
        ({"length": 1}, "length = 1"),
        ({"passes": 0}, "passes = 0"),
        ({"vocab_size": 6}, "vocab_size = 6"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(name, params, message):
    check_refused(name, params, message)


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        (NeedleMultiKey(passes=2), "dde240392c47e45e"),
        (NeedleMultiKey(length=64, keys=32), "7b0ce194c34707d3"),
        (NeedleMultiValue(), "c0319ec7073e7ebe"),
        (NeedleMultiQuery(), "8898bdde0e89eedf"),
    ],
)
def test_same_seed_same_bytes(task, digest):
    assert batch_hash(draw(task, 2000, seed=("train", 0))) == digest


def test_defaults_are_the_papers():
    shapes = {name: (t.keys, t.values, t.queries) for name, t in ((c.name, c()) for c in ALL)}
    assert shapes == {
        "needle-multi-key": (4, 1, 1),
        "needle-multi-value": (1, 4, 1),
        "needle-multi-query": (4, 1, 4),
    }
    assert NeedleMultiKey(passes=3).slice_name == "L128-K4-V1-Q1-P3"
    assert {task.length for task in tasks.get("needle-multi-key").presets()["paper"].test} >= {4096, 32768}
