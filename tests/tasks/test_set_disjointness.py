import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoology.registry import InputError
from zoology.tasks.base import IGNORE, batch_hash, draw, tasks
from zoology.tasks.set_disjointness import NO, QUESTION, SEPARATOR, SPECIAL, YES, SetDisjointness

from .checks import check_refused
from .chisquare import excess

few = settings(deadline=None, max_examples=40)


@st.composite
def slices(draw):
    a, b = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    return SetDisjointness(
        size_a=a,
        size_b=b,
        vocab_size=SPECIAL + a + b + draw(st.sampled_from([0, 1, 5, 60])),
        question=draw(st.sampled_from(["which", "whether"])),
        passes=draw(st.integers(1, 3)),
    )


@few
@given(task=slices(), seed=st.integers(0, 2**32))
def test_sequences_follow_the_definition(task, seed):
    batch = task.sample(np.random.default_rng(seed), 30)
    assert batch.tokens.shape == batch.labels.shape == (30, task.seq_len)
    assert batch.tokens.dtype == batch.labels.dtype == np.int32
    assert (batch.labels[:, :-1] == IGNORE).all()
    for tokens, answer in zip(batch.tokens.tolist(), batch.labels[:, -1].tolist(), strict=True):
        a, b = tokens[: task.size_a], tokens[task.size_a + 1 : task.size_a + 1 + task.size_b]
        both = [*a, SEPARATOR, *b, SEPARATOR] * task.passes
        assert tokens == [*both[:-1], QUESTION]
        assert len(set(a)) == task.size_a
        assert len(set(b)) == task.size_b
        assert min(a + b) >= SPECIAL
        assert max(a + b) < task.vocab_size
        common = set(a) & set(b)
        if task.question == "which":
            assert common == {answer}
        else:
            assert (answer, len(common)) in {(YES, 1), (NO, 0)}


@few
@given(task=slices(), seed=st.integers(0, 2**32))
def test_solver_is_right_everywhere(task, seed):
    batch = task.sample(np.random.default_rng(seed), 200)
    np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels)


def test_solver_works_from_the_tokens():
    tokens = np.array([[9, 4, SEPARATOR, 7, 8, 4, QUESTION], [9, 4, SEPARATOR, 7, 8, 5, QUESTION]], dtype=np.int32)
    which = SetDisjointness(size_a=2, size_b=3, vocab_size=16).solve(tokens[:1])
    whether = SetDisjointness(size_a=2, size_b=3, vocab_size=16, question="whether").solve(tokens)
    assert which[:, -1].tolist() == [4]
    assert whether[:, -1].tolist() == [YES, NO]
    assert (whether[:, :-1] == IGNORE).all()


@pytest.mark.parametrize("question", ["which", "whether"])
def test_common_token_stands_anywhere(question):
    task = SetDisjointness(size_a=3, size_b=4, vocab_size=30, question=question)
    tokens = task.sample(np.random.default_rng(0), 30_000).tokens
    equal = tokens[:, :3, None] == tokens[:, None, 4:8]
    assert abs(excess(equal.sum(axis=0), np.full((3, 4), 1 / 12))) < 4


def test_answers_are_even():
    which = SetDisjointness(size_a=3, size_b=4, vocab_size=12).sample(np.random.default_rng(0), 20_000)
    assert abs(excess(np.bincount(which.labels[:, -1], minlength=12)[SPECIAL:], np.full(8, 1 / 8))) < 4
    whether = SetDisjointness(question="whether").sample(np.random.default_rng(0), 20_000)
    assert (whether.labels[:, -1] == YES).mean() == pytest.approx(0.5, abs=0.015)


def test_the_first_set_is_uniform():
    tokens = SetDisjointness(size_a=2, size_b=3, vocab_size=10).sample(np.random.default_rng(0), 30_000).tokens
    counts = np.zeros((6, 6))
    np.add.at(counts, (tokens[:, 0] - SPECIAL, tokens[:, 1] - SPECIAL), 1)
    assert abs(excess(counts, (1 - np.eye(6)) / 30)) < 4


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"size_a": 50, "vocab_size": 64}, "size_a = 50 and size_b = 16: vocab_size = 64 leaves 60 .*at least 70"),
        ({"size_a": 0}, "size_a = 0: .*greater than or equal to 1"),
        ({"size_b": -3}, "size_b = -3"),
        ({"passes": 0}, "passes = 0"),
        ({"question": "why"}, "question = 'why': .*'which' or 'whether'"),
        ({"seq_len": 64}, "no parameter 'seq_len'; it has vocab_size, size_a, size_b, question, passes"),
        ({"vocab_size": 5}, "vocab_size = 5"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(params, message):
    check_refused("set-disjointness", params, message)


def test_all_tokens_can_be_used_up():
    SetDisjointness(size_a=50, size_b=10, vocab_size=64)


def test_context_ends_before_the_last_second_set():
    task = SetDisjointness(size_a=3, size_b=5, passes=2)
    assert task.seq_len == 20
    assert task.roles(np.zeros((1, 20), np.int32))[0, task.context_length - 2 :].tolist() == [
        "set-a",
        "separator",
        *["set-b"] * 5,
        "query",
    ]


@pytest.mark.parametrize(
    ("params", "digest"),
    [
        ({}, "b3d62d902ee0ed21"),
        (
            {"question": "whether", "size_a": 20, "size_b": 8, "vocab_size": 48, "passes": 2},
            "516cdef4af5bdf72",
        ),
    ],
)
def test_same_seed_same_bytes(params, digest):
    """On any machine. Should a NumPy release change its streams, this is where it shows."""
    assert batch_hash(draw(SetDisjointness(**params), 3000, seed=("train", 0))) == digest


@pytest.mark.parametrize(("first", "second", "size"), [(16, 768, 16), (768, 16, 243)])
def test_state_bits_depend_on_which_set_comes_first(first, second, size):
    assert round(SetDisjointness(size_a=first, size_b=second).state_bits() / 8) == size


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("which", lambda common: tuple(common) if len(common) == 1 else None),
        ("whether", lambda common: bool(common) if len(common) < 2 else None),
    ],
)
def test_every_first_set_needs_its_own_state(question, answer):
    """The limit's argument, in a task small enough to list: no two sets A answer every B alike."""
    task = SetDisjointness(size_a=2, size_b=2, vocab_size=SPECIAL + 6, question=question)
    sets = [{i, j} for i in range(6) for j in range(i)]
    # None: a B that is never asked after this A leaves the model free
    answers = {tuple(answer(a & b) for b in sets): a for a in sets}
    for one, two in ((x, y) for x in answers for y in answers if x != y):
        assert any(p != q for p, q in zip(one, two, strict=True) if p is not None and q is not None)
    assert task.state_bits() == pytest.approx(math.log2(len(sets)))


def test_state_bits_claim_nothing_that_is_not_known():
    assert SetDisjointness().state_bits(0.99) is None
    assert SetDisjointness(passes=2).state_bits() is None
    assert SetDisjointness(size_a=30, size_b=30, vocab_size=64).state_bits() is None
    assert SetDisjointness(size_a=32, size_b=1).state_bits() == 0
    assert SetDisjointness(size_a=32, size_b=1, question="whether").state_bits() > 100
    with pytest.raises(InputError, match="accuracy"):
        SetDisjointness().state_bits(2)


def test_names_tell_slices_apart():
    assert SetDisjointness().slice_name == "A4-B16"
    assert SetDisjointness(size_a=16, size_b=4, passes=2, question="whether").slice_name == "A16-B4-P2-whether"


def test_paper_preset_has_both_orders():
    preset = tasks.get("set-disjointness").presets()["paper"]
    for chosen in ([task for task, _ in preset.train], list(preset.test)):
        sizes = {(task.size_a, task.size_b) for task in chosen}
        assert sizes == {(b, a) for a, b in sizes}
        assert len(sizes) == len(chosen)
    assert {n for _, n in preset.train} == {20_000}
    assert {(task.size_a, task.size_b) for task, _ in preset.train if task.size_a < task.size_b} == {
        *((4, 16), (8, 32), (16, 64), (4, 128), (16, 256), (4, 256))
    }
    assert {task.vocab_size for task in preset.test} == {2048}
    assert {(16, 768), (768, 16)} <= {(task.size_a, task.size_b) for task in preset.test}


def test_the_prompt_is_both_sets_and_the_context_the_first():
    task = SetDisjointness(size_a=3, size_b=5, passes=2)
    assert (task.context_length, task.prompt_length, task.seq_len) == (14, 19, 20)
