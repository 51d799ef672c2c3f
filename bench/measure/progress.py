"""Progress display of a run: a bar on a terminal, a line every few seconds anywhere else."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from bench.cases.case import Case
from bench.results.records import Record

# Statuses that are shown at once; the others are counted in the table at the end.
TROUBLE = ("wrong", "impossible", "crash", "oom", "timeout")
# Seconds between lines: often enough to see that it lives, seldom enough for a log.
_PERIOD = 5.0


class ProgressDisplay(Protocol):
    """The interface that the runner calls while it works."""

    def start(self, cells: int, done: int) -> None:
        """`cells` are planned, `done` of them in an earlier sitting."""

    def running(self, case: Case, provider: str) -> None:
        """This cell begins."""

    def finished(self, record: Record) -> None:
        """This cell has ended and its record is written."""

    def stop(self) -> None:
        """Nothing more comes; may be called twice."""


def display(console: Console) -> ProgressDisplay:
    """Returns the display that fits where the console writes."""
    return BarDisplay(console) if console.is_terminal else LineDisplay(console)


def cell_name(record: Record) -> str:
    """Names a cell by `Case.label` and the provider."""
    return f"{record.case.label} {record.provider}"


def trouble(record: Record) -> str:
    """Describes a cell that did not end well in one line."""
    return f"{record.status}: {cell_name(record)}: {record.reason}"


class LineDisplay:
    """Prints a line every few seconds: the share done, the time left and what is running."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._cells = self._done = self._before = 0
        self._began = self._told = float("-inf")

    def start(self, cells: int, done: int) -> None:
        self._cells, self._done, self._before, self._began = cells, done, done, time.monotonic()

    def running(self, case: Case, provider: str) -> None:
        if time.monotonic() - self._told >= _PERIOD:
            self._tell(f"{case.label} {provider}")

    def finished(self, record: Record) -> None:
        self._done += 1
        if record.status in TROUBLE:
            self._print(trouble(record))
        if self._done == self._cells:
            self._tell("done")

    def stop(self) -> None:
        pass

    def _tell(self, what: str) -> None:
        self._told = time.monotonic()
        share = self._done / max(self._cells, 1)
        self._print(f"{share:4.0%} {self._done}/{self._cells} cells{self._left()}: {what}")

    def _left(self) -> str:
        measured, left = self._done - self._before, self._cells - self._done
        if not measured or not left:
            return ""
        remaining = (time.monotonic() - self._began) / measured * left
        return f", about {remaining:.0f} s left" if remaining < 120 else f", about {remaining / 60:.0f} min left"

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class BarDisplay:
    """Draws a bar with what is running and the time left; prints trouble above it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            # Cells differ a hundredfold in length, so the estimate looks back ten minutes and not half of one.
            speed_estimate_period=600,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None)

    def start(self, cells: int, done: int) -> None:
        self._progress.start()
        self._progress.reset(self._task, total=cells, completed=done)

    def running(self, case: Case, provider: str) -> None:
        self._progress.update(self._task, description=f"{case.label} {provider}")

    def finished(self, record: Record) -> None:
        self._progress.advance(self._task)
        if record.status in TROUBLE:
            self._progress.console.print(trouble(record), markup=False, highlight=False)

    def stop(self) -> None:
        self._progress.stop()
