"""A run as a comparison needs it: of each cell how it ended, how long it took, and how wrong it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import Any

import numpy as np

from bench.page.formatting import present
from bench.results import samples
from bench.results.intervals import Array
from bench.results.records import CUDA_EVENT, RECORDS, Record, of_ranks, of_run

ENVIRONMENT = "environment.json"


class Incomparable(ValueError):
    """A folder that holds no run, or runs that have nothing in common; one line says what is wrong."""


@dataclass(frozen=True, slots=True)
class Error:
    """The errors of one output tensor."""

    dtype: str
    rel_l2_error: float | None
    floor_ratio: float | None


@dataclass(frozen=True, slots=True)
class Cell:
    """What one run says of one cell. `median` is (low, median, high) in microseconds, or how far that is known."""

    case: str  # the cell without its provider
    provider: str
    label: str
    status: str
    reason: str
    clock: str
    latency_us: float | None
    median: tuple[float, float, float] | None  # with its 95% interval
    count: int | None  # samples
    throttle: str
    statistics: int  # of what a statistic is taken: rows or channels, the fewer
    seed: int
    errors: dict[str, Error]


@dataclass(frozen=True)
class Run:
    """One run: its cells by `Record.key`, cold samples of those that have any, and its environment."""

    folder: Path
    cells: dict[str, Cell]
    samples: dict[str, Array]
    environment: dict[str, Any]

    @cached_property
    def providers(self) -> set[str]:
        """Everyone who has a cell."""
        return {cell.provider for cell in self.cells.values()}

    @property
    def supports_speed(self) -> bool:
        """Whether any time of it supports a claim of speed."""
        return not self.environment.get("interpreted") and any(cell.clock == CUDA_EVENT for cell in self.cells.values())


def load(folder: Path) -> Run:
    """Reads a run's folder; raises Incomparable where it holds none.

    Of a cell that is there more than once the last counts. Environment and samples may be missing.
    """
    if not folder.is_dir():
        raise Incomparable(f"{folder}: no such folder; give the folder of a run, which holds {RECORDS}")
    try:
        cells = {record.key: cell_of(record) for record in of_run(folder)}
    except FileNotFoundError:
        raise Incomparable(f"{folder}: holds no {RECORDS}, so it is no run") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise Incomparable(f"{folder / RECORDS}: a line is not a record ({error})") from None
    if not cells:
        raise Incomparable(f"{folder}: has no record")
    paths = (folder / samples.FILE, *of_ranks(folder, samples.FILE))
    taken = dict(pair for path in paths for pair in _samples(path, cells))
    return Run(folder, cells, taken, _environment(folder / ENVIRONMENT))


def cell_of(record: Record) -> Cell:
    """What a comparison keeps of a record."""
    times = (record.latency_us_low, record.latency_us, record.latency_us_high)
    known = [time for time in times if present(time) and time > 0]
    return Cell(
        case=f"{record.cell.rpartition('/')[0]}/{record.eps:g}",
        provider=intern(record.provider),
        label=record.case.label,
        status=intern(record.status),
        reason=record.reason,
        clock=intern(record.clock),
        latency_us=times[1] if present(times[1]) and times[1] > 0 else None,
        median=(known[0], known[1], known[2]) if len(known) == 3 else None,
        count=record.samples,
        throttle=intern(record.throttle or ""),
        statistics=min(record.shape[:2], default=1),
        seed=record.seed,
        errors={
            intern(error.tensor): Error(intern(error.dtype), error.rel_l2_error, error.floor_ratio)
            for error in record.errors
        },
    )


def _samples(path: Path, cells: dict[str, Cell]) -> Iterator[tuple[str, Array]]:
    """Cold samples by cell, those that are times."""
    if not path.exists():
        return
    try:
        for taken in samples.read(path):
            if taken.key in cells:
                cold = np.asarray(taken.series.get("cold_us", ()), dtype=float)
                yield taken.key, cold[np.isfinite(cold) & (cold > 0)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Incomparable(f"{path}: a line is no list of samples ({error})") from None


def _environment(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
