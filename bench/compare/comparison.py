"""The result of a comparison of two runs: a verdict a cell, and what differs around the runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import expm1
from pathlib import Path
from typing import TYPE_CHECKING

from bench.page.formatting import change, duration
from bench.results.numbers import present
from bench.results.thresholds import SUBJECT

if TYPE_CHECKING:  # they import numpy, and the command line takes its choices from here
    from bench.compare.drift import Between
    from bench.compare.errors import ErrorGrowth
    from bench.results.records import Record

SLOWER, FASTER, SAME, UNCLEAR = VERDICTS = ("SLOWER", "FASTER", "SAME", "UNCLEAR")
NEWLY_WRONG, FIXED, LESS_ACCURATE = "newly wrong", "fixed", "less accurate"
WORDS = (*VERDICTS, NEWLY_WRONG, FIXED, LESS_ACCURATE)
# The statuses of a cell that has failed; `skipped` says nothing about a cell.
FAILED = ("wrong", "impossible", "crash", "oom", "timeout", "unsupported")
# What --fail-on can name, and what it means.
REGRESSIONS = {"slower": SLOWER, "wrong": NEWLY_WRONG, "less_accurate": LESS_ACCURATE}
# Errors that grew within their bounds are told, and fail nothing unless --fail-on names them.
FAIL_ON = ("slower", "wrong")

# What tells two implementations apart at all; asv and nvbench ask for 5% and 1%.
THRESHOLD = 0.005
# SAME says that a change of this size is out of the question, or of twice the threshold where that is more.
EXCLUDED = 0.05


@dataclass(frozen=True, slots=True)
class CellPair:
    """One cell in both runs. `change`, `low` and `high` are shares: 0.05 is 5% slower in B."""

    key: str
    label: str
    a: Record
    b: Record
    verdict: str = ""  # empty where speed is not compared
    why: str = ""  # what makes it UNCLEAR
    change: float | None = None
    low: float | None = None  # the interval, at the level that holds for all cells together
    high: float | None = None
    growth: ErrorGrowth | None = None

    @property
    def provider(self) -> str:
        """The provider that was measured."""
        return self.b.provider

    @property
    def words(self) -> list[str]:
        """Those of WORDS that hold for the cell."""
        holds = {
            self.verdict: True,
            NEWLY_WRONG: self.a.status == "ok" and self.b.status in FAILED,
            FIXED: self.a.status in FAILED and self.b.status == "ok",
            LESS_ACCURATE: bool(self.growth),
        }
        return [word for word, true in holds.items() if word and true]

    @property
    def span(self) -> str:
        """The interval of the change: +3.9% to +6.3%."""
        return f"{change(self.low)} to {change(self.high)}" if present(self.low) else ""

    def told(self, word: str) -> str:
        """Returns one line that explains why this word holds."""
        if word in (SLOWER, FASTER):
            times = f"{duration(self.a.latency_us)} → {duration(self.b.latency_us)}"
            return f"{change(self.change)} ({self.span}), {times}"
        if word == NEWLY_WRONG:
            return f"{self.b.status}: {self.b.reason}" if self.b.reason else self.b.status
        if word == FIXED:
            return f"{self.a.status} → {self.b.status}"
        return str(self.growth or self.why)


@dataclass(frozen=True)
class Comparison:
    """B against A; `only_a` and `only_b` name the cells that one run has, by provider and label."""

    a: Path
    b: Path
    threshold: float
    pairs: tuple[CellPair, ...]
    only_a: tuple[tuple[str, str], ...]
    only_b: tuple[tuple[str, str], ...]
    differences: tuple[str, ...]
    notes: tuple[str, ...]
    between: Between | None  # None where speed is not compared
    subject: str = SUBJECT  # whose changes decide the exit status

    @cached_property
    def counts(self) -> dict[str, Counter[str]]:
        """Cells of each provider, by name, for which each word holds."""
        counts: dict[str, Counter[str]] = {name: Counter() for name in sorted({pair.provider for pair in self.pairs})}
        for pair in self.pairs:
            counts[pair.provider].update(pair.words)
        return counts

    @cached_property
    def cells(self) -> Counter[str]:
        """Cells of each provider that are in both runs."""
        return Counter(pair.provider for pair in self.pairs)

    @cached_property
    def said(self) -> list[str]:
        """The words that hold for some cell, in the order of WORDS."""
        return [word for word in WORDS if self.total(word)]

    def typical(self, provider: str) -> str:
        """Returns the median change of a provider's cells, in words; empty where speed is not compared."""
        known = self.between.typical if self.between else {}
        return change(expm1(known[provider])) if provider in known else ""

    def total(self, word: str) -> int:
        """Returns for how many cells a word holds."""
        return sum(count[word] for count in self.counts.values())

    def having(self, word: str) -> list[CellPair]:
        """Returns the cells for which a word holds, the largest change of that kind first."""

        def size(pair: CellPair) -> float:
            return pair.growth.ratio if word == LESS_ACCURATE and pair.growth else abs(pair.change or 0.0)

        return sorted((pair for pair in self.pairs if word in pair.words), key=lambda pair: (-size(pair), pair.key))

    def regressed(self, fail_on: Sequence[str] = FAIL_ON) -> bool:
        """Returns whether a cell of the subject got worse in one of these ways; anyone's, where it has no cell."""
        judged = [self.counts[self.subject]] if self.subject in self.counts else self.counts.values()
        return any(count[REGRESSIONS[name]] for count in judged for name in fail_on)
