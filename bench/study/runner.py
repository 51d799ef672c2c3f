"""Experiments x conditions x seeds -> records: each on disk as soon as it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.measure import environment
from bench.results import samples
from bench.study import records
from bench.study.choices import Scale
from bench.study.data import Data
from bench.study.experiment import Experiment
from bench.study.experiments import experiments
from bench.study.records import Run
from bench.study.setting import Setting

# (experiment, condition, seed), which is also a record's key.
Planned = tuple[str, str, int]


@dataclass(frozen=True)
class Plan:
    """What a study runs. `processes` run side by side, each on one core; 0 means in this very process."""

    chosen: tuple[Experiment, ...]
    seeds: int
    data: Data
    scale: Scale
    device: str
    processes: int = 0

    @property
    def runs(self) -> list[Planned]:
        """Seed by seed, so that a study that is stopped early has all experiments with fewer seeds."""
        return [
            (experiment.name, condition, seed)
            for seed in range(self.seeds)
            for experiment in self.chosen
            if seed == 0 or not experiment.sweep
            for condition in experiment.conditions
        ]


def run(
    plan: Plan, folder: Path, described: Mapping[str, Any], kept: Iterable[Run], finished: Callable[[Run], None]
) -> tuple[list[Run], str]:
    """Runs what is not among `kept`; gives every run, and what stopped it ("" if nothing did).

    Ctrl-C ends the study: what has been run stays, and `--resume` runs the rest.
    """
    runs = list(kept)
    done = {run.key for run in runs}
    waiting = [planned for planned in plan.runs if planned not in done]
    described = {**described, "finished": None, "complete": False, "stopped_by": "", "runs_planned": len(plan.runs)}
    samples.mend(folder / records.FILE)
    environment.write(folder, described)
    stopped_by, began = "error", time.monotonic()
    try:
        for ended in _ended(plan, waiting):
            records.append(folder, ended)
            runs.append(ended)
            finished(ended)
        stopped_by = ""
    except KeyboardInterrupt:
        stopped_by = "interrupt"
    finally:
        seconds = described.get("wall_seconds", 0.0) + time.monotonic() - began
        ending = {"finished": environment.now(), "complete": not stopped_by, "stopped_by": stopped_by}
        environment.write(folder, {**described, **ending, "wall_seconds": round(seconds, 1)})
    return runs, stopped_by


def _ended(plan: Plan, waiting: Sequence[Planned]) -> Iterator[Run]:
    """The runs as they end: one after the other here, or in processes of their own, in any order."""
    setting = Setting(plan.data.to(torch.device(plan.device)), torch.device(plan.device), plan.scale)
    if not plan.processes:
        yield from (one(setting, planned) for planned in waiting)
        return
    # Not forked: a process that has used threads or a GPU cannot be.
    pool = ProcessPoolExecutor(plan.processes, multiprocessing.get_context("spawn"), _begin, (setting,))
    try:
        going: set[Future[Run]] = {pool.submit(_in_a_process, planned) for planned in waiting}
        while going:
            over, going = wait(going, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in over)
    except BaseException:  # Ctrl-C above all, which need not wait for runs that nobody will write down
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


# Of a process that runs experiments: the images are sent to it once, and not with every run.
_settings: list[Setting] = []


def _begin(setting: Setting) -> None:
    """One thread, for the others have the other cores; Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _settings.append(setting)


def _in_a_process(planned: Planned) -> Run:
    return one(_settings[0], planned)


def one(setting: Setting, planned: Planned) -> Run:
    """One run. Whatever goes wrong in it is its own reason, and costs no other run."""
    name, condition, seed = planned
    began = time.monotonic()
    torch.manual_seed(seed)
    try:
        outcome = experiments()[name](condition, seed, setting)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        return Run(*planned, state="failed", reason=reason, seconds=time.monotonic() - began)
    return Run(
        *planned,
        values=outcome.values,
        series=outcome.series,
        state="diverged" if outcome.diverged else "ok",
        reason=outcome.diverged,
        seconds=time.monotonic() - began,
    )


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
