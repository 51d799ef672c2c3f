"""The table at the end of a run: how each provider's cells ended, its worst error, its speed, and our losses."""

from __future__ import annotations

from collections import Counter
from statistics import geometric_mean

from rich.console import Console
from rich.table import Table

from bench.measure.progress import TROUBLE, cell_name
from bench.measure.runner import RunOutcome
from bench.results.records import STATUSES, Record

# Enough to see a pattern; the report has them all.
_MOST_LOSSES = 10


def _tally(records: list[Record]) -> str:
    """Returns `1.62x; 7 won, 2 tied, 3 lost; worst 0.71x`: a mean says nothing of the cells that are lost."""
    if not records:
        return ""
    speedups = [r.speedup or 0.0 for r in records]
    won = sum((r.speedup_low or r.speedup or 0.0) > 1 for r in records)
    lost = sum((r.speedup_high or r.speedup or 0.0) < 1 for r in records)
    tied = len(records) - won - lost
    return f"{geometric_mean(speedups):.2f}x; {won} won, {tied} tied, {lost} lost; worst {min(speedups):.2f}x"


def summary(console: Console, outcome: RunOutcome, baseline: str, ours: str) -> None:
    """Prints a row for each operator and provider, then the losses of `ours`: what is wrong, and what is slower."""
    records = outcome.records
    if not records:
        console.print("no cell was measured")
        return
    seen = [status for status in STATUSES if any(r.status == status for r in records)]
    timed = any(r.speedup is not None for r in records)
    table = Table("operator", "provider", *seen, "worst figure", box=None, pad_edge=False)
    if timed:
        table.add_column(f"speedup over {baseline} (geometric mean; won, tied, lost; worst)", justify="right")
    for op, provider in dict.fromkeys((r.op, r.provider) for r in records):
        of_row = [r for r in records if (r.op, r.provider) == (op, provider)]
        count = Counter(r.status for r in of_row)
        row = [op, provider, *(str(count[status] or "") for status in seen)]
        errors = [error for r in of_row for error in r.errors]
        row.append(max(errors, key=lambda error: error.pressure).words if errors else "")
        if timed:
            row.append(_tally([r for r in of_row if r.speedup is not None]) if provider != baseline else "")
        table.add_row(*row)
    console.print(table)
    mine = [r for r in records if r.provider == ours]
    bad = [f"{r.status}: {cell_name(r)}" for r in mine if r.status in TROUBLE]
    slow = sorted((r.speedup, cell_name(r)) for r in mine if r.speedup is not None and r.speedup < 1)
    for losses in (bad, [f"slower than {baseline}: {name} {speedup:.2f}x" for speedup, name in slow]):
        for line in losses[:_MOST_LOSSES]:
            console.print(line, markup=False, soft_wrap=True)
        if len(losses) > _MOST_LOSSES:
            console.print(f"... and {len(losses) - _MOST_LOSSES} more, all of them in the report")
    if outcome.stopped_by:
        console.print(f"not complete: stopped by {outcome.stopped_by}; --resume continues it", markup=False)
