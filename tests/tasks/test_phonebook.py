import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoology.registry import InputError
from zoology.tasks import phonebook
from zoology.tasks.base import IGNORE, batch_hash, draw, tasks
from zoology.tasks.phonebook import DIGITS, Phonebook

from .checks import best_accuracy, check_refused
from .chisquare import excess


@st.composite
def slices(draw):
    letters, name = draw(st.integers(2, 6)), draw(st.integers(1, 3))
    entries = draw(st.integers(1, min(8, letters**name)))
    return Phonebook(
        vocab_size=DIGITS + letters,
        entries=entries,
        name_length=name,
        number_length=draw(st.integers(1, 4)),
        queries=draw(st.integers(1, entries)),
        passes=draw(st.integers(1, 3)),
    )


@settings(deadline=None, max_examples=40)
@given(task=slices(), seed=st.integers(0, 2**32))
def test_sequences_follow_the_definition(task, seed):
    batch = task.sample(np.random.default_rng(seed), 20)
    assert batch.tokens.shape == batch.labels.shape == (20, task.seq_len)
    assert batch.tokens.dtype == batch.labels.dtype == np.int32
    np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels)
    width, name = task.name_length + task.number_length, task.name_length
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        once = tokens[: task.entries * width]
        assert tokens[: task.context_length] == once * task.passes
        book = {}
        for i in range(0, len(once), width):
            book[tuple(once[i : i + name])] = once[i + name : i + width]
        assert len(book) == task.entries
        assert all(DIGITS <= part < task.vocab_size for parts in book for part in parts)
        assert all(0 <= digit < DIGITS for number in book.values() for digit in number)
        expected, question = [], tokens[task.context_length :]
        asked = [tuple(question[i : i + name]) for i in range(0, len(question), width)]
        assert len(asked) == len(set(asked)) == task.queries
        for who in asked:
            expected += [*who, *book[who]]
        assert question == expected[:-1]
        for position, label in enumerate(labels):
            ahead = position + 1 - task.context_length  # where in the question the next token stands
            scored = ahead > 0 and ahead % width >= name
            assert label == (expected[ahead] if scored else IGNORE)


def test_digits_and_queries_are_even():
    batch = Phonebook(vocab_size=14, entries=3, number_length=1, queries=2).sample(np.random.default_rng(0), 20_000)
    book, question = batch.tokens[:, :9].reshape(-1, 3, 3), batch.tokens[:, 9:]
    same = [(book[:, :, :2] == question[:, None, i : i + 2]).all(axis=2).argmax(axis=1) for i in (0, 3)]
    counts = np.zeros((3, 3))
    np.add.at(counts, tuple(same), 1)
    assert abs(excess(counts, (1 - np.eye(3)) / 6)) < 4
    assert abs(excess(np.bincount(book[:, 0, 2] * 10 + book[:, 1, 2], minlength=100), np.full(100, 0.01))) < 4


def test_a_name_has_to_be_read_as_a_whole():
    tokens = np.array([[10, 11, 1, 11, 10, 2, 10, 10, 3, 11, 10]], np.int32)
    task = Phonebook(vocab_size=12, entries=3, number_length=1)
    assert task.solve(tokens)[0].tolist() == [*[IGNORE] * 10, 2]
    assert task.roles(tokens)[0].tolist() == [*["key", "key", "value"] * 3, "key", "query"]


def test_names_may_be_long():
    task = Phonebook(vocab_size=266, entries=50, name_length=7)
    batch = draw(task, 50, seed=("long",))
    np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels)


def test_state_bits_are_those_of_all_numbers():
    task = Phonebook(entries=20, number_length=10)
    assert task.state_bits() == pytest.approx(200 * math.log2(10))
    # 200 (log2 10 - h(1/2) - log2(9)/2)
    assert task.state_bits(0.5) == pytest.approx(200 * (math.log2(10) - 1 - math.log2(9) / 2))
    assert task.state_bits(0.1) == 0
    with pytest.raises(InputError, match="accuracy"):
        task.state_bits(-0.1)


@pytest.mark.parametrize("states", [1, 2, 3])
def test_no_code_of_a_small_book_of_binary_numbers_beats_the_limit(states, monkeypatch):
    monkeypatch.setattr(phonebook, "DIGITS", 2)
    bits = list(itertools.product(range(2), repeat=3))
    for task, answers in (
        (Phonebook(entries=3, number_length=1), bits),
        (Phonebook(entries=1, number_length=3), [[number] for number in bits]),
    ):
        assert task.state_bits(best_accuracy(answers, states)) <= math.log2(states) + 1e-9
        assert task.state_bits() == pytest.approx(3)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"vocab_size": 14}, "entries = 20: with vocab_size = 14 and name_length = 2 there are 16 different names"),
        ({"name_length": 11}, "name_length = 11: with vocab_size = 64 there are over 2\\^62 names"),
        ({"queries": 21}, "queries = 21: must be at most entries = 20"),
        ({"entries": 0}, "entries = 0"),
        ({"number_length": 0}, "number_length = 0"),
        ({"name_length": 0}, "name_length = 0"),
        ({"queries": 0}, "queries = 0"),
        ({"passes": 0}, "passes = 0"),
        ({"vocab_size": 10}, "vocab_size = 10: .*greater than or equal to 11"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(params, message):
    check_refused("phonebook", params, message)


@pytest.mark.parametrize(
    ("task", "digest"),
    [(Phonebook(), "c3a8af9e588cd783"), (Phonebook(entries=4, queries=3, name_length=6, passes=2), "c13c19ebdc11ffbb")],
)
def test_same_seed_same_bytes(task, digest):
    assert batch_hash(draw(task, 2000, seed=("train", 0))) == digest


def test_names_and_presets():
    assert Phonebook(passes=2).slice_name == "E20-2+10-Q1-P2"
    preset = tasks.get("phonebook").presets()["paper"]
    assert {(task.name_length, task.number_length, task.queries) for task in preset.test} == {(2, 10, 1)}
