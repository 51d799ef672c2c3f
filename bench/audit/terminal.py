"""The audit on a terminal: a line a kind of plan, a line a kind of count, and every problem."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bench.audit import groups, tables
from bench.audit.groups import Row
from bench.page.formatting import plural


def show(console: Console, rows: Sequence[Row]) -> None:
    """Prints the tables, and the problems in red."""
    console.print(_table("plans", tables.plans(rows)), markup=False)
    console.print(_table("bytes, counted in the interpreter", tables.counted(rows)), markup=False)
    if fused := tables.pairs(rows):
        console.print(_table("fused, beside the pair that it replaces", fused), markup=False)
    if read := tables.counters(rows):
        console.print(_table("units of device memory, by the hardware's counters", read), markup=False)
    if known := tables.constants(rows):
        console.print(_table("constants that expected times are made of", known), markup=False)
    for note in groups.notes(rows):
        console.print(note, markup=False)
    problems = groups.problems(rows)
    for problem in problems:
        console.print(problem, style="bold red", markup=False)
    verdict = plural(len(problems), "problem") if problems else "all is well"
    console.print(f"{len(groups.passes(rows))} passes, {len(groups.kernels(rows))} kernels: {verdict}", markup=False)


def _table(title: str, lines: Sequence[groups.Line]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in lines[0].cells if lines else ():
        table.add_column(name, justify="left" if name in groups.WORDS else "right")
    for line in lines:
        table.add_row(*line.cells.values(), style="bold red" if line.wrong else "")
    return table
