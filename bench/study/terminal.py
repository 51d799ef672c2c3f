"""A study on a terminal: how far it is, and the verdicts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.page.formatting import number
from bench.study.experiment import Experiment
from bench.study.records import Run
from bench.study.verdict import Spread, Verdict

_STYLES = {"reproduced": "green", "not reproduced": "bold red", "not decided": "yellow"}
# Seconds between lines where there is no terminal.
_PERIOD = 5.0


class Display:
    """A bar on a terminal, a line every few seconds anywhere else; what failed is told at once."""

    def __init__(self, console: Console, planned: int, done: int) -> None:
        self._console, self._planned, self._done, self._told = console, planned, done, 0.0
        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=planned, completed=done)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._bar.stop()

    def finished(self, run: Run) -> None:
        """This run has ended and its record is written."""
        self._done += 1
        what = f"{run.experiment}, {run.condition}, seed {run.seed}"
        self._bar.update(self._task, advance=1, description=what)
        if run.state == "failed":
            self._console.print(f"failed: {what}: {run.reason}", markup=False, soft_wrap=True)
        if not self._console.is_terminal and (time.monotonic() - self._told >= _PERIOD or self._done == self._planned):
            self._told = time.monotonic()
            self._console.print(f"{self._done}/{self._planned} runs: {what}", markup=False, soft_wrap=True)


def listing(experiments: Sequence[Experiment]) -> Table:
    """What --list prints: an experiment a row."""
    table = Table("experiment", "claim", "source", "conditions", box=None, pad_edge=False)
    for e in experiments:
        source = f"{e.source.authors} ({e.source.year})"
        table.add_row(e.name, e.claim, source, ", ".join(e.conditions))
    return table


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """A gate a row: what was compared, over seeds, and what it comes to."""
    table = Table("experiment", "holds if", "figures, median over seeds (lowest to highest)", "seeds", "verdict")
    table.box, table.pad_edge = None, False
    for verdict in verdicts:
        held = sum(outcome is True for outcome in verdict.outcomes.values())
        figures = "; ".join(map(_figure, verdict.spreads))
        seeds = f"{held} of {len(verdict.outcomes)}"
        style = _STYLES[verdict.word]
        table.add_row(verdict.experiment.name, verdict.gate.text, figures, seeds, verdict.word, style=style)
    return table


def _figure(spread: Spread) -> str:
    shown = f"{spread.condition}: {_number(spread.median)}"
    return shown if spread.low == spread.high else f"{shown} ({_number(spread.low)} to {_number(spread.high)})"


def _number(value: float) -> str:
    return "∞" if value == float("inf") else number(value)
