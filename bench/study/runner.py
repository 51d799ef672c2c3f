"""Runs experiments x conditions x seeds; each record is on disk as soon as its run ends."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

import torch

from bench.measure import environment
from bench.measure.ending import ending
from bench.results import samples
from bench.study import records
from bench.study.experiments import BY_NAME
from bench.study.records import StudyRun
from bench.study.training import StudySetting

# (experiment, condition, seed), which is also a record's key.
RunKey = tuple[str, str, int]


def run(
    setting: StudySetting,
    planned: Sequence[RunKey],
    processes: int,
    folder: Path,
    described: Mapping[str, Any],
    kept: Iterable[StudyRun],
    finished: Callable[[StudyRun], None],
) -> tuple[list[StudyRun], str]:
    """Runs what is planned and not among `kept`. Returns every run, and what stopped the study ("" if nothing did).

    `processes` run side by side, each on one core; 0 means in this very process. Ctrl-C ends the study: finished runs
    stay, and `--resume` runs the rest.
    """
    runs = list(kept)
    done = {run.key for run in runs}
    waiting = [key for key in planned if key not in done]
    described = {**described, "finished": None, "complete": False, "stopped_by": "", "runs_planned": len(planned)}
    samples.mend(folder / records.FILE)
    environment.write(folder, described)
    stopped_by, began = "error", time.monotonic()
    try:
        for ended in _ended(setting, waiting, processes):
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


def _ended(setting: StudySetting, waiting: Sequence[RunKey], processes: int) -> Iterator[StudyRun]:
    """Yields the runs as they end: one after the other here, or in processes of their own, in any order."""
    if not processes:
        yield from (run_one(setting, key) for key in waiting)
        return
    others = set(multiprocessing.active_children())  # the caller's own
    # Not forked: a process that has used threads or a GPU cannot be.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (setting,))
    try:
        for future in as_completed([pool.submit(_run_in_process, key) for key in waiting]):
            yield future.result()
    except BaseException:  # Ctrl-C in particular, which does not wait for runs that nobody will write down
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


# Of a process that runs experiments: the images are sent to it once, and not with every run.
_settings: list[StudySetting] = []


def _begin(setting: StudySetting) -> None:
    """Prepares a process: one thread, because the others have the other cores; Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _settings.append(setting)


def _run_in_process(key: RunKey) -> StudyRun:
    return run_one(_settings[0], key)


def run_one(setting: StudySetting, key: RunKey) -> StudyRun:
    """Runs one condition with one seed. An exception becomes the record's reason, and costs no other run."""
    name, condition, seed = key
    began = time.monotonic()
    torch.manual_seed(seed)
    try:
        outcome = BY_NAME[name].run(condition, seed, setting)
    except Exception as error:
        return StudyRun(*key, state="failed", reason=ending(error)[1], seconds=time.monotonic() - began)
    seconds = time.monotonic() - began
    state: Literal["ok", "diverged"] = "diverged" if outcome.diverged else "ok"
    return StudyRun(*key, outcome.values, outcome.series, state, outcome.diverged, seconds)
