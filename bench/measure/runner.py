"""Runs a sweep: measures each case with each provider within the time budget, and writes records as cells end."""

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
from bench.measure import environment
from bench.measure.cell import DeviceLost, FinishedCell, RunSettings
from bench.measure.progress import ProgressDisplay
from bench.measure.providers import Provider
from bench.measure.worker import BUDGET_SPENT, SILENCE_S, InProcess, Measurer, Worker
from bench.results import records as results
from bench.results import samples, speedup
from bench.results.records import RECORDS, Record

TABLE = "records.csv"


@dataclass(frozen=True)
class RunPlan:
    """What one run measures, and how long it may take. Among `providers` the baseline comes first, for the speedups."""

    cases: tuple[Case, ...]
    providers: Mapping[str, Provider]
    operators: Mapping[str, Operator]
    baseline: str
    yardstick: Provider  # PyTorch eager, chosen or not
    device: torch.device
    seed: int
    deadline: float = float("inf")  # of time.monotonic(): what runs then is stopped, the rest is skipped
    cell_timeout: float = SILENCE_S
    isolated: bool = False  # measured in a process of its own

    @property
    def cells(self) -> int:
        return len(self.cases) * len(self.providers)

    @property
    def settings(self) -> RunSettings:
        """What every process that measures for this plan needs."""
        return RunSettings(self.device, self.seed, self.baseline, self.yardstick, self.operators)


@dataclass
class RunOutcome:
    """Every record of a run, earlier sittings' included, and what stopped it ("" if nothing did)."""

    records: list[Record] = field(default_factory=list)
    stopped_by: str = ""

    @property
    def complete(self) -> bool:
        return not self.stopped_by


def run(
    plan: RunPlan, folder: Path, described: Mapping[str, Any], kept: Iterable[Record], display: ProgressDisplay
) -> RunOutcome:
    """Measures every cell that is not among `kept`, and writes records, table and environment to the folder.

    Ctrl-C, a spent budget and a lost device end the sweep and keep what was measured: `stopped_by` says which. Any
    other exception is a mistake in the instrument; it is raised once the environment says so.
    """
    outcome = RunOutcome(list(kept), stopped_by="error")
    described = {**described, "finished": None, "complete": False, "stopped_by": "", "cells_planned": plan.cells}
    results.rewrite(folder / RECORDS, outcome.records)
    samples.mend(folder / samples.FILE)
    environment.write(folder, described)
    measurer: Measurer = Worker(plan.settings, plan.cell_timeout) if plan.isolated else InProcess(plan.settings)
    ahead = None
    if plan.isolated:
        from bench.measure.precompile import Ahead

        known = {(record.case, record.provider) for record in outcome.records}
        left = [case for case in plan.cases if any((case, name) not in known for name in plan.providers)]
        ahead = Ahead(left, plan.providers, plan.device)
    before = environment.conditions(plan.device)

    display.start(plan.cells, len(outcome.records))
    try:
        if ahead:
            ahead.kernels()
        if described.get("copy_gbps") is None:
            described["copy_gbps"] = measurer.copy_gbps()
            environment.write(folder, described)
        if ahead:
            ahead.graphs()
        roof = speedup.Roof(described["copy_gbps"], (described.get("gpu") or {}).get("l2_bytes") or 0)
        outcome.stopped_by = _sweep(plan, measurer, _CaseWriter(folder, outcome.records, plan.baseline, roof, display))
    except KeyboardInterrupt:
        outcome.stopped_by = "interrupt"
    except DeviceLost:
        pass
    finally:
        measurer.close()
        display.stop()
        if ahead and (said := ahead.close()):
            described["notes"] = [*described.get("notes", ()), said]
        ending = {"finished": environment.now(), "complete": outcome.complete, "stopped_by": outcome.stopped_by}
        conditions = {"before": before, "after": environment.conditions(plan.device)}
        environment.write(folder, {**described, **ending, "conditions": conditions})
        results.to_frame(outcome.records).to_csv(folder / TABLE, index=False)
    return outcome


def kept_records(folder: Path) -> list[Record]:
    """Returns the records of an earlier sitting that still count; cells that were skipped are measured after all."""
    path = folder / RECORDS
    return [record for record in results.read(path) if record.status != "skipped"] if path.exists() else []


class _CaseWriter:
    """Collects the cells of one case until all have ended, because a speedup needs the baseline, then writes them."""

    def __init__(
        self, folder: Path, records: list[Record], baseline: str, roof: speedup.Roof, display: ProgressDisplay
    ) -> None:
        self._folder, self._records, self._baseline, self._roof = folder, records, baseline, roof
        self.display = display
        self._open: list[FinishedCell] = []
        self.known = {(record.case, record.provider): record for record in records}

    def add(self, finished: FinishedCell) -> None:
        self._open.append(finished)

    def close(self, case: Case) -> int:
        """Writes samples before records, so that a record on disk has its samples; returns how many were skipped."""
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
            self.display.finished(record)
        self._open = []
        return sum(record.status == "skipped" for record in ended)


def _sweep(plan: RunPlan, measurer: Measurer, writer: _CaseWriter) -> str:
    """Measures the cells that are not known yet; returns what stopped it, if anything."""
    skipped = 0
    for case in plan.cases:
        missing = [provider for name, provider in plan.providers.items() if (case, name) not in writer.known]
        try:
            if time.monotonic() < plan.deadline:
                measurer.measure(case, missing, writer.add, partial(writer.display.running, case), plan.deadline)
            else:
                for provider in missing:
                    writer.add(FinishedCell(plan.settings.record(case, provider.name, "skipped", BUDGET_SPENT)))
        finally:
            skipped += writer.close(case)
    return "time budget" if skipped else ""
