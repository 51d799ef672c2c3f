"""The table of all cells, as data for the page's script."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from shlex import quote
from typing import Any

import numpy as np
import pandas as pd

from bench.cases.case import exactly
from bench.page import palette
from bench.page.formatting import number, percent, times
from bench.page.templating import packed_table
from bench.report.sections import Section
from bench.results.load import LoadedRun, UnreadableRun
from bench.results.numbers import present, short
from bench.results.records import Record
from bench.results.thresholds import DOTS, TABLE_ROWS

REASON_LENGTH = 160  # characters of a reason in a row; the section on failed cells has the whole
NO_NUMBER = 1e300  # stands for infinity, which JSON lacks, and is larger than any number of a run
_precise = partial(number, digits=4)


@dataclass(frozen=True)
class Column:
    """A title with its unit, the value of a row, and how a number is written; None for a column of texts.

    `kept` columns are there in every run, the others where any cell has a value. `hidden` ones are shown on demand.
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
    """Returns the pressure in percent."""
    return None if pd.isna(row["pressure"]) else min(100.0 * row["pressure"], NO_NUMBER)


def columns(host_times: bool) -> tuple[Column, ...]:
    """Returns the columns, the most sought first. With `host_times` times say nothing about speed, and are hidden."""
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
        Column("of gap %", _field("gap_closed", 100.0), number, hidden=True),
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
        time("kernels only µs", _field("kernel_us"), hidden=True),
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
        Column("energy mJ", _field("energy_mj"), number, hidden=host_times),
        Column("energy from mJ", _field("energy_mj_low"), number, hidden=True),
        Column("energy to mJ", _field("energy_mj_high"), number, hidden=True),
        Column("W", _field("power_w"), number, hidden=True),
        Column("°C", _field("temperature_c"), number, hidden=True),
        Column("compile ms", _field("compile_ms"), number, hidden=True),
        Column("clock", _field("clock"), hidden=True),
        Column("backend", _field("backend"), hidden=True),
        Column("plan", _field("plan"), hidden=True),
        Column("ran", _field("ran"), hidden=True),
        Column("deviates", _field("deviations")),
        Column("batch invariant", lambda row: {True: "yes", False: "no"}.get(row["batch_invariant"]), hidden=True),
        Column("eps", _field("eps"), short, hidden=True),
    )


def payload(run: LoadedRun) -> dict[str, Any]:
    """Returns the columns, one row a cell, and how providers are drawn, for table.js.

    A value is a text, null, or a number as [number, text]. A row has its name, the number of its case, the reason of
    its status, and `dots`: quantiles of its samples, in thousandths of its time more or less than that,
    each less the one before.
    """
    # What the table has room for: what went wrong, the subject's, the others', and what never ran.
    status, ours = run.cells["status"], run.cells["provider"] == run.subject
    rank = np.select([status.isin(["unsupported", "skipped"]), status != "ok", ours], [3, 0, 1], 2)
    chosen = sorted(np.argsort(rank, kind="stable")[:TABLE_ROWS].tolist())
    worst = run.errors.sort_values("pressure", ascending=False).drop_duplicates(["cell", "case"])
    worst = {(cell, case): found for cell, case, *found in worst[["cell", "case", "words", "pressure"]].to_numpy()}
    rows = run.cells.iloc[chosen].to_dict("records")
    for row in rows:
        row["figure"], row["pressure"] = worst.get((row["cell"], row["case"]), ("", np.nan))
    columned = [(column, [_value(column, row) for row in rows]) for column in columns(not run.has_speed)]
    shown = [(column, values) for column, values in columned if column.kept or any(values)]
    first = {row["case"]: run.records[place] for row, place in zip(rows[::-1], chosen[::-1], strict=True)}
    numbers = {case: place for place, case in enumerate(first)}
    dots = _dots(run, chosen)
    return {
        "noun": "cell",
        "baseline": run.environment["baseline"] or "",
        "commands": list(map(_command, first.values())),
        "places": chosen if len(chosen) < len(run.cells) else None,
        "columns": [
            {"title": column.title, "numeric": column.written is not None, "hidden": column.hidden}
            for column, _ in shown
        ],
        "providers": {name: {"colour": key.css, "path": key.path} for name, key in palette.keys(run.providers).items()},
        "rows": [
            {
                "id": row["cell"],
                "case": numbers[row["case"]],
                "why": _shorten(row["reason"]),
                "is": [values[at] for _, values in shown],
                **({"dots": dots[place]} if place in dots else {}),
            }
            for at, (row, place) in enumerate(zip(rows, chosen, strict=True))
        ],
    }


def _value(column: Column, row: dict[str, Any]) -> Any:
    value = column.value(row)
    if column.written is None or value is None:
        return value or None
    return [float(f"{value:.4g}"), column.written(value)]


def _command(record: Record) -> str:
    """Returns what measures a record's case again, without its providers."""
    given = {"op": record.op, **record.axes, "dtype": record.dtype, "layout": record.layout, "mode": record.mode}
    given |= {"inputs": record.inputs} if record.inputs != "normal" else {}
    given |= {"offset": exactly(record.offset, "g")} if record.offset else {}
    return " ".join(
        ("python -m bench.run", *(f"--{name} {quote(str(value))}" for name, value in given.items() if value))
    )


def _dots(run: LoadedRun, chosen: Sequence[int]) -> dict[int, list[int]]:
    """Returns quantiles of each cell's samples, by its place."""
    at, found = (np.arange(DOTS) + 0.5) / DOTS, {}
    try:
        taken = run.samples if run.has_speed else {}
    except UnreadableRun:
        return {}  # a broken file of samples costs this figure and nothing else
    for place in chosen:
        median, cold = run.records[place].latency_us, taken.get(run.records[place].key, ())
        if median and len(cold):
            ranks = np.sort(cold)[(at * len(cold)).astype(int)]
            found[place] = np.diff(np.round(1e3 * (ranks / median - 1)), prepend=0).astype(int).tolist()
    return found


def _shorten(reason: str) -> str:
    first = (reason.strip().splitlines() or [""])[0]
    return first if len(first) <= REASON_LENGTH else f"{first[:REASON_LENGTH]}…"


SECTION = Section(50, "All cells", lambda run: {"packed_table": packed_table(payload(run))})
