"""What --list prints: the cells that would run, and the operators, presets and providers there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from bench.providers import Provider
from bench.runner import Plan


def show(console: Console, plan: Plan, providers: Mapping[str, Provider]) -> None:
    """Tables on a terminal; elsewhere one line a thing, its kind first, for grep and cut."""
    cells = [(case.label, name) for case in plan.cases for name in plan.providers]
    has = [(o.name, o.short, "x".join(o.axes), ", ".join(o.modes)) for o in plan.operators.values()]
    presets = [(o.short, name, preset.about) for o in plan.operators.values() for name, preset in o.presets.items()]
    can = [(name, provider.unavailable(plan.device) or "available") for name, provider in providers.items()]
    _table(console, "operator", ("operator", "short", "axes", "modes"), has)
    _table(console, "preset", ("operator", "preset", "about"), presets)
    _table(console, "provider", ("provider", "here"), can)
    _table(console, "cell", ("case", "provider"), cells)
    console.print(f"{len(plan.cases)} cases, {plan.cells} cells")


def _table(console: Console, kind: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    if not console.is_terminal:
        for row in rows:
            console.print(f"{kind}: {'  '.join(row)}", markup=False, soft_wrap=True)
        return
    table = Table(*columns, title=f"{kind}s", title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)
