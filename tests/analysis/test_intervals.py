"""Intervals against the bootstrap's whole distribution, written out."""

import itertools
import math

import numpy as np
import pytest

from zoology.analysis.intervals import UNKNOWN, Bootstrap, paired_difference


def every_mean(values):
    """All n^n means of draws with replacement, each equally likely."""
    return np.sort([np.mean(draw) for draw in itertools.product(values, repeat=len(values))])


@pytest.mark.parametrize("values", [(0.2, 0.9), (0.5, 0.7, 0.9), (0.1, 0.2, 0.9, 0.95), (0.3, 0.31, 0.35, 0.8, 0.9)])
def test_means_have_the_distribution_of_all_draws(values):
    exact = every_mean(values)
    drawn = Bootstrap(np.random.default_rng(3)).means(np.array(values))
    for point in exact:
        share = np.mean(exact <= point + 1e-9)
        # 5 standard deviations of a share of 10 000 draws
        assert np.mean(drawn <= point + 1e-9) == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 10_000))


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_interval_is_that_of_all_draws(level):
    values = (0.1, 0.3, 0.42, 0.77, 0.9)  # 3125 draws, whose means lie close together
    exact = every_mean(values)
    low, high = np.quantile(exact, [(1 - level) / 2, (1 + level) / 2])
    found = Bootstrap(level=level).of_mean(values)
    assert found == pytest.approx((low, high), abs=0.02)


def test_two_or_three_seeds_reach_from_the_worst_to_the_best():
    assert Bootstrap().of_mean([0.4, 0.9, 0.5]) == (0.4, 0.9)  # (1/3)^3 = 3.7 % of the draws are the worst three times
    assert Bootstrap().of_mean([0.4, 0.9]) == (0.4, 0.9)
    low, high = Bootstrap().of_mean([0.4, 0.5, 0.6, 0.9])  # (1/4)^4 = 0.4 %
    assert 0.4 < low < high < 0.9


def test_one_seed_tells_nothing():
    for values in ([0.5], []):
        assert all(math.isnan(end) for end in Bootstrap().of_mean(values))
    assert not UNKNOWN.known
    assert not UNKNOWN.excludes_zero


def test_equal_values_have_an_interval_of_no_width():
    assert Bootstrap().of_mean([0.1] * 7) == (0.1, 0.1)


def test_neither_what_else_is_asked_nor_the_order_moves_an_interval():
    values = [0.3, 0.9, 0.5, 0.7, 0.6]
    alone = Bootstrap().of_mean(values)
    after = Bootstrap()
    after.of_mean([0.1] * 9)
    after.of_mean([0.1, 0.2])
    assert after.of_mean(values) == alone == Bootstrap().of_mean(values[::-1])
    assert Bootstrap(np.random.default_rng(1), resamples=50).of_mean(values) != alone


def test_infinite_samples_are_ordered():
    samples = np.array([1.0] * 90 + [math.inf] * 10)
    assert Bootstrap(level=0.9).interval(samples) == (1.0, math.inf)
    assert Bootstrap(level=0.5).interval(samples) == (1.0, 1.0)


def test_trials_are_drawn_together():
    both = Bootstrap().means(np.array([[0.1, 0.2], [0.5, 0.6], [0.7, 0.8]]))
    assert both.shape == (10_000, 2)
    assert both[:, 1] - both[:, 0] == pytest.approx(0.1)


def test_pairing_takes_away_what_a_seed_does_to_both():
    a, b = {0: 0.5, 1: 0.8, 2: 0.2, 7: 0.0}, {0: 0.4, 1: 0.7, 2: 0.1, 9: 1.0}
    found = paired_difference(a, b, Bootstrap())
    assert found.mean == pytest.approx(0.1)
    assert found.interval == pytest.approx((0.1, 0.1))
    assert found.interval.excludes_zero
    assert found.n_seeds == 3
    assert not paired_difference(a, {0: 0.4, 1: 0.7, 2: 0.3}, Bootstrap()).interval.excludes_zero


def test_nothing_in_common_cannot_be_compared():
    found = paired_difference({0: 0.5}, {1: 0.5}, Bootstrap())
    assert math.isnan(found.mean)
    assert found.n_seeds == 0
    one = paired_difference({0: 0.5}, {0: 0.2}, Bootstrap())
    assert (one.mean, one.interval.known, one.n_seeds) == (pytest.approx(0.3), False, 1)
