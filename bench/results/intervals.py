"""The change of a cell's time between two runs, with intervals that hold for all cells of a comparison together.

A change is a ratio of times, kept as its logarithm, so that twice as slow and twice as fast lie equally far from 0.

One cell. The Hodges-Lehmann estimate is the median of all differences between a sample of B and one of A; the ranks
of those differences that a rank test gives bound it at 95%, and hence its standard error. Ranks need no normal noise:
a few wild samples move a rank a little, and a mean at will. The test is Brunner and Munzel's (Biometrical Journal 42,
2000), for one run may scatter more than the other, where it is the more careful one, and Mann and Whitney's
elsewhere. Beyond 95% the interval is that of Student's t with Brunner and Munzel's degrees of freedom.

Simulated with 10 to 50 samples a side and noise that is normal, exponential, Student's t with 2 degrees, or has 5 to
15% of outliers up to fivefold, it misses at most as often as it says down to 1 in 10,000. Where one run scatters ten
to fifty times as much as the other it misses up to 2.5 times as often at 1 in 100 and up to 9 times at 1 in 1000;
Mann and Whitney's test by itself 20 and 130 times. Where noise is bimodal it misses twice as often.

All cells. With m cells the interval of each is taken at FALSE_ALARMS / m (Bonferroni): whatever depends on what, the
chance that any of them misses its true change is FALSE_ALARMS at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, hypot, log, sqrt
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Array: TypeAlias = npt.NDArray[np.float64]
Interval: TypeAlias = tuple[float, float]

# The chance of any false claim in a whole comparison.
FALSE_ALARMS = 0.01
# Samples a side: with fewer the standard error is no better than a guess (see above); above the most they are taken in
# batches, for 128 x 128 differences a cell keep 100,000 cells inside half a minute.
LEAST, MOST = 10, 128

# What the standard errors are taken from: a two-sided 95% interval.
_Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Change:
    """The logarithm of B's time over A's: estimate, standard error, and the degrees of freedom of that error."""

    estimate: float
    error: float
    freedom: float

    def interval(self, cells: int, variance: float = 0.0, misses: float = FALSE_ALARMS) -> Interval:
        """The interval that misses the truth in any of `cells` cells with a chance of `misses` at most.

        `variance` is added to that of the estimate.
        """
        # Student's t by scipy.special: scipy.stats says the same and takes a hundred times as long.
        reach = -float(stdtrit(self.freedom, misses / 2 / max(cells, 1))) * sqrt(self.error**2 + variance)
        return self.estimate - reach, self.estimate + reach


def of_samples(a: Array, b: Array) -> Change | None:
    """Returns the change between two runs' samples in the order taken; None where one has fewer than LEAST."""
    if min(len(a), len(b)) < LEAST:
        return None
    a, b = (np.sort(_apart(_batched(np.log(samples)))) for samples in (a, b))
    n, m = len(a), len(b)
    differences = np.sort(np.subtract.outer(b, a), axis=None)
    estimate = float(differences[(n * m - 1) // 2] + differences[n * m // 2]) / 2
    deviation, freedom = _rank_test(a, b - estimate)
    near = max(0, ceil(n * m / 2 - _Z95 * deviation) - 1)
    return Change(estimate, float(differences[n * m - 1 - near] - differences[near]) / 2 / _Z95, freedom)


def _rank_test(a: Array, b: Array) -> tuple[float, float]:
    """Returns the standard deviation of the number of pairs with b < a, and its degrees of freedom.

    Both are sorted, and neither lies beyond the other. Brunner and Munzel take the variance of each sample's places
    among the other's; the Mann-Whitney test knows it beforehand, for two samples that scatter alike.
    """
    n, m = len(a), len(b)
    places = (
        (np.searchsorted(there, here, "left") + np.searchsorted(there, here, "right")) / 2
        for here, there in ((a, b), (b, a))
    )
    of_a, of_b = (len(one) * float(np.var(one, ddof=1)) for one in places)
    alike = n * m * (n + m + 1) / 12
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (n - 1) + of_b**2 / (m - 1)) if of_a + of_b else n + m - 2
    return sqrt(max(of_a + of_b, alike)), freedom


def of_medians(a: Sequence[float], b: Sequence[float], samples: Interval) -> Change:
    """Returns the change between two medians, (low, median, high) with their 95% intervals by ranks.

    `samples` counts the samples of each. The width of such an interval is a sum of some 2 sqrt(n) spacings, which
    scatters like one; so both together have about as many degrees of freedom as there are roots of n.
    """
    error = hypot(*(log(high / low) / 2 / _Z95 for low, _, high in (a, b)))
    return Change(log(b[1] / a[1]), error, sum(map(sqrt, samples)))


def _batched(values: Array) -> Array:
    """Returns medians of consecutive batches, MOST at most, so that what neighbours have in common counts once."""
    size = ceil(len(values) / MOST)
    if size == 1:
        return values
    batches: Array = np.median(values[: len(values) // size * size].reshape(-1, size), axis=1)
    return batches


def _apart(values: Array) -> Array:
    """Spreads equal values evenly over the tick of the clock that made them equal."""
    found, counts = np.unique(values, return_counts=True)
    if len(found) in (1, len(values)):
        return values
    tick = float(np.min(np.diff(found)))
    places = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    spread: Array = np.repeat(found, counts) + tick * ((places + 0.5) / np.repeat(counts, counts) - 0.5)
    return spread
