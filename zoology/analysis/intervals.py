"""How far a mean over seeds could have come out otherwise: the bootstrap, paired over seeds.

Source: Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7 (1979)

What varies is the seed: initialisation and dropout. Data and test sequences are the same for every seed of a trial.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""How much of the bootstrap's distribution an interval holds."""

RESAMPLES = 10_000


class Interval(NamedTuple):
    """From `low` to `high`, both NaN where there is nothing to tell them from: a single seed."""

    low: float
    high: float

    @property
    def known(self) -> bool:
        return not math.isnan(self.low)

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


UNKNOWN = Interval(math.nan, math.nan)


class Bootstrap:
    """Draws seeds with replacement. Everything that is asked of one Bootstrap is drawn alike, and so paired.

    The draws for n seeds do not depend on what else was asked, so that a point has the same interval whatever other
    points it is drawn with.

    Args:
        rng: where the draws come from; by default a generator of seed 0, so that a figure comes out the same each time.
        resamples: how many draws.
        level: the share of them that an interval holds.
    """

    def __init__(self, rng: np.random.Generator | None = None, resamples: int = RESAMPLES, level: float = LEVEL):
        self._rng = np.random.default_rng(0) if rng is None else rng
        self._columns: list[NDArray[np.float64]] = []
        self.resamples, self.level = resamples, level

    def means(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean over the first axis, in each resample of it.

        Args:
            values: (n,) or (n, ...), one entry for each seed.

        Returns:
            (resamples,) or (resamples, ...).
        """
        n = len(values)
        while len(self._columns) < n:
            self._columns.append(self._rng.random(self.resamples))
        drawn = (np.stack(self._columns[:n], axis=1) * n).astype(int)
        shares = np.stack([(drawn == k).sum(axis=1) for k in range(n)], axis=1) / n
        return np.tensordot(shares, np.asarray(values, float), axes=1)

    def interval(self, samples: NDArray[np.float64]) -> Interval:
        """The middle `level` of samples of a statistic, by their order alone, so that they may be infinite."""
        tail = (1 - self.level) / 2
        low, high = np.quantile(samples, [tail, 1 - tail], method="inverted_cdf")
        return Interval(float(low), float(high))

    def of_mean(self, values: Sequence[float]) -> Interval:
        """The percentile interval of a mean over seeds; `UNKNOWN` for fewer than two.

        With two or three seeds it reaches from the worst to the best of them: all draws fall on one seed more often
        than the tail's 2.5 %. It is then rather too narrow than too wide (three values hardly show how far a fourth
        would lie), and that is no fault of the drawing: more seeds are the remedy.
        """
        if len(values) < 2:
            return UNKNOWN
        ordered = np.sort(np.asarray(values, float))
        found = self.interval(self.means(ordered))
        # A mean of equal numbers can miss them by a rounding.
        return Interval(max(found.low, float(ordered[0])), min(found.high, float(ordered[-1])))


class Difference(NamedTuple):
    """The mean of a - b over the seeds that both have, its interval, and how many seeds that is."""

    mean: float
    interval: Interval
    n_seeds: int


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], bootstrap: Bootstrap) -> Difference:
    """How much more `a` is than `b`, seed by seed: what a seed does to both alike falls out.

    Args:
        a: a number for each seed.
        b: the same of something else.

    Returns:
        NaN throughout where they have no seed in common; an unknown interval where they have one.
    """
    seeds = sorted(set(a) & set(b))
    differences = [a[seed] - b[seed] for seed in seeds]
    if not differences:
        return Difference(math.nan, UNKNOWN, 0)
    return Difference(float(np.mean(differences)), bootstrap.of_mean(differences), len(seeds))
