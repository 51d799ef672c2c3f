"""Prints --list: the operators, presets and providers, and the cells that would run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rich.console import Console
from rich.table import Table

from bench.cases import sweep
from bench.cases.reduced import reduced
from bench.measure.cost import ExpectedTime, expected
from bench.measure.providers import Provider
from bench.measure.runner import RunPlan
from bench.page.formatting import plural

# Units of time in seconds, the largest first.
_UNITS = {"h": 3600, "min": 60, "s": 1}


def show(console: Console, plan: RunPlan, providers: Mapping[str, Provider], cells: bool = False) -> None:
    """Prints tables on a terminal; elsewhere one line a row, the table's name first, for grep and cut.

    They are operators, presets and providers, or only the cells.
    """
    operators = ((o.name, o.short, "x".join(o.axes), ", ".join(o.modes)) for o in plan.operators.values())
    installed = ((name, provider.unavailable(plan.device) or "available") for name, provider in providers.items())
    if cells:
        every = ((case.label, name) for case in plan.cases for name in plan.providers)
        _print_table(console, "cell", ("case", "provider"), every)
    else:
        _print_table(console, "operator", ("operator", "short", "axes", "modes"), operators)
        _print_table(console, "preset", ("preset", "operators", "cells", "time", "about"), _presets(plan))
        _print_table(console, "provider", ("provider", "here"), installed)
    expects = expected(plan.cases, plan.providers, plan.device, energies=plan.energies)
    time = f"{about(expects.total)} by a rule of thumb{_parts(expects)}"
    console.print(f"{plural(len(plan.cases), 'case')}, {plural(plan.cells, 'cell')}, {time}", markup=False)


def about(seconds: float) -> str:
    """Returns a time in words: `about 40 s`, `about 2 min`, `about 1.5 h`."""
    unit, length = next(((u, n) for u, n in _UNITS.items() if seconds >= n), ("s", 1))
    return f"about {max(seconds / length, 1):.2g} {unit}"


def _parts(expects: ExpectedTime) -> str:
    """Returns the parts of an expected time, where anything is compiled."""
    if not expects.kernels + expects.graphs:
        return ""
    return (
        f": {expects.starting:.0f} s to start, {expects.measuring:.0f} s for cells, {expects.compiling:.0f} s for what "
        f"is left to compile of {expects.kernels} kernels and {expects.graphs} graphs, {expects.reporting:.0f} s for "
        "the report"
    )


def _presets(plan: RunPlan) -> Iterator[tuple[str, ...]]:
    """Yields a row for each preset and group of operators that describe it alike."""
    for preset in sweep.presets_of(plan.operators.values()):
        having = [operator for operator in plan.operators.values() if preset in operator.presets]
        for description in dict.fromkeys(operator.presets[preset].about for operator in having):
            alike = [operator for operator in having if operator.presets[preset].about == description]
            every = sweep.cases(sweep.Sweep(tuple(o.name for o in alike), preset), plan.operators)
            cases, _ = reduced(every, plan.device)
            time = about(expected(cases, plan.providers, plan.device, energies=plan.energies).total)
            count = str(len(cases) * len(plan.providers))
            yield preset, ", ".join(o.short for o in alike), count, time, description


def _print_table(console: Console, name: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    if not console.is_terminal:
        for row in rows:
            console.print(f"{name}: {'  '.join(row)}", markup=False, soft_wrap=True)
        return
    table = Table(*columns, title=f"{name}s", title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)
