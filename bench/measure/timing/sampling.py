"""Samples taken side by side, until the noise of each is low enough; and what a list of samples says.

Rivals are measured in rounds of short blocks, one block each in a new random order, so that a clock that climbs or a
neighbour that wakes up falls on all of them alike. Imports no torch: a block is any function that gives
microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import sqrt
from random import Random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from bench.measure.telemetry import Reading

# Standard error of the mean over the mean. Medians 2% apart are then told apart at some three standard errors of their
# difference. nvbench stops at the same figure, but of the spread, which more samples do not lower.
NOISE = 0.005
# The error of a spread from fewer is beyond a sixth of it: 1 / sqrt(2 (n - 1)).
LEAST_SAMPLES = 20
# Samples of one block share a moment; what changes between moments needs several of them to show.
LEAST_BLOCKS = 5
# Samples of one distribution lower the noise by sqrt(2) = 1.41 when they double. From this many on, less than this
# factor is no accident of the estimate: their spread grows, by drift or ever wilder outliers, and more buy nothing.
STEADY_SAMPLES, STEADY_GAIN = 200, 1.1
# How often one rival's blocks are taken again because the device was throttled, and how long it rests before: at first
# as long as nvbench waits by default, then twice as long each time.
RETAKES, REST_S = 3, 0.05


@dataclass(frozen=True)
class Rule:
    """When to stop. The budget is seconds of wall time a rival, and rules over all the rest."""

    budget_s: float
    most_samples: int | None = None
    noise: float = NOISE
    least_samples: int = LEAST_SAMPLES
    least_blocks: int = LEAST_BLOCKS


@dataclass
class Series:
    """What was taken of one rival: microseconds in the order taken, and how the taking went."""

    samples: list[float] = field(default_factory=list)
    blocks: int = 0
    spent_s: float = 0.0
    stopped: str = ""  # noise, steady or budget
    readings: list[Reading] = field(default_factory=list)  # one after each block that was kept
    reasons: set[str] = field(default_factory=set)  # why the clocks were held down around blocks that were kept
    retaken: int = 0  # samples
    retakes: int = 0  # blocks


class Lost(Exception):
    """The device answers no more, so that nothing more can be measured: what has failed by then, the culprit last."""

    def __init__(self, errors: Mapping[str, Exception]) -> None:
        super().__init__(list(errors)[-1])
        self.errors = errors


def side_by_side(
    blocks: Mapping[str, Callable[[], Sequence[float]]],
    rule: Rule,
    *,
    seed: int = 0,
    began: Callable[[str], None] = lambda name: None,
    watch: Callable[[], Reading | None] = lambda: None,
    alive: Callable[[], bool] = lambda: True,
    clock: Callable[[], float] = time.perf_counter,
    rest: Callable[[float], None] = time.sleep,
) -> dict[str, Series | Exception]:
    """Takes blocks of each rival by name, in turns, until the rule stops it; what raises is out, and gives its error.

    `began` is told the name before each block. `watch` looks at the device between blocks; None where it cannot.
    Raises Lost where the device is not `alive` after an error.
    """
    done: dict[str, Series] = {}
    failed: dict[str, Exception] = {}
    going = {name: Series() for name in blocks}
    order, turns = list(blocks), Random(seed)
    before = watch()
    while going:
        turns.shuffle(order)
        for name in [name for name in order if name in going]:
            mine = going[name]
            began(name)
            start = clock()
            try:
                samples = blocks[name]()
            except Exception as error:
                failed[name] = error
                del going[name]
                if not alive():
                    raise Lost(failed) from error
                continue
            mine.spent_s += clock() - start
            after = watch()
            if _throttled(before, after) and mine.retakes < RETAKES:
                mine.retaken += len(samples)
                rest(REST_S * 2**mine.retakes)
                mine.retakes += 1
                before = watch()
                continue
            _keep(mine, samples, before, after)
            before = after
            mine.stopped = stopped(mine.samples, mine.blocks, mine.spent_s, rule)
            if mine.stopped:
                done[name] = going.pop(name)
    return {name: failed[name] if name in failed else done[name] for name in blocks}


def stopped(samples: Sequence[float], blocks: int, spent_s: float, rule: Rule) -> str:
    """What ends the sampling, "" while nothing does.

    "noise": it is as low as the rule wants it. "steady": it is not, and has stopped falling. "budget": time, or the
    number of samples, is used up.
    """
    if len(samples) >= rule.least_samples and blocks >= rule.least_blocks:
        present, earlier = noise(samples), noise(samples[: len(samples) // 2])
        if present is not None and present <= rule.noise:
            return "noise"
        if present and earlier and len(samples) >= STEADY_SAMPLES and earlier < STEADY_GAIN * present:
            return "steady"
    if spent_s >= rule.budget_s or (rule.most_samples is not None and len(samples) >= rule.most_samples):
        return "budget"
    return ""


def noise(samples: Sequence[float]) -> float | None:
    """Standard error of the mean over the mean; None for fewer than two samples, or a mean of zero."""
    if len(samples) < 2:
        return None
    mean = float(np.mean(samples))
    return float(np.std(samples, ddof=1)) / sqrt(len(samples)) / mean if mean else None


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """An interval that holds the median in 95% of all cases, whatever the distribution: two of the samples, by rank.

    How many of n independent samples lie below the median is binomial, B(n, 1/2) (H. A. David and H. N. Nagaraja, Order
    Statistics, 3rd ed., section 7.1). Below six samples not even the least and the greatest hold it that often; they
    are given then.
    """
    ordered = sorted(samples)
    rank = _rank(len(ordered))
    return ordered[rank], ordered[-1 - rank]


@cache
def _rank(n: int) -> int:
    """The greatest r, counted from zero, for which sample r lies above the median in 2.5% of all cases at most.

    It does where at most r of the n samples lie below.
    """
    rank, ways, below = 0, 1, 1  # of 2^n ways to fall, those with `rank` samples below, and with at most so many
    while 40 * below <= 2**n:
        rank += 1
        ways = ways * (n - rank + 1) // rank
        below += ways
    return max(rank - 1, 0)


def _throttled(*readings: Reading | None) -> bool:
    return any(reading is not None and reading.throttled for reading in readings)


def _keep(mine: Series, samples: Sequence[float], before: Reading | None, after: Reading | None) -> None:
    mine.samples += samples
    mine.blocks += 1
    mine.reasons |= {reason for reading in (before, after) if reading is not None for reason in reading.reasons}
    if after is not None:
        mine.readings.append(after)
