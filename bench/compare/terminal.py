"""A comparison on a terminal: what differs around the runs, a line a provider, then the worst cells."""

from __future__ import annotations

from math import expm1

from rich.console import Console
from rich.table import Table

from bench.compare.comparison import FASTER, FIXED, LESS_ACCURATE, NEWLY_WRONG, SLOWER, Comparison, Pair
from bench.compare.words import change, told
from bench.page.formatting import plural

# Enough to see a pattern; the page has them all.
_MOST = 10


def show(console: Console, comparison: Comparison) -> None:
    """Prints the notes, the table, and up to ten cells of everything that is not as it was."""
    for line in (*comparison.differences, *comparison.notes):
        console.print(line, markup=False, soft_wrap=True)
    for name, cells in (("A", comparison.only_a), ("B", comparison.only_b)):
        if cells:
            such = " ".join(reversed(cells[0]))
            console.print(f"only in {name}: {plural(len(cells), 'cell')}, such as {such}", markup=False, soft_wrap=True)
    console.print(_table(comparison))
    for word in (NEWLY_WRONG, SLOWER, LESS_ACCURATE, FASTER, FIXED):
        _list(console, word, comparison.having(word))


def _table(comparison: Comparison) -> Table:
    table = Table("provider", "cells", *comparison.said, box=None, pad_edge=False)
    if comparison.between:
        table.add_column("typical change", justify="right")
    for provider, count in comparison.counts.items():
        row = [provider, str(comparison.cells[provider]), *(str(count[word] or "") for word in comparison.said)]
        if comparison.between:
            typical = comparison.between.typical.get(provider)
            row.append("" if typical is None else change(expm1(typical)))
        table.add_row(*row)
    return table


def _list(console: Console, word: str, pairs: list[Pair]) -> None:
    for pair in pairs[:_MOST]:
        console.print(f"{word}: {pair.label} {pair.provider}: {told(pair, word)}", markup=False, soft_wrap=True)
    if len(pairs) > _MOST:
        console.print(f"... and {len(pairs) - _MOST:,} more {word}, all of them in the page", markup=False)
