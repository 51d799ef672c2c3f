"""`python -m bench.tune`: measures other values of what a plan chooses, and keeps those that are faster on this GPU.

The plan.py of a kernel family gives every choice that does not follow from shape and device a name and a default. Plans
that share their values (`row_forward 4096 2`: rows of up to 4096 columns in 16 bits) are tuned together, one value at a
time. Each is measured over all cells of the preset that have such plans, and kept where the geometric mean of their
times falls by more than noise, in rounds until nothing changes or the time is up. A cell is judged before it is timed,
as in bench.run, and measured in a process of its own (bench/measure/worker.py): a value whose result is wrong, or that
hangs or kills its process, is skipped, and the search goes on. The file is written after each plan, so that nothing
measured is lost; plans read it from then on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

from bench import cli
from bench.cases import sweep
from bench.cases.case import Case
from bench.cases.operators import operators
from bench.device_constants import device_file

# What imports torch is imported inside functions, so that a bad argument is told at once.
if TYPE_CHECKING:
    from bench.measure.cell import FinishedCell
    from bench.measure.providers import Provider
    from bench.measure.worker import Worker
    from normlib.kernels.plan import Tuning

# The values to try, by kind of plan and name. Tiles are powers of two; a program has whole warps, at most a thousand
# threads.
_BATCH_NORM = {
    "tile": (1024, 2048, 4096, 8192),
    "programs": (2, 3, 4, 6, 8),
    "stages": (1, 2, 3, 4, 6),
    "output_tiles": (1, 2, 4, 8),
    "one_tile_programs": (0, 4, 6, 8),
    "l2_percent": (0, 20, 40, 60),  # 0: whatever is moved last leaves the cache first
    "alone_tiles": (0, 1, 4, 16),
}
CANDIDATES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "row_forward": {"threads": (64, 128, 256, 512, 1024), "columns": (16, 32, 64, 96)},
    "row_forward_loop": {"threads": (128, 256, 512), "l2_percent": (0, 40, 80, 160)},  # where no program may wait
    "row_backward": {"programs": (1, 2, 3, 4, 8), "threads": (64, 128, 256, 512), "columns": (16, 24, 32, 40)},
    "batch_norm_nchw": {**_BATCH_NORM, "resident_lanes": (0, 2048, 8192, 16384)},  # 0: channels are always split
    "batch_norm_nhwc": _BATCH_NORM,
}
# Medians of do_bench on a quiet GPU differ by less from one time to the next.
NOISE = 0.01
DEFAULTS = "the defaults"

Clock = Callable[[Case, "Tuning"], float]
Values = Mapping[str, Mapping[str, int]]  # by plans, by name


@dataclass(frozen=True)
class Tuned:
    """The result for one group of plans: values other than the defaults, and their time over the defaults' (below 1).

    `cells` counts those that they were compared in, which can be measured with the defaults.
    """

    plans: str
    values: Mapping[str, int]
    ratio: float
    cells: int


def plans_of(case: Case) -> str | None:
    """Returns the group of plans that a case's time depends on; None where that is more than one, or none."""
    from bench.cases.random_inputs import TORCH_DTYPES
    from normlib.kernels.batch_norm import plan as batch_norm_plan
    from normlib.kernels.row_norm import plan as row_plan

    itemsize = TORCH_DTYPES[case.dtype].itemsize
    if case.layout != "rows":  # batch norm, fused or not
        return None if case.mode == "eval" else batch_norm_plan.batch_norm_plans(case.layout == "nhwc", itemsize)
    direction = {"fwd": "forward", "bwd": "backward"}.get(case.mode)
    return None if direction is None else row_plan.row_plans(direction, case.shape[-1], itemsize)


def search(cases: Sequence[Case], clock: Clock, end: float, known: Values | None = None) -> Iterator[Tuned]:
    """Tunes group after group until `end` (of time.monotonic); `clock` returns a case's microseconds, inf for none.

    Values that are `known` from an earlier search are tried first. A group in which the time was up before anything
    faster than the defaults was found is left out: what an earlier search found there stays.
    """
    groups: dict[str, list[Case]] = {}
    for case in cases:
        if plans := plans_of(case):
            groups.setdefault(plans, []).append(case)
    for plans, members in groups.items():
        if time.monotonic() >= end:
            return
        tuned = _tune(plans, members, clock, end, dict((known or {}).get(plans, {})))
        if tuned is not None:
            yield tuned


def _tune(plans: str, cases: Sequence[Case], clock: Clock, end: float, known: dict[str, int]) -> Tuned | None:
    from normlib.kernels.plan import UNTUNED, Tuning

    timed = [(case, clock(case, UNTUNED)) for case in cases]
    # A cell that fails with the defaults has nothing to compare with.
    default = [(case, before) for case, before in timed if before < inf]
    best: dict[str, int] = {}
    least, changed = 1.0, bool(default)
    seen = {frozenset(best.items())}
    candidates = CANDIDATES[plans.split()[0]]
    changes = [known, *({name: value} for name, values in candidates.items() for value in values)]
    while changed and time.monotonic() < end:
        changed = False
        for change in changes:
            tried = {**best, **change}
            if frozenset(tried.items()) in seen or time.monotonic() >= end:
                continue
            seen.add(frozenset(tried.items()))
            ratio = _ratio(default, clock, Tuning({plans: tried}))
            if ratio < least * (1 - NOISE):
                best, least, changed = tried, ratio, True
    if not best and time.monotonic() >= end:
        return None
    return Tuned(plans, best, least, len(default))


def _ratio(default: Iterable[tuple[Case, float]], clock: Clock, tuning: Tuning) -> float:
    """Returns the geometric mean of times over the defaults' times."""
    ratios = []
    for case, before in default:
        taken = clock(case, tuning)
        if taken == inf:
            return inf  # at once: where one cell hangs, the others are likely to, for as long each
        ratios.append(taken / before)
    return geometric_mean(ratios)


def clock_of(
    worker: Worker,
    provider: Callable[[Tuning], Provider],
    end: float = inf,
    failed: Callable[[str], None] = lambda line: None,
) -> Clock:
    """Returns a clock for cells of a provider with a tuning, judged as in any run.

    What is running at `end` (of time.monotonic) is stopped. `failed` gets a line on each candidate that is skipped.
    """

    def clock(case: Case, tuning: Tuning) -> float:
        if time.monotonic() >= end:
            return inf  # instead of starting a process that is stopped at once
        ended: list[FinishedCell] = []
        worker.measure(case, [provider(tuning)], ended.append, lambda name: None, end)
        (record,) = (finished.record for finished in ended)
        if record.status == "ok" and record.latency_us:
            return record.latency_us
        if record.status != "skipped":
            tried = "; ".join(f"{plans}: {_listed(values)}" for plans, values in tuning.values.items())
            failed(f"{case.label} with {tried or DEFAULTS}: {record.status}, {record.reason}")
        return inf

    return clock


def _listed(values: Mapping[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items()) or DEFAULTS


@cli.command("bench.tune")
def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns its exit status: 0 done, 1 device lost, 2 unusable arguments or no GPU."""
    parser = cli.Parser(prog="python -m bench.tune", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--op", default="all", help="operators, as for bench.run (default: all that have plans)")
    parser.add_argument("--preset", default="quick", help="whose cells are measured (default: quick)")
    parser.add_argument("--dtype", help="in place of the preset's")
    parser.add_argument("--time-budget", default="10m", help="such as 90s or 10m (default: 10m)")
    parser.add_argument(
        "--cell-timeout", default="60s", help="a cell that is silent for so long is stopped (default: 60s)"
    )
    parser.add_argument("--out", type=Path, help="the file (default: where plans look for this GPU)")
    given = vars(parser.parse_args(argv))
    end = time.monotonic() + cli.seconds("--time-budget", given["time_budget"])
    silence = cli.seconds("--cell-timeout", given["cell_timeout"])
    asked = {"op": given["op"], "preset": given["preset"], "dtype": given["dtype"], "mode": "fwd,bwd"}
    cases = sweep.cases(sweep.parse(asked, operators(), "quick"), operators())

    from bench.measure import devices, environment
    from bench.measure.cell import DeviceLost, RunSettings
    from bench.measure.providers import providers
    from bench.measure.worker import Worker
    from bench.tune.provider import TunedNormlib

    where = devices.gpu()
    described = environment.collect(where, {})
    file = device_file.choose(given["out"], described["device_name"])
    worker = Worker(RunSettings(where, 0, "normlib", providers()["torch"], operators()), silence)
    try:
        clock = clock_of(worker, TunedNormlib, end, lambda line: print("no candidate:", line, file=sys.stderr))
        return _run(cases, clock, end, file, described)
    except DeviceLost as error:
        print(f"bench.tune: error: the device is lost: {error}", file=sys.stderr)
        return 1
    finally:
        worker.close()


def _run(cases: Sequence[Case], clock: Clock, end: float, file: Path, described: Mapping[str, Any]) -> int:
    from bench.measure import environment

    kept = device_file.read(file)
    values, gains = kept.get("values", {}), kept.get("gains", {})
    if not any(map(plans_of, cases)):
        print("no cell of this preset has a plan to tune")
        return 0
    ending = f"nothing is written: no plans were tuned within the time, and {file} is as it was"
    for tuned in search(cases, clock, end, values):
        if not tuned.cells:
            print(f"{tuned.plans}: no cell can be measured with the defaults, and nothing changes", flush=True)
            continue
        values, gains = ({key: one for key, one in all.items() if key != tuned.plans} for all in (values, gains))
        if tuned.values:
            values[tuned.plans] = dict(tuned.values)
            gain = {"time_over_default": round(tuned.ratio, 4), "cells": tuned.cells}
            gains[tuned.plans] = {**gain, "with": device_file.versions(described, environment.now())}
        device_file.update(file, described["device_name"], values=values, gains=gains)
        speed = f"{1 / tuned.ratio:.3f}x the defaults' speed over {tuned.cells} cells"
        print(f"{tuned.plans}: {_listed(tuned.values)}, {speed}", flush=True)
        ending = f"written: {file}"
    print(ending)
    return 0


if __name__ == "__main__":
    sys.exit(main())
