"""The table of all cells as data for the page's script: written once, formatted here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.report.data import Run
from bench.report.formatting import DASH, duration, interval, number, percent, present, short, times
from bench.report.thresholds import SUBJECT, TABLE_ROWS

# Title of a column, and whether it holds numbers; what a reader looks for stands left of what a wide screen shows.
COLUMNS = (
    ("operator", False),
    ("shape", False),
    ("dtype", False),
    ("layout", False),
    ("mode", False),
    ("inputs", False),
    ("provider", False),
    ("status", False),
    ("speedup", True),
    ("time (p10–p90)", True),  # noqa: RUF001
    ("GB/s", True),
    ("of copy", True),
    ("worst figure", True),
    ("backend", False),
    ("compile ms", True),
    ("samples", True),
    ("axes", False),
)


@dataclass(frozen=True)
class Extra:
    """A column of numbers that stands in the table only where the run has any."""

    title: str
    field: str
    written: Callable[[Any], str]


EXTRAS = (
    Extra("hot", "hot_us", duration),
    Extra("with host", "call_us", duration),
    Extra("in a graph", "graph_us", duration),
    Extra("kernels alone", "kernel_us", duration),
    Extra("launches", "launches", number),
    Extra("communication", "communication_us", duration),
    Extra("bytes sent", "bytes_sent", lambda value: _count(value)),
    Extra("rank", "rank", lambda value: _count(value)),
    Extra("median from", "latency_us_low", duration),
    Extra("median to", "latency_us_high", duration),
    Extra("standard error", "noise", percent),
    Extra("retaken", "retaken", lambda value: _count(value)),
    Extra("SM MHz", "sm_clock_mhz", lambda value: number(value, 4)),
    Extra("memory MHz", "mem_clock_mhz", lambda value: number(value, 4)),
    Extra("W", "power_w", number),
    Extra("°C", "temperature_c", number),
)
REASON_LENGTH = 160
CLOCKS = {"interpreter": "interpreter", "host_cpu": "host clock"}


def payload(run: Run) -> dict[str, Any]:
    """Column titles and one row a cell: its name, its values and its reason. A value is a text or [number, text]."""
    chosen = _chosen(run.cells)
    cells = run.cells.iloc[chosen]
    worst = run.errors.sort_values("pressure", ascending=False).drop_duplicates(["cell", "case"])
    figures = {
        (row["cell"], row["case"]): [min(row["pressure"], 1e300), row["text"]] for row in worst.to_dict("records")
    }
    extras = [extra for extra in EXTRAS if cells[extra.field].notna().any()]
    throttled = bool((cells["throttle"] != "").any())
    columns = [*COLUMNS, *((extra.title, True) for extra in extras), *([("throttled by", False)] if throttled else [])]
    rows = [
        {
            "id": row["cell"],
            "why": _shorten(row["reason"]),
            "is": [
                *_values(row, record.axes, figures),
                *(_number(row[extra.field], extra.written(row[extra.field])) for extra in extras),
                *([row["throttle"] or DASH] if throttled else []),
            ],
        }
        for row, record in zip(cells.to_dict("records"), (run.records[place] for place in chosen), strict=True)
    ]
    return {"columns": [{"title": title, "numeric": numeric} for title, numeric in columns], "rows": rows}


def _chosen(cells: pd.DataFrame) -> list[int]:
    """The places of the rows that the table has room for: what is not ok first, then the subject's, then the others."""
    rank = np.where(cells["status"] != "ok", 0, np.where(cells["provider"] == SUBJECT, 1, 2))
    return sorted(np.argsort(rank, kind="stable")[:TABLE_ROWS].tolist())


def _values(row: dict[str, Any], axes: dict[str, int | str], figures: dict[tuple[str, str], Any]) -> list[Any]:
    words = ", ".join(f"{name} {value}" for name, value in axes.items())
    return [
        row["op"],
        row["shape"],
        row["dtype"],
        row["layout"] or DASH,
        row["mode"],
        f"{row['inputs']} {short(row['offset'])}" if row["offset"] else row["inputs"],
        row["provider"],
        row["status"],
        _number(row["speedup"], times(row["speedup"])),
        _time(row),
        _number(row["gbps"], number(row["gbps"])),
        _number(row["roofline_fraction"], percent(row["roofline_fraction"])),
        figures.get((row["cell"], row["case"])),
        row["backend"] or DASH,
        _number(row["compile_ms"], number(row["compile_ms"])),
        _number(row["samples"], _count(row["samples"])),
        f"{words}, eps {short(row['eps'])}",
    ]


def _time(row: dict[str, Any]) -> Any:
    text = interval(row["latency_us"], row["latency_us_p10"], row["latency_us_p90"])
    clock = CLOCKS.get(row["clock"], "")
    return _number(row["latency_us"], f"{text} {clock}".rstrip())


def _number(value: Any, text: str) -> Any:
    return [float(f"{value:.6g}"), text] if present(value) else None


def _count(value: Any) -> str:
    return DASH if pd.isna(value) else f"{int(value):,}"


def _shorten(reason: str) -> str:
    first = (reason.strip().splitlines() or [""])[0]
    return first if len(first) <= REASON_LENGTH else f"{first[:REASON_LENGTH]}…"
