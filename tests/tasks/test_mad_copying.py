import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoology.registry import InputError
from zoology.tasks.base import IGNORE, batch_hash, draw
from zoology.tasks.mad_copying import Compression, Memorization, SelectiveCopying

from .checks import check_batch, check_refused
from .chisquare import excess

few = settings(deadline=None, max_examples=40)


@st.composite
def copying(draw):
    count, passes = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    return SelectiveCopying(
        num_tokens_to_copy=count,
        passes=passes,
        seq_len=passes * (count + draw(st.integers(0, 20))) + count + 1,
        vocab_size=draw(st.sampled_from([4, 5, 16, 100])),
        gaps=draw(st.sampled_from(["uniform", "papers"])),
    )


@few
@given(task=copying(), seed=st.integers(0, 2**32))
def test_copying_follows_the_definition(task, seed):
    batch = task.sample(np.random.default_rng(seed), 20)
    check_batch(task, batch)
    blank, mark, n = task.vocab_size - 2, task.vocab_size - 1, task.num_tokens_to_copy
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        end = tokens.index(mark)
        assert end == task.context_length
        once = tokens[: end // task.passes]
        assert tokens[:end] == once * task.passes
        assert tokens[end + 1 :] == [blank] * n
        assert labels[: end + 1] == [IGNORE] * (end + 1)
        assert labels[end + 1 :] == [token for token in once if token != blank]
        if task.gaps == "papers":
            assert once[-1] != blank


def test_any_places_are_equally_likely():
    task = SelectiveCopying(vocab_size=5, seq_len=8, num_tokens_to_copy=2)
    tokens = task.sample(np.random.default_rng(0), 20_000).tokens[:, :5]
    places = np.nonzero(tokens != 3)[1].reshape(-1, 2)
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(places.T), 1)
    assert abs(excess(counts, np.triu(np.ones((5, 5)), 1) / 10)) < 4


def test_in_the_papers_law_each_blank_falls_before_one_of_the_tokens():
    task = SelectiveCopying(vocab_size=5, seq_len=13, num_tokens_to_copy=3, gaps="papers")
    tokens = task.sample(np.random.default_rng(0), 20_000).tokens[:, :9]
    places = np.nonzero(tokens != 3)[1].reshape(-1, 3)
    before = np.diff(places, axis=1, prepend=-1) - 1
    counts = np.zeros((7, 7))
    np.add.at(counts, (before[:, 0], before[:, 1]), 1)
    law = np.zeros((7, 7))
    for gaps in itertools.product(range(3), repeat=6):
        law[gaps.count(0), gaps.count(1)] += 3.0**-6
    few_expected = law * 20_000 < 6
    assert counts[few_expected].sum() < 100
    counts[few_expected], law[few_expected] = 0, 0
    assert abs(excess(counts, law / law.sum())) < 4


@st.composite
def compressing(draw):
    return Compression(
        symbols=draw(st.integers(2, 30)), length=draw(st.integers(1, 30)), passes=draw(st.integers(1, 3))
    )


@few
@given(task=compressing(), seed=st.integers(0, 2**32))
def test_compression_follows_the_definition(task, seed):
    batch = task.sample(np.random.default_rng(seed), 20)
    check_batch(task, batch)
    mark = task.symbols
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        shown = tokens[: task.length]
        assert max(shown) < mark
        assert tokens[: task.context_length] == [*shown, mark] * task.passes
        asked = tokens[task.context_length :]
        assert sorted(asked) == list(range(mark + 1, task.vocab_size))
        assert labels == [IGNORE] * task.context_length + [shown[position - mark - 1] for position in asked]


def test_symbols_and_orders_are_uniform():
    task = Compression(symbols=3, length=3)
    batch = task.sample(np.random.default_rng(0), 20_000)
    counts = np.zeros((3, 3, 3))
    np.add.at(counts, tuple(batch.tokens[:, :3].T), 1)
    assert abs(excess(counts, np.full((3, 3, 3), 1 / 27))) < 4
    counts = np.zeros((3, 3, 3))
    np.add.at(counts, tuple(batch.tokens[:, 4:].T - 4), 1)
    allowed = [len(set(order)) == 3 for order in itertools.product(range(3), repeat=3)]
    assert abs(excess(counts, np.array(allowed) / 6)) < 4


@few
@given(vocab=st.integers(5, 200), pairs=st.integers(1, 20), table=st.integers(0, 2**40), seed=st.integers(0, 2**32))
def test_memorization_follows_the_definition(vocab, pairs, table, seed):
    task = Memorization(vocab_size=vocab, seq_len=2 * pairs, table_seed=table)
    batch = task.sample(np.random.default_rng(seed), 20)
    check_batch(task, batch)
    keys, mark = (vocab - 1) // 2, vocab - 1
    memory = {}
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        assert tokens[1::2] == [mark] * pairs
        assert labels[0::2] == [IGNORE] * pairs
        for key, value in zip(tokens[0::2], labels[1::2], strict=True):
            assert key < keys <= value < mark
            assert memory.setdefault(key, value) == value  # the same in all sequences
    assert len(set(memory.values())) == len(memory)


def test_the_table_depends_on_its_seed_alone():
    tables = [Memorization(table_seed=seed).table for seed in (12345, 12345, 1)]
    np.testing.assert_array_equal(tables[0], tables[1])
    assert (tables[0] != tables[2]).mean() > 0.9
    assert tables[0][:4].tolist() == [248, 127, 229, 247]
    with pytest.raises(ValueError, match="read-only"):
        tables[0][0] = 1


def test_how_many_keys_mads_training_set_leaves_out():
    for vocab, share in ((8192, 0.37), (4096, 0.135), (1024, 0.0)):
        task = Memorization(vocab_size=vocab)
        seen = np.unique(draw(task, 256, seed=("train", 0)).tokens[:, 0::2]).size
        assert 1 - seen / ((vocab - 1) // 2) == pytest.approx(share, abs=0.02)


def test_state_bits_of_the_baselines():
    assert SelectiveCopying().state_bits() == pytest.approx(16 * math.log2(14))
    assert SelectiveCopying(passes=2, seq_len=255).state_bits() == pytest.approx(16 * math.log2(14))
    assert Compression().state_bits() == pytest.approx(31 * math.log2(15))
    assert Memorization().state_bits() == pytest.approx(math.log2(127))
    for task in (SelectiveCopying(), Compression(), Memorization()):
        assert 0 < task.state_bits(0.9) < task.state_bits()
        assert task.state_bits(0) == 0
        with pytest.raises(InputError, match="accuracy"):
            task.state_bits(2)


def test_names_and_lengths():
    assert SelectiveCopying().slice_name == "T256-V16-n16"
    assert SelectiveCopying(seq_len=255, passes=2, gaps="papers").slice_name == "T255-V16-n16-P2-papers"
    assert Compression().slice_name == "L31-S15"
    assert Compression(passes=2).slice_name == "L31-S15-P2"
    assert Memorization(table_seed=7).slice_name == "T32-V256-s7"
    task = Compression(passes=2, length=10, symbols=5)
    assert (task.vocab_size, task.context_length, task.seq_len) == (16, 22, 32)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        (
            "selective-copying",
            {"num_tokens_to_copy": 128},
            "num_tokens_to_copy = 128: with passes = 1 these need 257 tokens, and seq_len = 256",
        ),
        ("selective-copying", {"passes": 2}, "passes = 2: the 239 tokens that seq_len = 256 leaves .*seq_len of 255"),
        ("selective-copying", {"num_tokens_to_copy": 0}, "num_tokens_to_copy = 0"),
        ("selective-copying", {"vocab_size": 3}, "vocab_size = 3: .*greater than or equal to 4"),
        ("selective-copying", {"gaps": "even"}, "gaps = 'even': .*'uniform' or 'papers'"),
        ("selective-copying", {"blanks": 1}, "no parameter 'blanks'"),
        ("compression", {"symbols": 1}, "symbols = 1: .*greater than or equal to 2"),
        ("compression", {"length": 0}, "length = 0"),
        ("compression", {"passes": 0}, "passes = 0"),
        ("compression", {"seq_len": 32}, "no parameter 'seq_len'; it has symbols, length, passes"),
        ("memorization", {"seq_len": 31}, "seq_len = 31: must be even"),
        ("memorization", {"vocab_size": 4}, "vocab_size = 4: .*greater than or equal to 5"),
        ("memorization", {"table_seed": -1}, "table_seed = -1"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(name, params, message):
    check_refused(name, params, message)


def test_limits_themselves_are_allowed():
    task = SelectiveCopying(num_tokens_to_copy=127, seq_len=255)
    batch = task.sample(np.random.default_rng(0), 3)
    np.testing.assert_array_equal(batch.tokens[:, :127], batch.labels[:, 128:])


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        (SelectiveCopying(), "a2060fff5f574dc6"),
        (SelectiveCopying(gaps="papers", seq_len=255, passes=2), "e036b1fdf929faa0"),
        (Compression(), "73e58d8530e501c1"),
        (Memorization(), "4fc3574ffaf11def"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_same_seed_same_bytes(task, digest):
    assert batch_hash(draw(task, 3000, seed=("train", 0))) == digest


def test_presets_are_mads_grids():
    presets = SelectiveCopying.presets()
    trained = {name: preset.train[0] for name, preset in presets.items() if name.startswith("paper")}
    assert trained["paper"] == (SelectiveCopying(gaps="papers"), 12_800)
    assert trained["paper-num-tokens-to-copy-96"][0].num_tokens_to_copy == 96
    assert {task.vocab_size for task, _ in trained.values()} == {16, 32, 64, 128}
    assert {task.seq_len for task, _ in trained.values()} == {256, 512, 1024}
    assert {count for _, count in trained.values()} == {12_800, 6_400, 3_200, 1_600, 800}
    assert {task.gaps for task, _ in trained.values()} == {"papers"}
    lengths = {preset.test[0].length for preset in Compression.presets().values()}
    assert {31, 63, 127, 255} <= lengths
    counts = {count for name, p in Memorization.presets().items() for _, count in p.train if name != "small"}
    assert counts == {256}
    sizes = [p.test[0].vocab_size for name, p in Memorization.presets().items() if name != "small"]
    assert sizes == [256, 512, 1024, 2048, 4096, 8192]
