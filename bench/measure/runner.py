"""Cases x providers -> records: in order, within the time budget, and on disk as soon as each cell ends."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.cases.case import Case
from bench.cases.operators import Operator
from bench.measure import environment, precompile
from bench.measure.cell import DeviceLost, Finished, Setting
from bench.measure.progress import Display
from bench.measure.providers import Provider
from bench.measure.worker import BUDGET_SPENT, SILENCE_S, Here, Measurer, Parts, Worker
from bench.results import records as results
from bench.results import samples, speedup
from bench.results.records import Record

RECORDS = "records.jsonl"
TABLE = "records.csv"


@dataclass(frozen=True)
class Plan:
    """What one run measures. Among `providers` the baseline comes first, so that a speedup is known at once."""

    cases: tuple[Case, ...]
    providers: Mapping[str, Provider]
    operators: Mapping[str, Operator]
    baseline: str
    yardstick: Provider  # PyTorch eager, chosen or not
    device: torch.device
    seed: int
    deadline: float = float("inf")  # of time.monotonic(): what runs then is stopped, and the rest is skipped
    cell_timeout: float = SILENCE_S
    isolated: bool = False  # measured in a process of its own

    @property
    def cells(self) -> int:
        return len(self.cases) * len(self.providers)


@dataclass
class Outcome:
    """How a run ended: every record, earlier sittings' included, and what stopped it ("" if nothing did)."""

    records: list[Record] = field(default_factory=list)
    stopped_by: str = ""

    @property
    def complete(self) -> bool:
        return not self.stopped_by


def run(plan: Plan, folder: Path, described: Mapping[str, Any], kept: Iterable[Record], display: Display) -> Outcome:
    """Measures every cell that is not among `kept`, and leaves records, table and environment in the folder.

    Ctrl-C, a spent budget and a lost device end the sweep, not the run: `stopped_by` says which, and what was measured
    stays. Any other exception is a mistake in the instrument; it is raised once the environment says so.
    """
    outcome = Outcome(list(kept), stopped_by="error")
    described = {**described, "finished": None, "complete": False, "stopped_by": "", "cells_planned": plan.cells}
    results.rewrite(folder / RECORDS, outcome.records)
    samples.mend(folder / samples.FILE)
    environment.write(folder, described)
    cells = parts(plan)
    measurer: Measurer = Worker(cells, plan.cell_timeout) if plan.isolated else Here(cells)
    known = {(record.case, record.provider) for record in outcome.records}
    left = [case for case in plan.cases if any((case, name) not in known for name in plan.providers)]
    ahead = precompile.Ahead(left if plan.isolated else (), plan.providers, plan.device)
    before = environment.conditions(plan.device)

    display.start(plan.cells, len(outcome.records))
    try:
        ahead.kernels()
        if described.get("copy_gbps") is None:
            described["copy_gbps"] = measurer.copy_gbps()
            environment.write(folder, described)
        ahead.graphs()
        roof = speedup.Roof(described["copy_gbps"], (described.get("gpu") or {}).get("l2_bytes") or 0)
        book = _Book(folder, outcome.records, plan.baseline, roof, display)
        outcome.stopped_by = _sweep(plan, cells, measurer, book, display)
    except KeyboardInterrupt:
        outcome.stopped_by = "interrupt"
    except DeviceLost:
        pass
    finally:
        measurer.close()
        display.stop()
        if said := ahead.close():
            described["notes"] = [*described.get("notes", ()), said]
        ending = {"finished": environment.now(), "complete": outcome.complete, "stopped_by": outcome.stopped_by}
        conditions = {"before": before, "after": environment.conditions(plan.device)}
        environment.write(folder, {**described, **ending, "conditions": conditions})
        results.to_frame(outcome.records).to_csv(folder / TABLE, index=False)
    return outcome


def parts(plan: Plan) -> Parts:
    """What every process that measures for this plan must have."""
    return Parts(Setting(plan.device, plan.seed, plan.baseline, plan.yardstick), plan.operators)


def kept_records(folder: Path) -> list[Record]:
    """The records of an earlier sitting that still count; cells that were skipped are to be measured after all."""
    path = folder / RECORDS
    return [record for record in results.read(path) if record.status != "skipped"] if path.exists() else []


class _Book:
    """Keeps the cells of one case until all have ended, for a speedup wants the baseline, and then writes them down."""

    def __init__(
        self, folder: Path, records: list[Record], baseline: str, roof: speedup.Roof, display: Display
    ) -> None:
        self._folder, self._records, self._baseline, self._roof = folder, records, baseline, roof
        self._display = display
        self._open: list[Finished] = []
        self.known = {(record.case, record.provider): record for record in records}

    def add(self, finished: Finished) -> None:
        self._open.append(finished)

    def close(self, case: Case) -> int:
        """Writes samples first: a record on disk has its samples. Gives how many were skipped."""
        ended = [finished.record for finished in self._open]
        mine = {record.provider: record for record in ended}
        speedup.add_speedups(ended, mine.get(self._baseline) or self.known.get((case, self._baseline)), self._roof)
        for finished in self._open:
            record = finished.record
            if finished.series:
                samples.append(self._folder / samples.FILE, samples.Samples(record.key, finished.series))
            results.append(self._folder / RECORDS, record)
            self._records.append(record)
            self.known[record.case, record.provider] = record
            self._display.finished(record)
        self._open = []
        return sum(record.status == "skipped" for record in ended)


def _sweep(plan: Plan, cells: Parts, measurer: Measurer, book: _Book, display: Display) -> str:
    """Runs the cells that are not known yet, and tells what stopped it."""
    skipped = 0
    for case in plan.cases:
        missing = [provider for name, provider in plan.providers.items() if (case, name) not in book.known]
        try:
            if time.monotonic() < plan.deadline:
                began = partial(display.running, case)
                measurer.measure(case, missing, book.add, began, plan.deadline)
            else:
                for provider in missing:
                    book.add(Finished(cells.record(case, provider, "skipped", BUDGET_SPENT)))
        finally:
            skipped += book.close(case)
    return "time budget" if skipped else ""
