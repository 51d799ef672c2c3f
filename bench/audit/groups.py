"""The records of an audit, one kind at a time, and what a table of them has. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.cases.case import named
from bench.page.formatting import DASH

Row = Mapping[str, Any]
# Columns that are no numbers.
WORDS = (
    "GPU",
    "operator",
    "pass",
    "plan",
    "kernel",
    "call",
    "choices",
    "unfused",
    "why",
    "constants of",
    "measured",
    "bound",
)


@dataclass(frozen=True)
class Line:
    """One line of a table: what stands in each column, which columns are wrong, and what is inside it."""

    cells: dict[str, str]
    wrong: frozenset[str] = frozenset()
    rows: tuple[Row, ...] = ()


def passes(rows: Iterable[Row]) -> list[Row]:
    """Returns the records of compiled passes."""
    return [row for row in rows if row["record"] == "pass"]


def counts(rows: Iterable[Row]) -> list[Row]:
    """Returns the records of counted launches."""
    return [row for row in rows if row["record"] == "count"]


def kernels(rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Returns (record, launch) of each distinct kernel of a target, where it was needed first."""
    found: dict[tuple[Any, ...], tuple[Row, Row]] = {}
    for row in passes(rows):
        for launch in row["launches"]:
            found.setdefault((row["target"], launch["number"]), (row, launch))
    return list(found.values())


def problems(rows: Iterable[Row]) -> list[str]:
    """Returns every problem once, with the first call that has it."""
    found: dict[str, str] = {}
    for row in rows:
        for problem in row["problems"]:
            found.setdefault(" ".join(filter(None, (row.get("target"), problem))), label(row))
    return [f"{problem}: {where}" for problem, where in found.items()]


def label(row: Row) -> str:
    """Returns the call of a record in words."""
    if row["record"] == "count":
        return f"{row['call']} {row['mode']}"
    return f"{row['op']} {problem(row)} {row['mode']}"


def problem(row: Row) -> str:
    """Returns for example 32x64x56x56 fp16 nhwc; an operator's options follow the shape."""
    return " ".join((shape(row), *named(row.get("options", ())), row["dtype"], row["layout"]))


def shape(row: Row) -> str:
    """Returns for example 32x64x56x56."""
    return "x".join(map(str, row["shape"]))


def notes(rows: Iterable[Row]) -> list[str]:
    """Returns the texts of the audit's notes."""
    return [row["text"] for row in rows if row["record"] == "note"]


def by(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Returns the rows by the values of these keys, in the order of their first."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def span(values: Iterable[float | None], form: str = "{:.2f}") -> str:
    """Returns one value, or the least and the greatest of several: 2.00, 2.00-2.51; a dash if there is none."""
    present = [value for value in values if value is not None]
    if not present:
        return DASH
    low, high = (form.format(end) for end in (min(present), max(present)))
    return low if low == high else f"{low}{DASH}{high}"
