"""Takes samples of several rivals in turns until each is quiet enough, and summarizes a list of samples.

Rivals are measured in rounds of short blocks, one block each in a new random order, so that a clock that climbs or a
neighbour that wakes up affects all of them alike. A block is any function that returns microseconds. Imports no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import bdtrik

from bench.measure.ending import exits_raised

if TYPE_CHECKING:
    from bench.measure.telemetry import Reading

# Standard error of the mean over the mean. Medians 2% apart are then about three standard errors of their difference
# apart. nvbench stops at the same figure, but of the spread, which more samples do not lower.
NOISE = 0.005
# With fewer, the error of the spread itself is above a sixth: 1 / sqrt(2 (n - 1)).
LEAST_SAMPLES = 20
# Samples of one block share a moment; what changes between moments needs several blocks to show.
LEAST_BLOCKS = 5
# Twice as many samples of one distribution lower the noise by sqrt(2) = 1.41. From this many samples on, a gain below
# this factor is no accident of the estimate: drift or ever wilder outliers widen the spread, and more do not help.
STEADY_SAMPLES, STEADY_GAIN = 200, 1.1
# How often one rival's blocks are taken again because the device was throttled, and the rest before the first of them:
# nvbench's default. Each further rest is twice as long.
RETAKES, REST_S = 3, 0.05


@dataclass(frozen=True)
class StoppingRule:
    """When to stop sampling a rival. The budget is in seconds of wall time and overrides all the rest."""

    budget_s: float
    most_samples: int | None = None
    noise: float = NOISE
    least_samples: int = LEAST_SAMPLES
    least_blocks: int = LEAST_BLOCKS


@dataclass
class Series:
    """The samples of one rival: microseconds in the order taken, and how the sampling went."""

    samples: list[float] = field(default_factory=list)
    blocks: int = 0
    spent_s: float = 0.0
    stopped: str = ""  # noise, steady or budget
    readings: list[Reading] = field(default_factory=list)  # one after each block that was kept
    reasons: set[str] = field(default_factory=set)  # why the clocks were held down around blocks that were kept
    retaken: int = 0  # samples
    retakes: int = 0  # blocks


class SamplingAborted(Exception):
    """The device no longer answers. `errors` holds what has failed by then, the run that lost the device last."""

    def __init__(self, errors: Mapping[str, Exception]) -> None:
        super().__init__(list(errors)[-1])
        self.errors = errors


def side_by_side(
    blocks: Mapping[str, Callable[[], Sequence[float]]],
    rule: StoppingRule,
    *,
    seed: int = 0,
    began: Callable[[str], None] = lambda name: None,
    watch: Callable[[], Reading | None] = lambda: None,
    alive: Callable[[], bool] = lambda: True,
    clock: Callable[[], float] = time.perf_counter,
    rest: Callable[[float], None] = time.sleep,
) -> dict[str, Series | Exception]:
    """Takes blocks of each rival in turns until the rule stops it; a rival that raises is out, and its error returned.

    `began` is called with the name before each block. `watch` reads the device's state between blocks, None where it
    cannot. Raises SamplingAborted where the device is not `alive` after an error.
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
                with exits_raised():
                    samples = blocks[name]()
            except Exception as error:
                failed[name] = error
                del going[name]
                if not alive():
                    raise SamplingAborted(failed) from error
                continue
            mine.spent_s += clock() - start
            after = watch()
            around = [reading for reading in (before, after) if reading is not None]
            if any(reading.throttled for reading in around) and mine.retakes < RETAKES:
                mine.retaken += len(samples)
                rest(REST_S * 2**mine.retakes)
                mine.retakes += 1
                before = watch()
                continue
            mine.samples += samples
            mine.blocks += 1
            mine.reasons.update(*(reading.reasons for reading in around))
            if after is not None:
                mine.readings.append(after)
            before = after
            mine.stopped = stopped(mine.samples, mine.blocks, mine.spent_s, rule)
            if mine.stopped:
                done[name] = going.pop(name)
    return {name: failed[name] if name in failed else done[name] for name in blocks}


def stopped(samples: Sequence[float], blocks: int, spent_s: float, rule: StoppingRule) -> str:
    """Returns what ends the sampling, "" while nothing does.

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
    """Returns the standard error of the mean over the mean; None for fewer than two samples, or a mean of zero."""
    if len(samples) < 2:
        return None
    mean = float(np.mean(samples))
    return float(np.std(samples, ddof=1)) / sqrt(len(samples)) / mean if mean else None


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """Returns the 95% interval of the median for any distribution: two of the samples, by rank.

    The number of n independent samples below the median is binomial, B(n, 1/2) (H. A. David and H. N. Nagaraja, Order
    Statistics, 3rd ed., section 7.1), so the ranks are its quantiles at 2.5%. Below six samples not even the least and
    the greatest hold the median that often; they are returned then. scipy.stats.quantile_test gives the same from six
    samples on; its package takes a second to import in each process that measures.
    """
    ordered = sorted(samples)
    rank = int(bdtrik(0.025, len(ordered), 0.5))
    return ordered[rank], ordered[-1 - rank]
