"""What a comparison of two runs found: a verdict a cell, and all that stands around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # they import numpy, and the command line takes its choices from here
    from bench.compare.cells import Cell
    from bench.compare.drift import Between
    from bench.compare.errors import Growth

SLOWER, FASTER, SAME, UNCLEAR = VERDICTS = ("SLOWER", "FASTER", "SAME", "UNCLEAR")
NEWLY_WRONG, FIXED, LESS_ACCURATE = "newly wrong", "fixed", "less accurate"
WORDS = (*VERDICTS, NEWLY_WRONG, FIXED, LESS_ACCURATE)
# How a cell can end that was ok before and is not any more; `skipped` says nothing about a cell.
FAILED = ("wrong", "impossible", "crash", "oom", "timeout", "unsupported")
# What --fail-on can name, and what it means.
REGRESSIONS = {"slower": SLOWER, "wrong": NEWLY_WRONG, "less_accurate": LESS_ACCURATE}
# Errors that grew within their bounds are told, but nobody's run fails for them unless he asks for it.
FAIL_ON = ("slower", "wrong")

# What tells two implementations apart at all; asv and nvbench ask for 5% and 1%.
THRESHOLD = 0.005
# SAME says that a change of this size is out of the question, or of twice the threshold where that is more.
EXCLUDED = 0.05


@dataclass(frozen=True, slots=True)
class Pair:
    """One cell in both runs. `change`, `low` and `high` are shares: 0.05 is 5% slower in B."""

    key: str
    label: str
    a: Cell
    b: Cell
    verdict: str = ""  # empty where speed is not compared
    why: str = ""  # what makes it UNCLEAR
    change: float | None = None
    low: float | None = None  # the interval, at the level that holds for all cells together
    high: float | None = None
    growth: Growth | None = None

    @property
    def provider(self) -> str:
        """Who was measured."""
        return self.b.provider

    @property
    def newly_wrong(self) -> bool:
        """It was ok in A, and is not in B."""
        return self.a.status == "ok" and self.b.status in FAILED

    @property
    def fixed(self) -> bool:
        """It was not ok in A, and is in B."""
        return self.a.status in FAILED and self.b.status == "ok"

    def size(self, word: str) -> float:
        """By how much the cell changed in the way of this word."""
        if word == LESS_ACCURATE:
            return self.growth.ratio if self.growth else 0.0
        return abs(self.change or 0.0)

    @property
    def words(self) -> list[str]:
        """Everything that is said of it."""
        said = {self.verdict: True, NEWLY_WRONG: self.newly_wrong, FIXED: self.fixed, LESS_ACCURATE: bool(self.growth)}
        return [word for word, true in said.items() if word and true]


@dataclass(frozen=True)
class Comparison:
    """B against A. Cells of one run alone are given by provider and label."""

    a: Path
    b: Path
    threshold: float
    pairs: tuple[Pair, ...]
    only_a: tuple[tuple[str, str], ...]
    only_b: tuple[tuple[str, str], ...]
    differences: tuple[str, ...]
    notes: tuple[str, ...]
    between: Between | None  # None where speed is not compared

    @cached_property
    def counts(self) -> dict[str, Counter[str]]:
        """How many cells of each provider, by name, each word is said of."""
        counts: dict[str, Counter[str]] = {name: Counter() for name in sorted({pair.provider for pair in self.pairs})}
        for pair in self.pairs:
            counts[pair.provider].update(pair.words)
        return counts

    @cached_property
    def cells(self) -> Counter[str]:
        """How many cells of each provider are in both runs."""
        return Counter(pair.provider for pair in self.pairs)

    @cached_property
    def said(self) -> list[str]:
        """Every word that is said of some cell, in the order of WORDS."""
        return [word for word in WORDS if any(count[word] for count in self.counts.values())]

    def having(self, word: str) -> list[Pair]:
        """Cells of which this is said, the largest change of that kind first."""
        found = [pair for pair in self.pairs if word in pair.words]
        return sorted(found, key=lambda pair: (-pair.size(word), pair.key))

    def regressed(self, fail_on: Sequence[str] = FAIL_ON) -> bool:
        """Whether any cell got worse in one of these ways."""
        words = {REGRESSIONS[name] for name in fail_on}
        return any(words.intersection(count) for count in self.counts.values())
