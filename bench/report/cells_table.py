"""The table of all cells as data for the page's script: written once, formatted here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from bench.page.formatting import number, percent, present, short, times
from bench.page.palette import Key
from bench.results import samples
from bench.results.load import Run
from bench.results.records import of_ranks
from bench.results.thresholds import DOTS, SUBJECT, TABLE_ROWS

REASON_LENGTH = 160
NO_NUMBER = 1e300
_precise = partial(number, digits=4)


@dataclass(frozen=True)
class Column:
    """A title with its unit, the value of a row, and how a number is written; of a text there is nothing to write.

    `kept` columns are there in every run, the others where any cell has a value. `hidden` is how it begins.
    """

    title: str
    value: Callable[[dict[str, Any]], Any]
    written: Callable[[Any], str] | None = None
    hidden: bool = False
    kept: bool = False


def _field(name: str, scale: float = 1.0) -> Callable[[dict[str, Any]], Any]:
    return lambda row: row[name] if isinstance(row[name], str) else row[name] * scale if present(row[name]) else None


def _count(value: float) -> str:
    return f"{int(value):,}"


def _inputs(row: dict[str, Any]) -> str:
    return f"{row['inputs']} {short(row['offset'])}" if row["offset"] else str(row["inputs"])


def _of_bound(row: dict[str, Any]) -> float | None:
    """Infinite where NaN or Inf stand in the wrong places: no number of JSON, and more than any."""
    return None if pd.isna(row["pressure"]) else min(100.0 * row["pressure"], NO_NUMBER)


def columns(host_times: bool) -> tuple[Column, ...]:
    """What a reader looks for stands left. With `host_times` no time says anything about speed, and none is shown."""
    time = partial(Column, written=number, hidden=host_times)
    return (
        Column("operator", _field("op"), kept=True),
        Column("shape", _field("shape"), kept=True),
        Column("dtype", _field("dtype"), kept=True),
        Column("layout", _field("layout")),
        Column("mode", _field("mode"), kept=True),
        Column("inputs", _inputs, kept=True),
        Column("provider", _field("provider"), kept=True),
        Column("status", _field("status"), kept=True),
        Column("speedup", _field("speedup"), times),
        time("time µs", _field("latency_us")),
        Column("GB/s", _field("gbps"), number),
        Column("of copy %", _field("roofline_fraction", 100.0), number),
        Column("worst figure", _field("figure")),
        Column("of bound %", _of_bound, lambda value: number(value) if value < NO_NUMBER else "not finite"),
        Column("speedup from", _field("speedup_low"), times, hidden=True),
        Column("speedup to", _field("speedup_high"), times, hidden=True),
        time("p10 µs", _field("latency_us_p10"), hidden=True),
        time("p90 µs", _field("latency_us_p90"), hidden=True),
        time("median from µs", _field("latency_us_low"), hidden=True),
        time("median to µs", _field("latency_us_high"), hidden=True),
        time("hot µs", _field("hot_us"), hidden=True),
        time("with host µs", _field("call_us"), hidden=True),
        time("in a graph µs", _field("graph_us"), hidden=True),
        time("kernels alone µs", _field("kernel_us"), hidden=True),
        Column("launches", _field("launches"), number, hidden=True),
        Column("communication µs", _field("communication_us"), number),
        Column("bytes sent", _field("bytes_sent"), _count),
        Column("rank", _field("rank"), _count, hidden=True),
        Column("spread %", _field("spread", 100.0), number, hidden=True),
        Column("standard error", _field("noise"), percent, hidden=True),
        Column("samples", _field("samples"), _count, hidden=True),
        Column("retaken", _field("retaken"), _count, hidden=True),
        Column("throttled by", _field("throttle")),
        Column("SM MHz", _field("sm_clock_mhz"), _precise, hidden=True),
        Column("memory MHz", _field("mem_clock_mhz"), _precise, hidden=True),
        Column("W", _field("power_w"), number, hidden=True),
        Column("°C", _field("temperature_c"), number, hidden=True),
        Column("compile ms", _field("compile_ms"), number, hidden=True),
        Column("clock", _field("clock"), hidden=True),
        Column("backend", _field("backend"), hidden=True),
        Column("plan", _field("plan"), hidden=True),
        Column("axes", _field("words"), hidden=True, kept=True),
    )


def payload(run: Run, legend: Mapping[str, Key]) -> dict[str, Any]:
    """Columns, one row a cell, and how providers are drawn. A value is a text, null, or a number as [number, text].

    A row has its name, the number of its case, the reason of its status, and `dots`: so many quantiles of its samples,
    in thousandths of its time more or less than that.
    """
    chosen = _chosen(run.cells)
    worst = run.errors.sort_values("pressure", ascending=False).drop_duplicates(["cell", "case"])
    figures = {
        (row["cell"], row["case"]): row for row in worst[["cell", "case", "text", "pressure"]].to_dict("records")
    }
    rows = run.cells.iloc[chosen].to_dict("records")
    for row, place in zip(rows, chosen, strict=True):
        figure = figures.get((row["cell"], row["case"]), {"text": "", "pressure": np.nan})
        axes = ", ".join(f"{name} {value}" for name, value in run.records[place].axes.items())
        row["figure"], row["pressure"] = figure["text"], figure["pressure"]
        row["words"] = f"{axes}, eps {short(row['eps'])}"
    columned = [(column, [_value(column, row) for row in rows]) for column in columns(not run.has_speed)]
    shown = [(column, values) for column, values in columned if column.kept or any(values)]
    numbers = {case: place for place, case in enumerate(dict.fromkeys(row["case"] for row in rows))}
    dots = _dots(run, {run.records[place].key: run.records[place].latency_us for place in chosen})
    return {
        "noun": "cell",
        "columns": [
            {"title": column.title, "numeric": column.written is not None, "hidden": column.hidden}
            for column, _ in shown
        ],
        "providers": {name: {"colour": key.colour, "path": key.path} for name, key in legend.items()},
        "rows": [
            {
                "id": row["cell"],
                "case": numbers[row["case"]],
                "why": _shorten(row["reason"]),
                "is": [values[at] for _, values in shown],
                **({"dots": dots[key]} if (key := run.records[place].key) in dots else {}),
            }
            for at, (row, place) in enumerate(zip(rows, chosen, strict=True))
        ],
    }


def _chosen(cells: pd.DataFrame) -> list[int]:
    """The places of the rows that the table has room for: what is not ok first, then the subject's, then the others."""
    rank = np.where(cells["status"] != "ok", 0, np.where(cells["provider"] == SUBJECT, 1, 2))
    return sorted(np.argsort(rank, kind="stable")[:TABLE_ROWS].tolist())


def _value(column: Column, row: dict[str, Any]) -> Any:
    value = column.value(row)
    if column.written is None or value is None:
        return value or None
    return [float(f"{value:.4g}"), column.written(value)]


def _dots(run: Run, medians: Mapping[str, float | None]) -> dict[str, list[int]]:
    """Quantiles of each cell's samples, the last line of a cell that was measured again."""
    if not run.has_speed:
        return {}
    paths = [path for path in (run.folder / samples.FILE, *of_ranks(run.folder, samples.FILE)) if path.exists()]
    found = {}
    at = (np.arange(DOTS) + 0.5) / DOTS
    try:
        for taken in (taken for path in paths for taken in samples.read(path)):
            median, cold = medians.get(taken.key), taken.series.get("cold_us")
            if median and cold:
                found[taken.key] = [round(1e3 * (value / median - 1)) for value in np.quantile(cold, at)]
    except (ValueError, TypeError):
        return {}  # a broken file of samples costs this figure and nothing else
    return found


def _shorten(reason: str) -> str:
    first = (reason.strip().splitlines() or [""])[0]
    return first if len(first) <= REASON_LENGTH else f"{first[:REASON_LENGTH]}…"
