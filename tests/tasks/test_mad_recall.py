import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoology.registry import InputError
from zoology.tasks.base import IGNORE, batch_hash, draw
from zoology.tasks.mad_recall import FuzzyRecall, InContextRecall, NoisyRecall

from .checks import check_batch, check_refused
from .chisquare import excess

few = settings(deadline=None, max_examples=40)


@st.composite
def plain(draw):
    length, vocab = 2 * draw(st.integers(2, 30)), draw(st.integers(4, 40))
    if draw(st.booleans()):
        return InContextRecall(seq_len=length, vocab_size=vocab)
    noise = draw(st.integers(1, 20))
    share = draw(st.sampled_from([0.0, 0.2, 0.8, 0.99]))
    return NoisyRecall(seq_len=length, vocab_size=vocab + noise, noise_vocab_size=noise, frac_noise=share)


@st.composite
def fuzzy(draw):
    key, value = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    return FuzzyRecall(
        key_size=key,
        value_size=value,
        keys=draw(st.sampled_from(["varied", "longest"])),
        vocab_size=2 * max(key, value) + 1 + draw(st.integers(2, 12)),
        seq_len=2 * (key + value) + draw(st.integers(0, 70)),
    )


@few
@given(task=plain(), seed=st.integers(0, 2**32))
def test_pairs_follow_the_definition(task, seed):
    batch = task.sample(np.random.default_rng(seed), 20)
    check_batch(task, batch)
    clean = task.vocab_size - getattr(task, "noise_vocab_size", 0)
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        memory = {}
        for i in range(0, task.seq_len, 2):
            key, value = tokens[i], tokens[i + 1]
            assert labels[i + 1] == IGNORE
            if key >= clean:
                assert value >= clean
                assert labels[i] == IGNORE
                continue
            assert key < clean // 2 <= value < clean
            assert labels[i] == memory.get(key, IGNORE)
            assert memory.setdefault(key, value) == value
        assert labels[-2] != IGNORE  # the last pair asks
        roles = task.roles(np.array([tokens], np.int32))[0]
        assert [role == "noise" for role in roles] == [token >= clean for token in tokens]


def test_the_last_key_is_any_of_those_shown_equally_likely():
    """However often each was shown: of two keys, three pairs before the last."""
    task = InContextRecall(vocab_size=4, seq_len=8)
    tokens = task.sample(np.random.default_rng(0), 40_000).tokens
    before, last = tokens[:, :6:2].sum(axis=1), tokens[:, 6]
    assert (last[before == 0] == 0).all()
    assert (last[before == 3] == 1).all()
    for ones in (1, 2):
        assert last[before == ones].mean() == pytest.approx(0.5, abs=0.02)


def test_keys_and_their_values_are_independent_and_uniform():
    tokens = InContextRecall(vocab_size=6, seq_len=8).sample(np.random.default_rng(0), 40_000).tokens
    other = tokens[:, 0] != tokens[:, 2]
    counts = np.zeros((3, 3, 3, 3))
    np.add.at(counts, (tokens[other, 0], tokens[other, 1] - 3, tokens[other, 2], tokens[other, 3] - 3), 1)
    allowed = np.broadcast_to((1 - np.eye(3))[:, None, :, None], counts.shape) / 54
    assert abs(excess(counts, allowed)) < 4  # two keys may share a value


def test_noise_has_its_share_and_never_takes_all():
    task = NoisyRecall(vocab_size=12, noise_vocab_size=4, seq_len=16, frac_noise=0.7)
    tokens = task.sample(np.random.default_rng(0), 30_000).tokens
    noise = tokens[:, 0::2] >= 8
    assert not noise[:, -1].any()
    assert not noise.all(axis=1).any()
    assert noise[:, :-1].mean(axis=0) == pytest.approx(np.full(7, 0.7 * 6 / 7), abs=0.012)
    pairs = tokens.reshape(-1, 2)[noise.ravel()]
    counts = np.zeros((4, 4))
    np.add.at(counts, tuple(pairs.T - 8), 1)
    assert abs(excess(counts, np.full((4, 4), 1 / 16))) < 4


@few
@given(task=fuzzy(), seed=st.integers(0, 2**32))
def test_phrases_follow_the_definition(task, seed):
    batch = task.sample(np.random.default_rng(seed), 20)
    check_batch(task, batch)
    keys, pad = (task.vocab_size - 1) // 2, task.vocab_size - 1
    longest = task.key_size + task.value_size
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        start = sum(token == pad for token in tokens)
        assert tokens[:start] == [pad] * start
        assert pad not in tokens[start:]
        runs = [(kind, list(run)) for kind, run in itertools.groupby(tokens[start:], key=lambda t: t < keys)]
        assert [kind for kind, _ in runs] == [True, False] * (len(runs) // 2)
        memory, expected = {}, [IGNORE] * start
        for (_, key), (_, value) in zip(runs[0::2], runs[1::2], strict=True):
            assert len(set(key)) == len(key) <= task.key_size
            assert len(set(value)) == len(value) <= task.value_size
            assert task.keys == "varied" or len(key) == task.key_size
            known = memory.get(tuple(key))
            expected += [IGNORE] * (len(key) - 1) + (known or [IGNORE] * len(value)) + [IGNORE]
            assert memory.setdefault(tuple(key), value) == value
        assert labels == expected
        assert known is not None  # the last key was shown before
        assert 0 <= start <= 2 * longest


def test_answers_come_from_what_was_shown_and_not_from_what_stands_there():
    task = FuzzyRecall(vocab_size=16, seq_len=24, key_size=2, value_size=2)
    batch = task.sample(np.random.default_rng(0), 500)
    tokens = batch.tokens.copy()
    tokens[:, -1] = 7  # a token of a value, as the last one is
    np.testing.assert_array_equal(task.solve(tokens), batch.labels)
    later = InContextRecall(seq_len=16)
    batch = later.sample(np.random.default_rng(0), 500)
    tokens = batch.tokens.copy()
    tokens[:, -1] = 15
    np.testing.assert_array_equal(later.solve(tokens), batch.labels)


def test_a_key_is_not_its_beginning():
    task = FuzzyRecall(vocab_size=15, seq_len=14, key_size=2, value_size=2)
    pad = 14
    tokens = np.array([[pad, pad, 1, 9, 1, 2, 10, 11, 1, 9, 1, 2, 10, 11]], dtype=np.int32)
    expected = {8: 9, 11: 10, 12: 11}
    labels = task.solve(tokens)[0].tolist()
    assert {i: label for i, label in enumerate(labels) if label != IGNORE} == expected


def test_phrases_have_uniform_sizes_and_tokens():
    task = FuzzyRecall(vocab_size=9, seq_len=24)
    tokens = task.sample(np.random.default_rng(0), 20_000).tokens
    start = (tokens == 8).sum(axis=1)
    run = np.stack([tokens[np.arange(len(tokens)), start + i] for i in range(6)], axis=1)
    size = np.argmax(run >= 4, axis=1)
    assert abs(excess(np.bincount(size, minlength=4)[1:], np.full(3, 1 / 3))) < 4
    motifs = run[size == 3, :3]
    counts = np.zeros((4, 4, 4))
    np.add.at(counts, tuple(motifs.T), 1)
    allowed = [len(set(m)) == 3 for m in itertools.product(range(4), repeat=3)]
    assert abs(excess(counts, np.array(allowed) / 24)) < 4


def test_the_last_phrase_is_any_of_those_shown():
    """Of keys of one token the last is uniform over the different ones."""
    task = FuzzyRecall(vocab_size=5, seq_len=10, key_size=1, value_size=1)
    tokens = task.sample(np.random.default_rng(0), 30_000).tokens
    before, last = tokens[:, 0:8:2].sum(axis=1), tokens[:, 8]
    assert (tokens != 4).all()
    for ones in (1, 2, 3):
        assert last[before == ones].mean() == pytest.approx(0.5, abs=0.025)


def test_state_bits():
    assert InContextRecall().state_bits() == 24
    assert InContextRecall(seq_len=8).state_bits() == 9  # three pairs can show three keys
    assert NoisyRecall().state_bits() == 24
    assert InContextRecall(vocab_size=7).state_bits() == 3 * 2
    assert FuzzyRecall().state_bits() == pytest.approx(20 * math.log2(8 * 7 * 6))
    assert FuzzyRecall(key_size=1, value_size=1).state_bits() == pytest.approx(7 * 3)
    for task in (InContextRecall(), NoisyRecall(), FuzzyRecall()):
        assert task.state_bits(0.99) is None
        with pytest.raises(InputError, match="accuracy"):
            task.state_bits(2)


@pytest.mark.parametrize(
    "task",
    [
        InContextRecall(vocab_size=4, seq_len=6),
        InContextRecall(vocab_size=5, seq_len=6),
        NoisyRecall(vocab_size=6, noise_vocab_size=2, seq_len=6),
        FuzzyRecall(vocab_size=5, seq_len=6, key_size=1, value_size=1),
        FuzzyRecall(vocab_size=6, seq_len=9, key_size=2, value_size=1, keys="longest"),
    ],
    ids=lambda task: f"{task.name}-{task.slice_name}",
)
def test_contexts_that_must_differ_are_as_many_as_the_limit_says(task):
    """Contexts are told apart by a question if it can follow both of them with other answers. A set of contexts, of
    which any two are told apart, needs as many states: here one is found that is no smaller than the limit."""
    batch = task.sample(np.random.default_rng(0), 20_000)
    cut = task.context_length
    futures = {}
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        futures.setdefault(tuple(tokens[:cut]), {})[tuple(tokens[cut:-1])] = tuple(labels[cut:])
    apart = []
    for answers in sorted(futures.values(), key=len, reverse=True):
        if all(any(answers[q] != other[q] for q in answers.keys() & other.keys()) for other in apart):
            apart.append(answers)
    assert math.log2(len(apart)) >= task.state_bits() - 1e-9


def test_names_tell_slices_apart():
    assert InContextRecall().slice_name == "T128-V16"
    assert NoisyRecall(frac_noise=0.4).slice_name == "T128-V32-n16-f0.4"
    assert FuzzyRecall().slice_name == "T128-V16-k3-v3"
    assert FuzzyRecall(keys="longest", value_size=2).slice_name == "T128-V16-k=3-v2"


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("in-context-recall", {"seq_len": 127}, "seq_len = 127: must be even"),
        ("in-context-recall", {"seq_len": 2}, "seq_len = 2: .*greater than or equal to 4"),
        ("in-context-recall", {"vocab_size": 3}, "vocab_size = 3: .*greater than or equal to 4"),
        ("in-context-recall", {"noise": 3}, "no parameter 'noise'; it has vocab_size, seq_len"),
        ("noisy-recall", {"seq_len": 127}, "seq_len = 127: must be even"),
        ("noisy-recall", {"frac_noise": 1}, "frac_noise = 1: .*less than 1"),
        ("noisy-recall", {"frac_noise": -0.1}, "frac_noise = -0.1: .*greater than or equal to 0"),
        ("noisy-recall", {"noise_vocab_size": 0}, "noise_vocab_size = 0"),
        (
            "noisy-recall",
            {"noise_vocab_size": 30},
            "noise_vocab_size = 30: vocab_size = 32 leaves 2 tokens for keys and values; use at least 34",
        ),
        ("noisy-recall", {"vocab_size": 8}, "noise_vocab_size = 16: vocab_size = 8 leaves 0 tokens"),
        ("fuzzy-recall", {"key_size": 8}, "key_size = 8: vocab_size = 16 has 7 different tokens for it"),
        ("fuzzy-recall", {"value_size": 9}, "value_size = 9: vocab_size = 16 has 8 different tokens for it"),
        ("fuzzy-recall", {"seq_len": 11}, "seq_len = 11: must be at least 12, twice a pair with key_size = 3"),
        ("fuzzy-recall", {"key_size": 20, "vocab_size": 64, "seq_len": 64}, "key_size = 20: too many different keys"),
        ("fuzzy-recall", {"keys": "short"}, "keys = 'short': .*'varied' or 'longest'"),
        ("fuzzy-recall", {"key_size": 0}, "key_size = 0"),
        ("fuzzy-recall", {"value_size": 0}, "value_size = 0"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(name, params, message):
    check_refused(name, params, message)


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        (InContextRecall(), "939f2b0d5702eeb4"),
        (NoisyRecall(), "063c588174fda043"),
        (FuzzyRecall(), "8aaa9cbc0dca689e"),
        (FuzzyRecall(keys="longest", vocab_size=40, value_size=2), "580a8724c45aff72"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_same_seed_same_bytes(task, digest):
    assert batch_hash(draw(task, 3000, seed=("train", 0))) == digest


def test_presets_are_mads_grids():
    presets = NoisyRecall.presets()
    [(task, count)] = presets["paper"].train
    assert (task, count) == (NoisyRecall(), 12_800)
    changed = {name: preset.train[0] for name, preset in presets.items() if name.startswith("paper-")}
    assert {task.vocab_size for task, _ in changed.values()} == {32, 48, 80, 144}
    assert {task.seq_len for task, _ in changed.values()} == {128, 256, 512, 1024}
    assert {task.frac_noise for task, _ in changed.values()} == {0.2, 0.4, 0.6, 0.8}
    assert {count for _, count in changed.values()} == {12_800, 6_400, 3_200, 1_600, 800}
    assert len(changed) == 3 + 3 + 3 + 4
    assert len(InContextRecall.presets()) == len(FuzzyRecall.presets()) == 2 + 3 + 3 + 4
    fuzzy_presets = FuzzyRecall.presets().values()
    assert {task.keys for preset in fuzzy_presets for task, _ in preset.train} == {"varied"}
    assert {task.keys for preset in fuzzy_presets for task in preset.test} == {"longest"}
