"""Pairs of times -> how many cells are won, tied and lost, and the worst beside the geometric mean."""

from collections import Counter
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

import numpy as np
import pandas as pd

from bench.page.formatting import percent, plural, times
from bench.results.thresholds import LEAST_SHOWN


@dataclass(frozen=True)
class Tally:
    """The subject against another provider, or the best peer, over some cells: ratios are its speed over theirs."""

    mean: float  # geometric
    error: float  # the share by which the mean may be off at 95%; NaN where a cell has no interval
    won: int
    tied: int
    lost: int
    worst: dict[str, Any]  # the pair of the lowest ratio

    @property
    def cells(self) -> int:
        """The cells that have a ratio."""
        return self.won + self.tied + self.lost

    @property
    def word(self) -> str:
        """`faster` only where no cell is lost, `slower` where none is won."""
        if self.lost:
            return "mixed" if self.won else "slower"
        return "faster" if self.won else "level"

    @property
    def tone(self) -> str:
        """The colour of the worst cell."""
        return "bad" if self.lost else "good" if self.won else "plain"

    @property
    def counts(self) -> str:
        """`7 won, 2 tied, 3 lost`."""
        return f"{self.won:,} won, {self.tied:,} tied, {self.lost:,} lost"

    @property
    def words(self) -> str:
        """The mean with what it hides: `1.02x; 7 won, 2 tied, 3 lost; worst 0.71x`."""
        return f"{times(self.mean)}; {self.counts}; worst {times(self.worst['ratio'])}"

    @property
    def detail(self) -> str:
        """All that stands behind the mean, for a card."""
        shown = f", ±{percent(max(self.error, LEAST_SHOWN))} (95%)" if self.error >= 0 else ""  # and not NaN
        against = f", against {self.worst['provider_peer']}" if self.worst["provider_peer"] else ""
        worst = f"worst {times(self.worst['ratio'])}, {self.worst['label']}{against}"
        return f"{self.counts}; {worst}. Geometric mean of {plural(self.cells, 'cell')}{shown}"


def tally(pairs: pd.DataFrame) -> Tally | None:
    """Returns the tally of `duels` or `against`, or of some rows of them; None where there is no row."""
    if not len(pairs):
        return None
    count = Counter(pairs["outcome"])
    worst = pairs.loc[pairs["ratio"].idxmin()].to_dict()
    mean = geometric_mean(pairs["ratio"])
    return Tally(mean, mean_error(pairs), count["won"], count["tied"], count["lost"], worst)


def mean_error(pairs: pd.DataFrame) -> float:
    """Returns the share by which the geometric mean of `ratio` may be off at 95%; NaN where a cell has no interval.

    It says how well these cells were measured, and nothing about cells that were not.
    """
    return float(np.exp(1.96 * np.sqrt(pairs["log_variance"].sum(skipna=False)) / max(len(pairs), 1))) - 1
