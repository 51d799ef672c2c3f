"""Cases x providers -> records: in order, within the time budget, and on disk as soon as each cell ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby, product
from pathlib import Path
from typing import Any

import torch

from bench import cell, environment, results, timing
from bench.case import Case
from bench.operators import Operator
from bench.progress import Display
from bench.providers import Provider
from bench.results import Record

RECORDS = "records.jsonl"
TABLE = "records.csv"
BUDGET_SPENT = "the time budget was spent"


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
    time_budget: float | None = None  # seconds

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
    environment.write(folder, described)

    def record(finished: Record) -> None:
        results.append(folder / RECORDS, finished)
        outcome.records.append(finished)
        display.finished(finished)

    display.start(plan.cells, len(outcome.records))
    try:
        if plan.device.type == "cuda" and described.get("copy_gbps") is None:
            described["copy_gbps"] = timing.copy_bandwidth(plan.device)
            environment.write(folder, described)
        outcome.stopped_by = _sweep(plan, described.get("copy_gbps"), outcome.records, record, display)
    except KeyboardInterrupt:
        outcome.stopped_by = "interrupt"
    finally:
        display.stop()
        ending = {"finished": environment.now(), "complete": outcome.complete, "stopped_by": outcome.stopped_by}
        environment.write(folder, {**described, **ending})
        results.to_frame(outcome.records).to_csv(folder / TABLE, index=False)
    return outcome


def kept_records(folder: Path) -> list[Record]:
    """The records of an earlier sitting that still count; cells that were skipped are to be measured after all."""
    path = folder / RECORDS
    return [record for record in results.read(path) if record.status != "skipped"] if path.exists() else []


def _sweep(
    plan: Plan, copy_gbps: float | None, known: list[Record], record: Callable[[Record], None], display: Display
) -> str:
    """Runs the cells that are not known yet, and tells what stopped it."""
    deadline = float("inf") if plan.time_budget is None else time.monotonic() + plan.time_budget
    done = {(r.case, r.provider): r for r in known}
    stopped_by = ""
    setting = cell.Setting(plan.device, plan.seed, plan.baseline, copy_gbps, plan.yardstick)
    for shared, group in groupby(plan.cases, key=lambda case: case.problem):
        problem = cell.Problem(shared, plan.operators[shared.op], setting)
        for case, name in product(group, plan.providers):
            if (case, name) in done:
                continue
            if time.monotonic() >= deadline:
                stopped_by = "time budget"
                record(problem.record(case, plan.providers[name], "skipped", BUDGET_SPENT))
                continue
            display.running(case, name)
            provider = plan.providers[name]
            timed = case.inputs == "normal" and provider.timed
            finished = problem.measure(case, provider, done.get((case, plan.baseline)), timed)
            done[case, name] = finished
            record(finished)
            if not _alive(plan.device):
                return "error"
        problem.release()
    return stopped_by


def _alive(device: torch.device) -> bool:
    """Whether the device still answers: after an illegal access every later call in this process would fail."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True
