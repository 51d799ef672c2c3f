"""Adds bandwidth, roofline share and speedup to the records of one case, and finds impossible times."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp

from bench.results.intervals import of_medians
from bench.results.records import CUDA_EVENT, Record

# How much faster than a copy something may move its bytes and still be believed. A copy loses some of the memory's peak
# to turning between reads and writes, a read does not; a copy that reaches four fifths of the peak leaves a quarter.
# What this is to find (work left out, results kept, data in the cache) is mostly off by two and more.
BEYOND_COPY = 1.25


@dataclass(frozen=True)
class Roof:
    """The measured bandwidth of a large copy on this device, and the bytes of its L2 cache."""

    copy_gbps: float | None = None
    l2_bytes: int = 0


def floor_us(bytes_moved: int, l2_bytes: int, copy_gbps: float) -> float:
    """Returns the least microseconds in which a cold call can move its bytes.

    What a call writes may still be in the cache of `l2_bytes` when it ends, so that much need not have reached memory;
    the rest moves at BEYOND_COPY times the bandwidth of a copy at most. 0 where everything fits into the cache, or
    where the cache's size is unknown (0).
    """
    through_memory = max(0, bytes_moved - l2_bytes) if l2_bytes else 0
    return through_memory / (BEYOND_COPY * copy_gbps) / 1e3


def add_speedups(records: Iterable[Record], baseline: Record | None, roof: Roof) -> None:
    """Adds the speed figures of one case's records; `baseline` is the one that speedups refer to, if it was measured.

    A cell whose time is shorter than the memory allows becomes `impossible`. A wrong cell gets no speedup; the time of
    a wrong baseline still counts.
    """
    for record in records:
        if record.clock != CUDA_EVENT or not record.latency_us:
            continue
        if record.bytes_moved is not None:
            _add_bandwidth(record, record.latency_us, record.bytes_moved, roof)
        if record.status == "ok" and baseline is not None and baseline.latency_us and baseline.clock == record.clock:
            record.speedup = baseline.latency_us / record.latency_us
            if record is not baseline:
                record.speedup_low, record.speedup_high = _speedup_interval(record, baseline)
                record.gap_closed = _gap_closed(record, baseline.latency_us, roof)


def _speedup_interval(record: Record, baseline: Record) -> tuple[float, float] | tuple[None, None]:
    """Returns the 95% interval of a speedup, from those of both medians; nothing where one has none."""
    if not (record.median and baseline.median and record.samples and baseline.samples):
        return None, None
    change = of_medians(record.median, baseline.median, (record.samples, baseline.samples))
    low, high = change.interval(1, misses=0.05)
    return exp(low), exp(high)


def _gap_closed(record: Record, baseline_us: float, roof: Roof) -> float | None:
    """Returns 0 at the baseline's time, 1 at that of a copy of as many bytes; nothing where the baseline is there."""
    if not (roof.copy_gbps and record.bytes_moved and record.latency_us):
        return None
    copy_us = record.bytes_moved / roof.copy_gbps / 1e3
    return (baseline_us - record.latency_us) / (baseline_us - copy_us) if baseline_us > copy_us else None


def _add_bandwidth(record: Record, latency_us: float, bytes_moved: int, roof: Roof) -> None:
    record.gbps = bytes_moved / latency_us / 1e3
    record.roofline_fraction = record.gbps / roof.copy_gbps if roof.copy_gbps else None
    floor = floor_us(bytes_moved, roof.l2_bytes, roof.copy_gbps) if roof.copy_gbps else 0.0
    if record.status == "ok" and latency_us < floor:
        record.status = "impossible"
        record.reason = f"{latency_us:.1f} us for what takes this memory {floor:.1f} us at least: not all was done"
