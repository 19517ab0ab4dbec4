import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoology.tasks import rows
from zoology.tasks.rows import below, blocks, distinct, excluding, first_equal, look_up, power_slots

from .chisquare import excess

few = settings(deadline=None, max_examples=25)


@few
@given(n=st.integers(0, 5000), size=st.integers(1, 2000))
def test_blocks_cut_without_gap_or_overlap(n, size):
    cut = list(blocks(n, size))
    assert [i for block in cut for i in range(block.start, block.stop)] == list(range(n))
    assert all(0 < block.stop - block.start <= size for block in cut)


@pytest.mark.parametrize("bound", [1, 7, 6000, 8192, 9000])
def test_numbers_below_a_bound_are_uniform(bound):
    drawn = below(np.random.default_rng(1), bound, (400, 300))
    assert drawn.shape == (400, 300)
    assert drawn.dtype == np.int32
    counts = np.bincount(drawn.ravel(), minlength=bound)
    assert bound == 1 or abs(excess(counts, np.full(bound, 1 / bound))) < 4


def test_no_number_is_favoured_where_most_words_are_surplus():
    """Of the words of 32 bits, half as many fall on each number of the last third if none is drawn again."""
    bound = 3 * 2**29  # 2**32 = 2 2/3 of it
    thirds = below(np.random.default_rng(1), bound, (300_000,)) % 3
    assert abs(excess(np.bincount(thirds), np.full(3, 1 / 3))) < 4


@few
@given(data=st.data(), bound=st.integers(1, 80), n=st.integers(0, 40), seed=st.integers(0, 2**32))
def test_distinct_numbers_are_distinct_and_below_the_bound(data, bound, n, seed):
    k = data.draw(st.integers(1, bound))
    drawn = distinct(np.random.default_rng(seed), n, k, bound)
    assert drawn.shape == (n, k)
    assert drawn.dtype == np.int32
    assert all(len(set(row)) == k and min(row) >= 0 and max(row) < bound for row in drawn.tolist())


@pytest.mark.parametrize(("bound", "k"), [(5, 2), (7, 3), (8, 4), (4, 3), (3, 3)])
def test_every_ordered_choice_is_equally_likely(bound, k):
    """2 k <= bound is drawn with rejection, the rest by permuting."""
    drawn = distinct(np.random.default_rng(5), 60_000, k, bound)
    counts = np.zeros((bound,) * k)
    np.add.at(counts, tuple(drawn.T), 1)
    possible = np.zeros_like(counts)
    for choice in itertools.permutations(range(bound), k):
        possible[choice] = 1
    assert abs(excess(counts, possible / possible.sum())) < 4


@pytest.fixture(params=[0, 64])
def any_method(request, monkeypatch):
    """Few taken numbers and many are excluded in different ways: each must do for all sizes."""
    monkeypatch.setattr(rows, "FEW", request.param)


@pytest.mark.usefixtures("any_method")
@settings(few, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), bound=st.integers(2, 60), n=st.integers(1, 30), seed=st.integers(0, 2**32))
def test_excluding_never_returns_what_is_taken(data, bound, n, seed):
    k = data.draw(st.integers(1, bound - 1))
    rng = np.random.default_rng(seed)
    taken = distinct(rng, n, k, bound)
    drawn = excluding(rng, taken, 7, bound)
    assert drawn.shape == (n, 7)
    assert drawn.min() >= 0
    assert drawn.max() < bound
    assert not (drawn[:, :, None] == taken[:, None, :]).any()


@pytest.mark.usefixtures("any_method")
@pytest.mark.parametrize("taken", [[5, 0, 2], [5, 0, 2, 6]])  # less than half, and more
def test_excluding_is_uniform_and_independent_over_what_is_left(taken):
    drawn = excluding(np.random.default_rng(3), np.tile(np.array(taken, dtype=np.int32), (40_000, 1)), 2, 7)
    counts = np.zeros((7, 7))
    np.add.at(counts, tuple(drawn.T), 1)
    left = ~np.isin(np.arange(7), taken) / (7 - len(taken))
    assert abs(excess(counts, np.outer(left, left))) < 4


@few
@given(
    data=st.data(), n=st.integers(0, 20), k=st.integers(1, 6), m=st.integers(1, 6), bound=st.sampled_from([3, 9, 2**20])
)
def test_look_up_is_a_dictionary(data, n, k, m, bound):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    keys, asked = (rng.integers(bound, size=(n, width), dtype=np.int32) for width in (k, m))
    values = rng.integers(1000, size=(n, k), dtype=np.int32)
    asked[:, 0] = keys[:, 0]
    expected = [
        [dict(zip(ks, vs, strict=True)).get(q, -7) for q in qs]
        for ks, vs, qs in zip(keys.tolist(), values.tolist(), asked.tolist(), strict=True)
    ]
    assert look_up(keys, values, asked, bound, missing=-7).tolist() == expected


@few
@given(n=st.integers(0, 20), k=st.integers(1, 12), bound=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_first_equal_is_the_index_in_the_row(n, k, bound, seed):
    codes = np.random.default_rng(seed).integers(-bound, bound, size=(n, k))
    assert first_equal(codes).tolist() == [[row.index(code) for code in row] for row in codes.tolist()]


@pytest.mark.parametrize("power", [0.01, 1.0, 2.5])
def test_power_slots_are_drawn_one_after_another_by_the_law(power):
    drawn = power_slots(np.random.default_rng(2), 60_000, 2, 5, power)
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(drawn.T), 1)
    p = np.arange(1, 6) ** (power - 1)
    p /= p.sum()
    assert abs(excess(counts, np.outer(p / (1 - p), p) * (1 - np.eye(5)))) < 4
