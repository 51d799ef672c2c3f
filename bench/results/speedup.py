"""Adds bandwidth, roofline share and speedup to the records of one case, and finds times that cannot be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp

from bench.results.intervals import of_medians
from bench.results.records import CUDA_EVENT, Record

# How much faster than a copy something may move its bytes and still be believed. A copy loses to the pins of the memory
# what turning between reads and writes costs, a read does not; a copy that reaches four fifths of the pins leaves a
# quarter. What this is to find (work left out, results kept, data in the cache) is mostly off by two and more.
BEYOND_COPY = 1.25


@dataclass(frozen=True)
class Roof:
    """What this device's memory was seen to do (GB/s of a large copy), and the bytes of its L2 cache."""

    copy_gbps: float | None = None
    l2_bytes: int = 0


def floor_us(bytes_moved: int, l2_bytes: int, copy_gbps: float) -> float:
    """The least microseconds in which a cold call can move its bytes; what takes less did something else.

    What a call writes may still be in the cache of `l2_bytes` when it ends, so that much need not have reached memory;
    the rest moves at BEYOND_COPY times the bandwidth of a copy at most. 0 where everything fits into the cache, or
    where the cache's size is unknown (0).
    """
    through_memory = max(0, bytes_moved - l2_bytes) if l2_bytes else 0
    return through_memory / (BEYOND_COPY * copy_gbps) / 1e3


def add_speedups(records: Iterable[Record], baseline: Record | None, roof: Roof) -> None:
    """Adds the speed figures of one case's records; `baseline` is the one that speedups refer to, if it was measured.

    A time that the memory cannot have made is no time of this work, and the cell is `impossible`. A wrong cell gets no
    speedup; a wrong baseline's time is still its time.
    """
    for record in records:
        if record.clock != CUDA_EVENT or not record.latency_us:
            continue
        if record.bytes_moved is not None:
            _hold_against(record, record.latency_us, record.bytes_moved, roof)
        if record.status == "ok" and baseline is not None and baseline.latency_us and baseline.clock == record.clock:
            record.speedup = baseline.latency_us / record.latency_us
            if record is not baseline:
                record.speedup_low, record.speedup_high = _speedup_interval(record, baseline)


def _speedup_interval(record: Record, baseline: Record) -> tuple[float, float] | tuple[None, None]:
    """At 95%, from the intervals of both medians; nothing where one has none."""
    mine, theirs = _median(record), _median(baseline)
    if not mine or not theirs or not record.samples or not baseline.samples:
        return None, None
    low, high = of_medians(mine, theirs, (record.samples, baseline.samples)).interval(1, misses=0.05)
    return exp(low), exp(high)


def _median(record: Record) -> tuple[float, float, float] | None:
    """With its interval around it."""
    low, median, high = record.latency_us_low, record.latency_us, record.latency_us_high
    return (low, median, high) if low and median and high else None


def _hold_against(record: Record, latency_us: float, bytes_moved: int, roof: Roof) -> None:
    record.gbps = bytes_moved / latency_us / 1e3
    record.roofline_fraction = record.gbps / roof.copy_gbps if roof.copy_gbps else None
    floor = floor_us(bytes_moved, roof.l2_bytes, roof.copy_gbps) if roof.copy_gbps else 0.0
    if record.status == "ok" and latency_us < floor:
        record.status = "impossible"
        record.reason = f"{latency_us:.1f} us for what takes this memory {floor:.1f} us at least: not all was done"
