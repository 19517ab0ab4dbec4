import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoology.registry import InputError
from zoology.tasks.base import IGNORE, batch_hash, draw
from zoology.tasks.copying import SEPARATOR, Copying, NgramLookup

from .checks import check_refused
from .chisquare import excess

few = settings(deadline=None, max_examples=40)
copies = st.builds(Copying, vocab_size=st.integers(3, 30), length=st.integers(1, 20), passes=st.integers(1, 3))


@st.composite
def lookups(draw):
    ngram, letters = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    answer = draw(st.integers(1, 4))
    most = min(40, ngram + 2 * letters**ngram)
    answer = min(answer, most - ngram)
    return NgramLookup(
        vocab_size=letters + 1,
        ngram=ngram,
        answer=answer,
        length=draw(st.integers(ngram + answer, most)),
        question=draw(st.sampled_from(["suffix", "prefix"])),
        passes=draw(st.integers(1, 3)),
    )


def sections(tokens):
    """A row of tokens, cut at its separators."""
    cut = [[]]
    for token in tokens:
        if token == SEPARATOR:
            cut.append([])
        else:
            cut[-1].append(token)
    return cut


@few
@given(task=copies, seed=st.integers(0, 2**32))
def test_copies_follow_the_definition(task, seed):
    batch = task.sample(np.random.default_rng(seed), 20)
    assert batch.tokens.shape == batch.labels.shape == (20, task.seq_len)
    assert batch.tokens.dtype == batch.labels.dtype == np.int32
    np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels)
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        *shown, copied = sections(tokens)
        assert shown == [shown[0]] * task.passes
        assert len(shown[0]) == task.length
        assert copied == shown[0][:-1]
        assert set(shown[0]) <= set(range(1, task.vocab_size))
        assert tokens[task.context_length] == SEPARATOR
        assert labels == [IGNORE] * task.context_length + shown[0]


def test_letters_are_uniform_and_independent():
    labels = Copying(vocab_size=5, length=3).sample(np.random.default_rng(0), 20_000).labels[:, -3:]
    counts = np.zeros((5, 5, 5))
    np.add.at(counts, tuple(labels.T), 1)
    assert abs(excess(counts[1:, 1:, 1:], np.full((4, 4, 4), 1 / 64))) < 4


def test_copying_needs_the_whole_string():
    assert Copying(vocab_size=27, length=300).state_bits() == pytest.approx(300 * math.log2(26))
    half = Copying(vocab_size=3, length=8)  # two letters: 1 - h(p) for each
    assert half.state_bits(0.89) == pytest.approx(8 * (1 - 0.4999), abs=1e-3)
    assert half.state_bits(0.5) == 0


@few
@given(task=lookups(), seed=st.integers(0, 2**32))
def test_lookups_follow_the_definition(task, seed):
    batch = task.sample(np.random.default_rng(seed), 20)
    assert batch.tokens.shape == batch.labels.shape == (20, task.seq_len)
    assert batch.tokens.dtype == batch.labels.dtype == np.int32
    np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels)
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        answer = labels[-task.answer :]
        assert labels[: -task.answer] == [IGNORE] * (task.seq_len - task.answer)
        if task.question == "suffix":
            *shown, last = sections(tokens)
            wanted, said = last[: task.ngram], last[task.ngram :]
        else:
            wanted, *shown, said = sections(tokens)
        assert len(wanted) == task.ngram
        assert said == answer[:-1]
        assert shown == [shown[0]] * task.passes
        assert len(shown[0]) == task.length
        assert set(shown[0]) <= set(range(1, task.vocab_size))
        string, key = bytes(shown[0]), bytes(wanted)
        found = [i for i in range(task.length) if string[i:].startswith(key)]
        assert len(found) == 1
        assert string[found[0] + task.ngram :][: task.answer] == bytes(answer)


def test_solver_works_from_the_tokens():
    suffix = np.array([[1, 2, 3, 1, 3, 0, 3, 1]], np.int32)
    prefix = np.array([[3, 1, 0, 1, 2, 3, 1, 3, 0]], np.int32)
    task = {"vocab_size": 9, "length": 5, "ngram": 2}
    assert NgramLookup(**task).solve(suffix)[0].tolist() == [*[IGNORE] * 7, 3]
    assert NgramLookup(**task, question="prefix").solve(prefix)[0].tolist() == [*[IGNORE] * 8, 3]


@pytest.mark.parametrize(("ngram", "answer"), [(1, 1), (2, 1), (1, 2)])
def test_strings_and_places_are_uniform_where_the_ngram_is_unique(ngram, answer):
    """Every (string, place) that is allowed comes equally often, checked by listing them all."""
    task = NgramLookup(vocab_size=3, length=4, ngram=ngram, answer=answer)
    batch = task.sample(np.random.default_rng(1), 20_000)
    counts = {}
    for string in itertools.product((1, 2), repeat=4):
        windows = [string[i : i + ngram] for i in range(4 - ngram + 1)]
        counts |= {(string, w): 0 for w in windows[: 4 - ngram - answer + 1] if windows.count(w) == 1}
    for tokens in batch.tokens.tolist():
        counts[tuple(tokens[:4]), tuple(tokens[5 : 5 + ngram])] += 1
    assert abs(excess(list(counts.values()), np.full(len(counts), 1 / len(counts)))) < 4


def answers_of(task, string):
    """What each n-gram that may be asked for is answered by."""
    n, k = task.ngram, task.answer
    windows = [string[i : i + n] for i in range(len(string) - n + 1)]
    asked = enumerate(windows[: len(string) - n - k + 1])
    return {w: string[i + n : i + n + k] for i, w in asked if windows.count(w) == 1}


def test_suffix_limit_is_below_what_strings_there_are_to_tell_apart():
    """The least number of states is at least the number of strings that no two of which may share a state."""
    for letters, length, ngram in ((4, 4, 2), (3, 4, 2), (5, 4, 2), (5, 3, 1), (4, 5, 2)):
        task = NgramLookup(vocab_size=letters + 1, length=length, ngram=ngram)
        if task.state_bits() is None:
            continue
        strings = list(itertools.product(range(letters), repeat=length))
        answers = [
            answers_of(task, s)
            for s in strings
            if s[:ngram] == tuple(range(ngram)) and len(answers_of(task, s)) == length - ngram
        ]
        for one, two in itertools.combinations(answers, 2):  # each pair is told apart by some question
            assert any(one[w] != two[w] for w in one.keys() & two.keys())
        assert 0 < task.state_bits() <= math.log2(len(answers)) + 1e-9


@pytest.mark.parametrize(("ngram", "answer", "states"), [(1, 1, 2), (2, 1, 3), (2, 2, 4), (1, 2, 4)])
def test_prefix_limit_counts_answers(ngram, answer, states):
    """After one n-gram, so many answers are possible, and more than one state holds none of two."""
    task = NgramLookup(vocab_size=4, length=6, ngram=ngram, answer=answer, question="prefix")
    possible = {}
    for string in itertools.product(range(3), repeat=6):
        for w, said in answers_of(task, string).items():
            possible.setdefault(w, set()).add(said)
    assert task.state_bits() == pytest.approx(math.log2(states))
    assert states <= max(map(len, possible.values()))


def test_lookup_claims_nothing_that_is_not_known():
    assert NgramLookup(length=30).state_bits(0.99) is None
    assert NgramLookup(vocab_size=5, length=30).state_bits() is None
    assert NgramLookup(length=30).state_bits() == pytest.approx(27 * math.log2(26) + math.log2(1 - 14 * 27 / 26**3))
    for cls in (Copying, NgramLookup):
        with pytest.raises(InputError, match="accuracy = -1"):
            cls().state_bits(-1)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("copying", {"length": 0}, "length = 0: .*greater than or equal to 1"),
        ("copying", {"vocab_size": 2}, "vocab_size = 2"),
        ("copying", {"passes": 0}, "passes = 0"),
        ("copying", {"seq_len": 30}, "no parameter 'seq_len'; it has vocab_size, length, passes"),
        ("ngram-lookup", {"length": 3}, r"length = 3: must be at least ngram \+ answer = 4"),
        ("ngram-lookup", {"ngram": 1, "length": 54}, "length = 54: an n-gram of 1 out of 26 letters .*at most 53"),
        ("ngram-lookup", {"question": "infix"}, "question = 'infix': .*'suffix' or 'prefix'"),
        ("ngram-lookup", {"ngram": 0}, "ngram = 0"),
        ("ngram-lookup", {"answer": 0}, "answer = 0"),
        ("ngram-lookup", {"passes": 0}, "passes = 0"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(name, params, message):
    check_refused(name, params, message)


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        (Copying(passes=2), "a8add6bd8df51005"),
        (NgramLookup(), "78982705e318daba"),
        (NgramLookup(vocab_size=4, length=9, ngram=2, answer=3, passes=2, question="prefix"), "346c041ecbade47f"),
    ],
)
def test_same_seed_same_bytes(task, digest):
    assert batch_hash(draw(task, 2000, seed=("train", 0))) == digest


def test_roles_and_names():
    assert Copying(length=2, passes=2).roles(np.array([[5, 6, 0, 5, 6, 0, 5]]))[0].tolist() == [
        *("value", "value", "separator", "value", "value", "query", "query")
    ]
    lookup = NgramLookup(length=4, ngram=2, answer=2, vocab_size=9)
    assert lookup.roles(np.array([[1, 2, 3, 4, 0, 1, 2, 3]]))[0].tolist() == [
        *["value"] * 4,
        *("separator", "key", "query", "query"),
    ]
    assert Copying(length=9, passes=2).slice_name == "L9-P2"
    assert NgramLookup(question="prefix", passes=2).slice_name == "L30-n3-A1-P2-prefix"
