"""What a GPU's clock lets one claim of a cell: bandwidth, share of the roof, speedup; and what no clock can claim."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench import timing
from bench.results import Record


@dataclass(frozen=True)
class Roof:
    """What this device's memory was seen to do (GB/s of a large copy), and the bytes of its L2 cache."""

    copy_gbps: float | None = None
    l2_bytes: int = 0


def put(records: Iterable[Record], baseline: Record | None, roof: Roof) -> None:
    """Fills in the claims of one case's records; `baseline` is the one that speedups refer to, if it was measured.

    A time that the memory cannot have made is no time of this work, and the cell is `impossible`. A wrong cell gets no
    speedup; a wrong baseline's time is still its time.
    """
    for record in records:
        if record.clock != timing.CUDA_EVENT or not record.latency_us:
            continue
        if record.bytes_moved is not None:
            _hold_against(record, record.latency_us, record.bytes_moved, roof)
        if record.status == "ok" and baseline is not None and baseline.latency_us and baseline.clock == record.clock:
            record.speedup = baseline.latency_us / record.latency_us


def _hold_against(record: Record, latency_us: float, bytes_moved: int, roof: Roof) -> None:
    record.gbps = bytes_moved / latency_us / 1e3
    record.roofline_fraction = record.gbps / roof.copy_gbps if roof.copy_gbps else None
    floor = timing.floor_us(bytes_moved, roof.l2_bytes, roof.copy_gbps) if roof.copy_gbps else 0.0
    if record.status == "ok" and latency_us < floor:
        record.status = "impossible"
        record.reason = f"{latency_us:.1f} us for what takes this memory {floor:.1f} us at least: not all was done"
