"""What an experiment of the literature is, as data. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

# What one seed gave: (condition, value's name) -> figure. A loss that diverged is inf.
Values = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Source:
    """Where a claim was made; `where` is a section or figure."""

    authors: str
    year: int
    where: str
    url: str


@dataclass(frozen=True)
class Gate:
    """An inequality on which a claim stands or falls, in every seed; `shows` are the values that it compares."""

    text: str
    holds: Callable[[Values], bool]
    shows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Figure:
    """How the literature draws it, a condition a line or bar.

    curves: series `y` over `x`, a point a step; bands: a series with `low` and `high` in place of y, else the same;
    lines: series `y` over a swept x, a point a setting; bars: no series, but the value `series` of each condition.
    """

    kind: Literal["curves", "bands", "lines", "bars"]
    x: str
    y: str
    series: str
    log: tuple[Literal["x", "y"], ...] = ()


@dataclass(frozen=True)
class Experiment:
    """One experiment: its claim, where that was made, what is compared and what decides it."""

    name: str
    title: str
    claim: str
    source: Source
    operators: tuple[str, ...]  # as bench/operators has them
    conditions: tuple[str, ...]
    gates: tuple[Gate, ...]  # none: reported, and not judged
    figure: Figure
    sweep: bool = False  # over a quantity, so that one seed is enough
    also: tuple[Figure, ...] = ()  # figures beside the first, of series that every run records too
