"""The points of a line: the median of all cells at each x, the lowest and highest, and the cell in the middle."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bench.results.intervals import Array
from bench.results.thresholds import LINE_POINTS


@dataclass(frozen=True)
class Points:
    """Columns of equal length: `place` is the index of the cell whose y is in the middle, `count` that of all cells."""

    x: Array
    y: Array
    low: Array
    high: Array
    place: Array
    count: Array

    def rows(self) -> Iterator[tuple[float, float, float, float, int, int]]:
        """Yields the points one by one."""
        yield from zip(
            *(column.tolist() for column in (self.x, self.y, self.low, self.high, self.place, self.count)), strict=True
        )


def points(x: Array, y: Array, low: Array, high: Array, place: Array) -> Points:
    """Returns a point for each x; values of x too close to be told apart are merged.

    Not by pandas, whose groupby takes milliseconds, a thousand times a report.
    """
    bins = x
    if len(np.unique(x)) > LINE_POINTS:
        share = np.log(x / x.min()) / np.log(x.max() / x.min())
        bins = (share * (LINE_POINTS - 1)).round()
    order = np.lexsort((y, bins))
    x, y, low, high, place = (column[order] for column in (x, y, low, high, place))
    first = np.flatnonzero(np.diff(bins[order], prepend=-np.inf))
    count = np.diff(first, append=len(x))
    middle, other = first + (count - 1) // 2, first + count // 2
    halves = np.exp(np.add.reduceat(np.log(x), first) / count)
    return Points(
        halves,
        (y[middle] + y[other]) / 2,
        np.minimum.reduceat(low, first),
        np.maximum.reduceat(high, first),
        place[middle],
        count,
    )
