"""Runs a sweep: measures each case with each provider within the time budget, and writes records as cells end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import writing
from bench.cases.case import Case
from bench.cases.operators import Operator
from bench.measure import environment
from bench.measure.cell import DeviceLost, FinishedCell, RunSettings
from bench.measure.progress import ProgressDisplay
from bench.measure.providers import Provider
from bench.measure.worker import BUDGET_SPENT, SILENCE_S, InProcess, Worker
from bench.results import records as results
from bench.results import samples, speedup, tables
from bench.results.records import RECORDS, TRACES, Record


@dataclass(frozen=True)
class RunPlan:
    """The cells of one run and the time that they may take. The baseline comes first among `providers`."""

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
    energies: bool = False  # measured too, where the device counts them

    @property
    def cells(self) -> int:
        return len(self.cases) * len(self.providers)

    @property
    def settings(self) -> RunSettings:
        """The settings for each process that measures for this plan."""
        return RunSettings(self.device, self.seed, self.baseline, self.yardstick, self.operators, self.energies)


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
    other exception is raised once the environment says so: Unwritable, or a mistake in the instrument.
    """
    outcome = RunOutcome(list(kept), stopped_by="error")
    described = {**described, "finished": None, "complete": False, "stopped_by": "", "cells_planned": plan.cells}
    results.rewrite(folder / RECORDS, outcome.records)
    samples.mend(folder / samples.FILE)
    environment.write(folder, described)
    measurer = Worker(plan.settings, plan.cell_timeout) if plan.isolated else InProcess(plan.settings)
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
        outcome.stopped_by = _sweep(plan, measurer, folder, outcome.records, roof, display)
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
        tables.write(folder, outcome.records)
    return outcome


def kept_records(folder: Path) -> list[Record]:
    """Returns the records of an earlier sitting that still count; cells that were skipped are measured after all."""
    path = folder / RECORDS
    return [record for record in results.read(path) if record.status != "skipped"] if path.exists() else []


def _sweep(
    plan: RunPlan,
    measurer: Worker | InProcess,
    folder: Path,
    records: list[Record],
    roof: speedup.Roof,
    display: ProgressDisplay,
) -> str:
    """Measures the cells that are not among the records, case by case, and adds them; returns what stopped it."""
    known = {(record.case, record.provider): record for record in records}
    skipped = 0
    for case in plan.cases:
        missing = [provider for name, provider in plan.providers.items() if (case, name) not in known]
        ended: list[FinishedCell] = []
        try:
            if time.monotonic() < plan.deadline:
                measurer.measure(case, missing, ended.append, partial(display.running, case), plan.deadline)
            else:
                rest = (plan.settings.record(case, one.name, "skipped", BUDGET_SPENT) for one in missing)
                ended += map(FinishedCell, rest)
        finally:
            # Written when all have ended, because a speedup needs the baseline.
            measured = {finished.record.provider: finished.record for finished in ended}
            baseline = measured.get(plan.baseline) or known.get((case, plan.baseline))
            speedup.add_speedups(measured.values(), baseline, roof)
            for finished in ended:
                record = finished.record
                if finished.series:  # before its record: a record on disk has its samples
                    samples.append(folder / samples.FILE, samples.Samples(record.key, finished.series))
                if finished.trace:
                    writing.append(folder / TRACES, f"{record.key}\n{finished.trace}\n")
                results.append(folder / RECORDS, record)
                records.append(record)
                display.finished(record)
                skipped += record.status == "skipped"
    return "time budget" if skipped else ""
