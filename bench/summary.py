"""The compact table at the end of a run: how each provider ended, its worst figure, its speed, and where we lose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import geometric_mean

from rich.console import Console
from rich.table import Table

from bench.measure.progress import TROUBLE, cell_name
from bench.measure.runner import RunOutcome
from bench.results.records import STATUSES, Record

# Enough to see a pattern; the report has them all.
_MOST_LOSSES = 10


def summary(console: Console, outcome: RunOutcome, baseline: str, ours: str) -> None:
    """Prints one row an operator and provider, then each loss of `ours`: what is wrong, and what is slower."""
    records = outcome.records
    if not records:
        console.print("no cell was measured")
        return
    seen = [status for status in STATUSES if any(r.status == status for r in records)]
    timed = any(r.speedup is not None for r in records)
    table = Table("operator", "provider", *seen, "worst figure", box=None, pad_edge=False)
    if timed:
        table.add_column(f"speedup over {baseline} (geometric mean)", justify="right")
    for op, provider in dict.fromkeys((r.op, r.provider) for r in records):
        of_row = [r for r in records if (r.op, r.provider) == (op, provider)]
        count = Counter(r.status for r in of_row)
        row = [op, provider, *(str(count[status] or "") for status in seen)]
        errors = [error for r in of_row for error in r.errors]
        row.append(max(errors, key=lambda error: error.pressure).words if errors else "")
        table.add_row(*row, *([_mean_speedup(of_row)] if timed else []))
    console.print(table)
    _print_losses(console, [r for r in records if r.provider == ours], baseline)
    if outcome.stopped_by:
        console.print(f"not complete: stopped by {outcome.stopped_by}; --resume continues it", markup=False)


def _mean_speedup(records: Iterable[Record]) -> str:
    speedups = [record.speedup for record in records if record.speedup is not None]
    return f"{geometric_mean(speedups):.2f}x of {len(speedups)}" if speedups else ""


def _print_losses(console: Console, records: Sequence[Record], baseline: str) -> None:
    bad = [f"{r.status}: {cell_name(r)}" for r in records if r.status in TROUBLE]
    slow = sorted((r.speedup, cell_name(r)) for r in records if r.speedup is not None and r.speedup < 1)
    for lines in (bad, [f"slower than {baseline}: {name} {speedup:.2f}x" for speedup, name in slow]):
        for line in lines[:_MOST_LOSSES]:
            console.print(line, markup=False, soft_wrap=True)
        if len(lines) > _MOST_LOSSES:
            console.print(f"... and {len(lines) - _MOST_LOSSES} more, all of them in the report")
