"""Errors that grew from one run to the next beyond what is luck.

A tensor is judged by floor_ratio where it has one (fp16 and bf16), else by rel_l2_error. Its error grew if the ratio of
B's to A's is beyond

    1 + MARGIN[figure], times exp(FRESH_SEED / sqrt(statistics)) where the seeds differ

With one seed both runs see the same inputs, and the same code gives the same bits: what differs is the code, and the
margin is for two right orders of summation. With two seeds errors vary with the statistic that they come from, the less
the more rows or channels there are. Errors of float32 below its unit roundoff count as equal to it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, inf, isfinite, sqrt

from bench.results.numbers import error_figure
from bench.results.records import Record
from bench.results.thresholds import ACCURACY_MARGIN, LEAST_ERROR

# The report's own margin for float32; of 16-bit results only ties are left to luck, and normlib's floor_ratio stayed
# within 2e-5 of itself over six seeds.
MARGIN = {"rel_l2_error": ACCURACY_MARGIN, "floor_ratio": 0.01}
# The widest range over six seeds was exp(5.6 / sqrt(statistics)): 270 tensors of normlib and torch, 3 to 64 statistics.
FRESH_SEED = 6.0


@dataclass(frozen=True, slots=True)
class ErrorGrowth:
    """An error that grew, with the figure that shows it."""

    tensor: str
    figure: str
    before: float
    after: float

    @property
    def ratio(self) -> float:
        """B's error over A's."""
        return max(self.after, LEAST_ERROR) / max(self.before, LEAST_ERROR)

    def __str__(self) -> str:
        before, after = (error_figure(self.figure, value) for value in (self.before, self.after))
        return f"{self.tensor} {self.figure} {before} → {after}"


def grown(a: Record, b: Record) -> ErrorGrowth | None:
    """Returns the error of a cell that grew the most beyond luck, or None where none did."""
    statistics = min(b.shape[:2], default=1)  # rows or channels, the fewer
    luck = exp(FRESH_SEED / sqrt(statistics)) if a.seed != b.seed else 1.0
    found = [growth for growth in _growths(a, b) if growth.ratio > (1 + MARGIN[growth.figure]) * luck]
    return max(found, key=lambda growth: growth.ratio, default=None)


def _growths(a: Record, b: Record) -> Iterator[ErrorGrowth]:
    before = {error.tensor: error for error in a.errors}
    for after in b.errors:
        for name in ("floor_ratio", "rel_l2_error"):
            was, now = getattr(before.get(after.tensor), name, None), getattr(after, name)
            if was is not None and now is not None and isfinite(was):
                yield ErrorGrowth(after.tensor, name, was, now if isfinite(now) else inf)
                break
