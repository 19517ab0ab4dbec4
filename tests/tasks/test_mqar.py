import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoology.registry import InputError
from zoology.tasks.base import IGNORE, batch_hash, draw, tasks
from zoology.tasks.mqar import Mqar

from .checks import check_refused
from .chisquare import excess

few = settings(deadline=None, max_examples=40)


@st.composite
def slices(draw):
    pairs, passes = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    return Mqar(
        num_pairs=pairs,
        passes=passes,
        seq_len=2 * pairs * (passes + 1) + 2 * draw(st.integers(0, 12)),
        vocab_size=2 * pairs + 2 + 2 * draw(st.sampled_from([0, 1, 3, 40])),
        fillers=draw(st.sampled_from(["strict", "papers", "zero"])),
        power=draw(st.sampled_from([0.01, 1.0, 3.0])),
    )


def slots(task, batch):
    """(n, num_pairs) the slot, from 0, of the query for each pair in context order."""
    context = task.context_length
    keys = batch.tokens[:, : 2 * task.num_pairs : 2]
    question, answers = batch.tokens[:, context::2], batch.labels[:, context::2]
    is_query = (question[:, None, :] == keys[:, :, None]) & (answers != IGNORE)[:, None, :]
    assert (is_query.sum(axis=2) == 1).all()
    return is_query.argmax(axis=2)


@few
@given(task=slices(), seed=st.integers(0, 2**32))
def test_sequences_follow_the_definition(task, seed):
    batch = task.sample(np.random.default_rng(seed), 20)
    n, half, context = task.num_pairs, task.vocab_size // 2, task.context_length
    assert batch.tokens.shape == batch.labels.shape == (20, task.seq_len)
    assert batch.tokens.dtype == batch.labels.dtype == np.int32
    for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
        keys, values = tokens[: 2 * n : 2], tokens[1 : 2 * n : 2]
        assert len(set(keys)) == n
        assert set(keys) <= set(range(1, half))
        assert len(set(values)) == n
        assert set(values) <= set(range(half, 2 * half))
        assert tokens[:context] == tokens[: 2 * n] * task.passes
        scored = [i for i, label in enumerate(labels) if label != IGNORE]
        assert all(i >= context and (i - context) % 2 == 0 for i in scored)
        assert sorted(tokens[i] for i in scored) == sorted(keys)
        assert [labels[i] for i in scored] == [dict(zip(keys, values, strict=True))[tokens[i]] for i in scored]
        fillers = {i: tokens[i] for i in range(context, task.seq_len) if i not in scored}
        assert all(0 <= filler < task.vocab_size for filler in fillers.values())
        if task.fillers == "strict":
            assert not set(fillers.values()) & {*keys, *values}
        elif task.fillers == "zero":
            assert not any(fillers.values())
        else:
            assert not {filler for i, filler in fillers.items() if (i - context) % 2 == 0} & set(keys)


@few
@given(task=slices(), seed=st.integers(0, 2**32))
def test_solver_is_right_everywhere(task, seed):
    batch = task.sample(np.random.default_rng(seed), 200)
    np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels)


def test_solver_works_from_the_tokens():
    task = Mqar(vocab_size=12, seq_len=12, num_pairs=2)
    #                   k  v  k  v | q  .  .  k  q  k  .  v     odd offsets ask nothing
    tokens = np.array([[1, 7, 3, 9, 3, 0, 8, 1, 1, 3, 6, 9]], dtype=np.int32)
    expected = np.full((1, 12), IGNORE)
    expected[0, [4, 8]] = 9, 7
    np.testing.assert_array_equal(task.solve(tokens), expected)


def test_papers_fillers_rebind_and_strict_ones_do_not():
    shape = {"vocab_size": 32, "seq_len": 64, "num_pairs": 4}
    rebound = {}
    for fillers in ("strict", "papers"):
        task = Mqar(**shape, fillers=fillers)
        batch = task.sample(np.random.default_rng(0), 500)
        np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels)
        keys = batch.tokens[:, :8:2]
        rebound[fillers] = (batch.tokens[:, 9::2, None] == keys[:, None]).mean(axis=(0, 1)).sum()
    assert rebound["strict"] == 0
    assert rebound["papers"] == pytest.approx(4 / 32, rel=0.1)


def test_papers_fillers_at_odd_offsets_are_uniform_over_the_whole_vocabulary():
    batch = Mqar(vocab_size=16, seq_len=64, num_pairs=3, fillers="papers").sample(np.random.default_rng(1), 3000)
    counts = np.bincount(batch.tokens[:, 7::2].ravel(), minlength=16)
    assert abs(excess(counts, np.full(16, 1 / 16))) < 4


def test_strict_fillers_are_uniform_over_zero_and_the_unused_keys():
    """And so tell nothing about the values, which come from the other half."""
    batch = Mqar(vocab_size=12, seq_len=32, num_pairs=2).sample(np.random.default_rng(1), 5000)
    same = (batch.tokens[:, 0] == 1) & (batch.tokens[:, 2] == 3)
    chosen, labels = batch.tokens[same, 4:], batch.labels[same, 4:]
    counts = np.bincount(chosen[labels == IGNORE], minlength=12)
    assert abs(excess(counts, np.isin(np.arange(12), [0, 2, 4, 5]) / 4)) < 4


@pytest.mark.parametrize("power", [0.01, 1.0, 2.5])
def test_slots_are_drawn_one_after_another_by_the_power_law(power):
    """Of two queries in five slots, every outcome has its probability p(x) p(y) / (1 - p(x))."""
    task = Mqar(vocab_size=64, seq_len=14, num_pairs=2, power=power)
    first, second = slots(task, task.sample(np.random.default_rng(2), 60_000)).T
    counts = np.zeros((5, 5))
    np.add.at(counts, (first, second), 1)

    def law(a):
        p = np.arange(1, 6) ** (a - 1)
        p = p / p.sum()
        return np.outer(p / (1 - p), p) * (1 - np.eye(5))

    assert law(power).sum() == pytest.approx(1)
    assert abs(excess(counts, law(power))) < 4
    assert excess(counts, law(power + 0.1)) > 10  # the test can tell


def test_first_slot_drawn_has_the_papers_marginal():
    task = Mqar()
    drawn = slots(task, task.sample(np.random.default_rng(7), 40_000))
    p = np.arange(1, 29) ** (0.01 - 1)
    assert abs(excess(np.bincount(drawn[:, 0], minlength=28), p / p.sum())) < 4
    assert drawn.max() == 27


def test_keys_and_values_use_their_halves_evenly_and_know_nothing_of_each_other():
    task = Mqar(vocab_size=12, seq_len=8, num_pairs=2)
    tokens = task.sample(np.random.default_rng(4), 40_000).tokens
    counts = np.zeros((5, 6))
    np.add.at(counts, (tokens[:, 2] - 1, tokens[:, 3] - 6), 1)
    assert abs(excess(counts, np.full((5, 6), 1 / 30))) < 4


def test_the_whole_vocabulary_can_be_used_up():
    task = Mqar(vocab_size=8, seq_len=40, num_pairs=3)
    batch = task.sample(np.random.default_rng(0), 50)
    assert all(set(row) == {1, 2, 3} for row in batch.tokens[:, :6:2].tolist())
    np.testing.assert_array_equal(task.solve(batch.tokens), batch.labels)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"num_pairs": 17}, "num_pairs = 17: with passes = 1 these need 68 tokens, and seq_len = 64 holds at most 16"),
        ({"num_pairs": 11, "passes": 2}, "with passes = 2 these need 66 tokens"),
        ({"num_pairs": 16, "vocab_size": 32}, "vocab_size = 32 has 15 different keys.*vocab_size of at least 34"),
        ({"seq_len": 63}, "seq_len = 63: must be even"),
        ({"vocab_size": 65}, "vocab_size = 65: must be even"),
        ({"num_pairs": 0}, "num_pairs = 0: .*greater than or equal to 1"),
        ({"passes": 0}, "passes = 0"),
        ({"power": 0}, "power = 0: .*greater than 0"),
        ({"power": math.nan}, "power = nan"),
        ({"fillers": "public"}, "fillers = 'public': .*'strict', 'papers' or 'zero'"),
        ({"pairs": 3}, "no parameter 'pairs'; it has .*num_pairs"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(params, message):
    check_refused("mqar", params, message)


def test_limits_themselves_are_allowed():
    Mqar(num_pairs=16)
    Mqar(num_pairs=15, vocab_size=32)
    Mqar(num_pairs=8, passes=3)


@pytest.mark.parametrize(
    ("params", "digest"),
    [
        ({}, "351c51de700ae8d5"),
        (
            {"vocab_size": 64, "seq_len": 96, "num_pairs": 12, "passes": 2, "fillers": "papers"},
            "f44cd7aa33f31228",
        ),
    ],
)
def test_same_seed_same_bytes(params, digest):
    """On any machine. Should a NumPy release change its streams, this is where it shows."""
    assert batch_hash(draw(Mqar(**params), 3000, seed=("train", 0))) == digest


def test_memory_stays_near_the_output():
    task = Mqar(seq_len=256, num_pairs=32)
    tracemalloc.start()
    try:
        batch = task.sample(np.random.default_rng(0), 20_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * (batch.tokens.nbytes + batch.labels.nbytes)


@pytest.mark.parametrize(("pairs", "bits"), [(64, 767), (128, 1533), (256, 3060)])
def test_state_bits_of_perfect_recall(pairs, bits):
    assert round(Mqar(num_pairs=pairs, seq_len=4 * pairs).state_bits()) == bits


def test_state_bits_of_a_single_pair_is_the_rate_of_a_uniform_source():
    task, m, p = Mqar(num_pairs=1, vocab_size=64), 32, 0.7
    entropy = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    assert task.state_bits(p) == pytest.approx(5 - entropy - (1 - p) * math.log2(m - 1))


def test_state_bits_rise_from_nothing_at_chance():
    task = Mqar(seq_len=256, num_pairs=64)
    bits = [task.state_bits(p) for p in np.linspace(0, 1, 101)]
    assert bits[0] == task.state_bits(1 / 4096) == 0
    assert all(low <= high for low, high in itertools.pairwise(bits))
    assert task.state_bits(1 - 1e-12) == pytest.approx(task.state_bits(1))
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match="accuracy"):
            task.state_bits(p)


def test_names_tell_slices_apart():
    assert Mqar().slice_name == "T64-N4"
    assert Mqar(seq_len=128, num_pairs=8, passes=2, power=0.5, fillers="papers").slice_name == "T128-N8-P2-a0.5-papers"


def test_roles():
    task = Mqar(vocab_size=16, seq_len=20, num_pairs=2, passes=2)
    batch = task.sample(np.random.default_rng(0), 30)
    roles = task.roles(batch.tokens)
    assert roles[:, :8].tolist() == [["key", "value"] * 4] * 30
    np.testing.assert_array_equal(roles[:, 8:] == "query", batch.labels[:, 8:] != IGNORE)
    assert set(roles[:, 8:].ravel()) == {"query", "filler"}


def test_paper_preset_is_figure_2_of_based():
    preset = tasks.get("mqar").presets()["paper"]
    sizes = [(task.seq_len, task.num_pairs, n) for task, n in preset.train]
    assert sizes == [(64, 4, 100_000), (128, 8, 20_000), (256, 16, 20_000), (256, 32, 20_000), (256, 64, 20_000)]
    tested = [(task.seq_len, task.num_pairs) for task in preset.test]
    assert tested == [(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)]
    every = [*preset.test, *(task for task, _ in preset.train)]
    assert {(task.vocab_size, task.fillers, task.power, task.passes) for task in every} == {(8192, "papers", 0.01, 1)}


def test_the_slices_of_zoologys_figure_2_are_trained_one_by_one():
    presets = tasks.get("mqar").presets()
    for seq_len, num_pairs in ((64, 4), (128, 8), (256, 16), (512, 64)):
        task = Mqar(vocab_size=8192, seq_len=seq_len, num_pairs=num_pairs, fillers="zero")
        assert presets[f"zoology-T{seq_len}-N{num_pairs}"] == (((task, 100_000),), (task,))
