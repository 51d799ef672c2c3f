"""What --list prints: the operators, presets and providers there are, and the cells that would run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from bench.cases import sweep
from bench.cases.operators import Operator
from bench.cases.reduced import reduced
from bench.measure.cost import Expected, expected
from bench.measure.providers import Provider
from bench.measure.runner import RunPlan

# Seconds of a unit, from the largest; a time is told in the first that it fills.
_UNITS = {"h": 3600, "min": 60, "s": 1}


def show(console: Console, plan: RunPlan, providers: Mapping[str, Provider]) -> None:
    """Tables on a terminal; elsewhere one line a thing, its kind first, for grep and cut."""
    cells = [(case.label, name) for case in plan.cases for name in plan.providers]
    has = [(o.name, o.short, "x".join(o.axes), ", ".join(o.modes)) for o in plan.operators.values()]
    can = [(name, provider.unavailable(plan.device) or "available") for name, provider in providers.items()]
    _table(console, "operator", ("operator", "short", "axes", "modes"), has)
    _table(console, "preset", ("preset", "operators", "cells", "time", "about"), list(_presets(plan)))
    _table(console, "provider", ("provider", "here"), can)
    _table(console, "cell", ("case", "provider"), cells)
    expects = expected(plan.cases, plan.providers, plan.device)
    time = f"{about(expects.total)} by a rule of thumb"
    console.print(f"{len(plan.cases)} cases, {plan.cells} cells, {time}{made_up(expects)}", markup=False)


def about(seconds: float) -> str:
    """A time in words: `about 40 s`, `about 2 min`, `about 1.5 h`."""
    unit, length = next(((u, n) for u, n in _UNITS.items() if seconds >= n), ("s", 1))
    return f"about {max(seconds / length, 1):.2g} {unit}"


def made_up(expects: Expected) -> str:
    """Returns what an expected time consists of, where anything is compiled."""
    if not expects.kernels + expects.graphs:
        return ""
    return (
        f": {expects.starting:.0f} s to start, {expects.measuring:.0f} s for cells, {expects.compiling:.0f} s for what "
        f"is left to compile of {expects.kernels} kernels and {expects.graphs} graphs, {expects.reporting:.0f} s for "
        "the report"
    )


def _presets(plan: RunPlan) -> Iterator[tuple[str, ...]]:
    """A row a preset, for the operators that have it alike, with the cells and time of this plan's providers."""
    alike: dict[tuple[str, str], list[Operator]] = {}
    for name in sweep.presets_of(plan.operators.values()):
        for operator in plan.operators.values():
            if name in operator.presets:
                alike.setdefault((name, operator.presets[name].about), []).append(operator)
    for (name, what), operators in alike.items():
        every = sweep.cases(sweep.Sweep(tuple(o.name for o in operators), name), plan.operators)
        cases, _ = reduced(every, plan.device)
        time = about(expected(cases, plan.providers, plan.device).total)
        yield name, ", ".join(o.short for o in operators), str(len(cases) * len(plan.providers)), time, what


def _table(console: Console, kind: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    if not console.is_terminal:
        for row in rows:
            console.print(f"{kind}: {'  '.join(row)}", markup=False, soft_wrap=True)
        return
    table = Table(*columns, title=f"{kind}s", title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)
