import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoology.registry import InputError
from zoology.tasks.base import IGNORE, batch_hash, draw
from zoology.tasks.joint_recall import JointRecall

from .checks import check_batch, check_refused
from .chisquare import excess


@st.composite
def slices(draw):
    contexts, keys = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    third = max(contexts, keys, 2) + draw(st.sampled_from([0, 1, 20]))
    return JointRecall(num_contexts=contexts, num_keys=keys, vocab_size=3 * third, passes=draw(st.integers(1, 3)))


@settings(deadline=None, max_examples=40)
@given(task=slices(), seed=st.integers(0, 2**32))
def test_sequences_follow_the_definition(task, seed):
    batch = task.sample(np.random.default_rng(seed), 20)
    check_batch(task, batch)
    third, context = task.vocab_size // 3, task.context_length
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        once = context // task.passes
        assert tokens[:context] == tokens[:once] * task.passes
        table, at = {}, None
        for token in tokens[:once]:  # token by token, as a reader would
            if token < third:
                at = token
            elif token < 2 * third:
                key = token
            else:
                assert table.setdefault((at, key), token) == token
        contexts, keys = {pair[0] for pair in table}, {pair[1] for pair in table}
        assert (len(contexts), len(keys)) == (task.num_contexts, task.num_keys)
        assert set(table) == set(itertools.product(contexts, keys))
        asked = []
        for token, label in zip(tokens[context:], labels[context:], strict=True):
            if token < third:
                at = token
                assert label == IGNORE
            else:
                asked.append((at, token))
                assert label == table[at, token]
        assert sorted(asked) == sorted(table)


def test_solver_works_from_the_tokens():
    task = JointRecall(vocab_size=9, num_contexts=2, num_keys=2)
    tokens = np.array([[0, 3, 6, 4, 7, 2, 4, 6, 3, 8, 2, 3, 4, 0, 3, 4]], dtype=np.int32)
    assert task.solve(tokens)[0].tolist() == [IGNORE] * 11 + [8, 6, IGNORE, 6, 7]


def test_values_are_independent_of_context_and_key():
    task = JointRecall(vocab_size=9, num_contexts=2, num_keys=2)
    labels = task.sample(np.random.default_rng(0), 20_000).labels
    counts = np.zeros((3, 3, 3, 3))
    np.add.at(counts, tuple(labels[labels != IGNORE].reshape(-1, 4).T - 6), 1)
    assert abs(excess(counts, np.full((3, 3, 3, 3), 1 / 81))) < 4


def test_contexts_and_keys_are_asked_in_any_order():
    task = JointRecall(vocab_size=12, num_contexts=3, num_keys=3)
    tokens = task.sample(np.random.default_rng(0), 20_000).tokens
    shown, asked = tokens[:, :21:7], tokens[:, 21::4]
    order = (asked[:, :, None] == shown[:, None, :]).argmax(axis=2)
    allowed = np.array([len(set(o)) == 3 for o in itertools.product(range(3), repeat=3)]).reshape(3, 3, 3) / 6
    counts = np.zeros((3, 3, 3))
    np.add.at(counts, tuple(order.T), 1)
    assert abs(excess(counts, allowed)) < 4
    for first, second in ((tokens[:, 1:7:2], tokens[:, 8:14:2]), (tokens[:, 1:7:2], tokens[:, 22:25])):
        counts = np.zeros((3, 3, 3))
        np.add.at(counts, tuple((second[:, :, None] == first[:, None, :]).argmax(axis=2).T), 1)
        assert abs(excess(counts, allowed)) < 4


def test_state_bits_of_the_papers_table():
    assert JointRecall(num_contexts=16, num_keys=16).state_bits() == pytest.approx(16 * 16 * 4)
    assert JointRecall().state_bits(1 / 16) == 0
    with pytest.raises(InputError, match="accuracy"):
        JointRecall().state_bits(1.01)


def test_names_and_lengths():
    assert JointRecall().slice_name == "C8-K8-M16"
    task = JointRecall(num_contexts=2, num_keys=3, vocab_size=30, passes=2)
    assert task.slice_name == "C2-K3-M10-P2"
    assert (task.context_length, task.seq_len) == (28, 36)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"vocab_size": 47}, "vocab_size = 47: must be a multiple of 3"),
        ({"num_contexts": 17}, "num_contexts = 17: vocab_size = 48 has 16 of them; use at least 51"),
        ({"num_keys": 20}, "num_keys = 20: vocab_size = 48 has 16 of them; use at least 60"),
        ({"num_keys": 0}, "num_keys = 0"),
        ({"num_contexts": 0}, "num_contexts = 0"),
        ({"passes": 0}, "passes = 0"),
        ({"vocab_size": 3}, "vocab_size = 3: .*greater than or equal to 6"),
        ({"seq_len": 64}, "no parameter 'seq_len'; it has vocab_size, num_contexts, num_keys, passes"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(params, message):
    check_refused("joint-recall", params, message)


@pytest.mark.parametrize(
    ("params", "digest"),
    [({}, "8fc6114b8401c090"), ({"vocab_size": 60, "num_contexts": 3, "num_keys": 5, "passes": 2}, "5fa25c032ca892d1")],
)
def test_same_seed_same_bytes(params, digest):
    assert batch_hash(draw(JointRecall(**params), 3000, seed=("train", 0))) == digest


def test_paper_preset_is_every_size_from_5_to_16():
    preset = JointRecall.presets()["paper"]
    assert {(t.num_contexts, t.num_keys) for t, _ in preset.train} == set(itertools.product(range(5, 17), repeat=2))
    assert sum(n for _, n in preset.train) == 1_440_000
    assert {t.vocab_size for t in preset.test} == {48}
