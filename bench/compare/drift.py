"""The drift between two runs, which no provider is to blame for, estimated from the runs themselves.

Samples of one run do not know how much the next run will differ. The model of a cell's change, in logarithms, is

    change = typical[provider] + drift[case] + scatter + sampling error

where `typical` is the median over a provider's cells; drift is what all providers of a case share (clocks, heat,
neighbours), measured on the case's *other* providers; and scatter is by what single cells differ beyond the rest.
What a provider's typical change has in common with that of the others is the machine's as well.

All of this can only withhold a claim, never make one: a cell's interval is the hull of the change as it was measured
and the change less the drift, both widened by what is uncertain about them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, pi, sqrt
from statistics import NormalDist, median

import numpy as np

from bench.results.intervals import Change, Interval

# Half the width of the middle quarter of a normal distribution, in standard deviations.
_QUARTER = NormalDist().inv_cdf(0.625)
# Cells before their scatter is judged: simulated, the shortest quarter of fewer says less than 0.7 of the truth.
_ENOUGH = 24

# (case, provider) -> what is known of that cell.
Cells = Mapping[tuple[str, str], Change]


@dataclass(frozen=True, slots=True)
class Drift:
    """The change that a case's other providers share, as a logarithm, and its variance."""

    estimate: float
    variance: float


@dataclass(frozen=True)
class Between:
    """The parts of the model, each a logarithm of a ratio of times."""

    typical: Mapping[str, float]  # by provider
    common: Mapping[str, float]  # by provider: the part of it that the others share
    shared: float  # standard deviation of the cases' drift
    scatter: float  # standard deviation of single cells


def between(cells: Cells) -> Between:
    """Estimates the parts of the model from the changes of all cells that two runs share."""
    of_provider: dict[str, list[float]] = defaultdict(list)
    for (_, provider), change in cells.items():
        of_provider[provider].append(change.estimate)
    typical = {provider: median(changes) for provider, changes in of_provider.items()}
    rough = Between(typical, _common(typical), _shared(cells, typical), 0.0)
    return replace(rough, scatter=_scatter(cells, rough))


def intervals(cells: Cells, found: Between, together: int) -> dict[tuple[str, str], Interval]:
    """Returns the interval of every cell's change, at the level that holds for `together` cells at once."""
    return {
        at: _hull(change, moved, found.scatter**2, together)
        for (at, change), moved in zip(cells.items(), _drifts(cells, found), strict=True)
    }


def _hull(change: Change, moved: Drift, variance: float, cells: int) -> Interval:
    low, high = change.interval(cells, variance)
    less_low, less_high = change.interval(cells, variance + moved.variance)
    return min(low, less_low - moved.estimate), max(high, less_high - moved.estimate)


def _common(typical: Mapping[str, float]) -> dict[str, float]:
    """Returns the median change of the other providers, clipped to between 0 and the provider's own."""
    common = {}
    for provider, own in typical.items():
        others = [change for name, change in typical.items() if name != provider]
        common[provider] = float(np.clip(median(others), min(own, 0.0), max(own, 0.0))) if others else 0.0
    return common


def _cases(cells: Cells) -> dict[str, dict[str, Change]]:
    cases: dict[str, dict[str, Change]] = defaultdict(dict)
    for (case, provider), change in cells.items():
        cases[case][provider] = change
    return cases


def _shared(cells: Cells, typical: Mapping[str, float]) -> float:
    """Returns the covariance of two providers of a case, over all such pairs, as a standard deviation."""
    products = pairs = 0.0
    for case in _cases(cells).values():
        rest = np.array([change.estimate - typical[provider] for provider, change in case.items()])
        products += float(rest.sum() ** 2 - (rest**2).sum()) / 2
        pairs += len(rest) * (len(rest) - 1) / 2
    return sqrt(max(products / pairs, 0.0)) if pairs else 0.0


def _drifts(cells: Cells, found: Between) -> list[Drift]:
    """Returns for each cell the median drift of the case's other providers, shrunk towards zero by `shared`."""
    cases, prior = _cases(cells), found.shared**2
    drifts = []
    for case, provider in cells:
        others = [(name, change) for name, change in cases[case].items() if name != provider] if prior else []
        if not others:
            drifts.append(Drift(found.common[provider], 0.0))
            continue
        variance = sum(change.error**2 for _, change in others) / len(others) + found.scatter**2
        # That of a mean of two, and of a median of normal values from three on.
        variance *= (1.0 if len(others) < 3 else pi / 2) / len(others)
        weight = prior / (prior + variance)
        moved = median(change.estimate - found.typical[name] for name, change in others)
        drifts.append(Drift(found.common[provider] + weight * moved, weight * variance))
    return drifts


def _scatter(cells: Cells, found: Between) -> float:
    """Returns the standard deviation that neither sampling nor drift explains.

    The shortest interval that holds a quarter of all cells measures their spread about what is typical of their
    provider, so that a change of half of the cells does not count as noise. The smaller of two: with the drift taken
    away and without, for of two providers of which one has changed in part, the other would seem to drift.
    """
    if len(cells) < _ENOUGH:
        return 0.0
    still = [Drift(0.0, 0.0)] * len(cells)
    return sqrt(min(_unexplained(cells, found, drifts) for drifts in (still, _drifts(cells, found))))


def _unexplained(cells: Cells, found: Between, drifts: Sequence[Drift]) -> float:
    moves = list(zip(cells.items(), drifts, strict=True))
    rest = np.sort([change.estimate - found.typical[name] - moved.estimate for ((_, name), change), moved in moves])
    held = ceil(len(rest) / 4)
    width = float(np.min(rest[held:] - rest[:-held])) / 2 / _QUARTER
    return max(width**2 - median(change.error**2 + moved.variance for (_, change), moved in moves), 0.0)
