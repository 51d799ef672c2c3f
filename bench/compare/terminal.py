"""A comparison on a terminal: what differs around the runs, a line a provider, then the worst cells; or JSON."""

from math import isfinite
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.compare.comparison import FASTER, FIXED, LESS_ACCURATE, NEWLY_WRONG, SLOWER, CellPair, Comparison
from bench.page.formatting import plural

# Enough to see a pattern; the page has them all.
_MOST = 10


def show(console: Console, comparison: Comparison) -> None:
    """Prints the notes, the table, and up to ten cells of each kind of change."""
    for line in (*comparison.differences, *comparison.notes):
        console.print(line, markup=False, soft_wrap=True)
    for name, cells in (("A", comparison.only_a), ("B", comparison.only_b)):
        if cells:
            such = " ".join(reversed(cells[0]))
            console.print(f"only in {name}: {plural(len(cells), 'cell')}, such as {such}", markup=False, soft_wrap=True)
    table = Table("provider", "cells", *comparison.said, box=None, pad_edge=False)
    if comparison.between:
        table.add_column("typical change", justify="right")
    for provider, count in comparison.counts.items():
        row = [provider, str(comparison.cells[provider]), *(str(count[word] or "") for word in comparison.said)]
        table.add_row(*row, *([comparison.typical(provider)] if comparison.between else []))
    console.print(table)
    for word in (NEWLY_WRONG, SLOWER, LESS_ACCURATE, FASTER, FIXED):
        pairs = comparison.having(word)
        for pair in pairs[:_MOST]:
            console.print(f"{word}: {pair.label} {pair.provider}: {pair.told(word)}", markup=False, soft_wrap=True)
        if len(pairs) > _MOST:
            console.print(f"... and {len(pairs) - _MOST:,} more {word}, all of them in the page", markup=False)


def plain(comparison: Comparison) -> dict[str, Any]:
    """Returns everything that was found as plain values, for JSON; times in microseconds."""
    return {
        "a": str(comparison.a),
        "b": str(comparison.b),
        "threshold": comparison.threshold,
        "counts": {provider: dict(count) for provider, count in comparison.counts.items()},
        "cells": [_cell(pair) for pair in comparison.pairs],
        "only_a": [" ".join(reversed(cell)) for cell in comparison.only_a],
        "only_b": [" ".join(reversed(cell)) for cell in comparison.only_b],
        "differences": list(comparison.differences),
        "notes": list(comparison.notes),
    }


def _cell(pair: CellPair) -> dict[str, Any]:
    times = {"latency_us_a": pair.a.latency_us, "latency_us_b": pair.b.latency_us}
    figures = {"change": pair.change, "low": pair.low, "high": pair.high, **times}
    return {
        "cell": pair.key,
        "provider": pair.provider,
        "verdict": pair.verdict,
        "said": pair.words,
        **{name: value for name, value in figures.items() if value is not None and isfinite(value)},
        "why": pair.why,
        "status_a": pair.a.status,
        "status_b": pair.b.status,
        "growth": str(pair.growth or ""),
    }
