"""The declaration of an experiment: its claim, the inequalities that decide it, and its figure. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from bench.study.training import StudyOutcome, StudySetting

PLAIN, BN = "plain", "BN"


@dataclass(frozen=True)
class Source:
    """Where a claim was made; `where` is a section or figure."""

    authors: str
    year: int
    url: str
    where: str


IOFFE_SZEGEDY = partial(Source, "Ioffe and Szegedy", 2015, "https://arxiv.org/abs/1502.03167")
IOFFE = partial(Source, "Ioffe", 2017, "https://arxiv.org/abs/1702.03275")
SANTURKAR = partial(Source, "Santurkar, Tsipras, Ilyas and Madry", 2018, "https://arxiv.org/abs/1805.11604")


class Gate:
    """An inequality that decides a claim, in every seed.

    `shows` are the values that it compares, each (condition, name); `holds` takes them in that order. A loss that
    diverged is inf.
    """

    def __init__(self, text: str, holds: Callable[..., bool], *shows: tuple[str, str]) -> None:
        self.text, self.holds, self.shows = text, holds, shows


def of(name: str, *conditions: str) -> tuple[tuple[str, str], ...]:
    """Returns one value of several conditions, as a gate shows it."""
    return tuple((condition, name) for condition in conditions)


@dataclass(frozen=True)
class Figure:
    """A figure as the literature draws it, with a line or bar for each condition.

    curves: series `y` over `x`, a point a step; bands: the same with `low` and `high` in place of y; lines: series `y`
    over a swept x, a point a setting; bars: no series, but the value `series` of each condition.
    """

    kind: Literal["curves", "bands", "lines", "bars"]
    x: str
    y: str
    series: str
    log: tuple[Literal["x", "y"], ...] = ()


# Internal covariate shift: a layer's gradient before and after the layers below have taken their step.
SHIFT = Figure("curves", "step", "L2 distance of gradients before and after", "shift", ("y",))
COSINE = Figure("curves", "step", "cosine of gradients before and after", "cosine")


@dataclass(frozen=True)
class Experiment:
    """The claim of one module of experiments/, its source, what is compared and what decides it."""

    module: str  # whose `run` runs it
    place: int  # among the others, in runs and on the page
    title: str
    claim: str
    source: Source
    figure: Figure
    gates: tuple[Gate, ...] = ()  # none: reported, and not judged
    conditions: tuple[str, ...] = (PLAIN, BN)
    operators: tuple[str, ...] = ("batch_norm",)  # as bench/cases/operators has them
    sweep: bool = False  # over a quantity, so that one seed is enough
    also: tuple[Figure, ...] = ()  # figures beside the first, of series that every run records too

    @property
    def name(self) -> str:
        return self.module.rpartition(".")[2]

    @property
    def run(self) -> Callable[[str, int, StudySetting], StudyOutcome]:
        """Runs a condition with a seed in a setting; PyTorch's own generator is seeded already."""
        found: Callable[[str, int, StudySetting], StudyOutcome] = sys.modules[self.module].run
        return found
