"""`python -m bench.tune`: measures other values of what a plan chooses, and keeps those that are faster on this GPU.

kernels/plan_*.py give every choice that does not follow from shape and device a name and a default. Plans that share
their values (`row_forward 4096 2`: rows of up to 4096 columns in 16 bits) are tuned together: one value at a time, each
measured over all cells of the preset that have such plans, kept where their geometric mean falls by more than noise, in
rounds until nothing changes or the time is up. A cell is judged before it is timed, as in bench.run: a wrong result is
no candidate. The file is written after each plan, so that nothing measured is lost; plans read it from then on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp, inf, log
from pathlib import Path
from unittest import mock

import torch

from bench import cell, environment, sweep
from bench.case import Case
from bench.operators import operators
from bench.operators._draw import TORCH_DTYPES
from bench.providers import providers
from bench.sweep import BadArgument
from normlib.kernels import device, plan
from normlib.kernels.plan import Tuning

# What is tried, by kind of plan and value. Tiles are powers of two; a program has whole warps, and a thousand threads
# at most.
_BATCH_NORM = {
    "tile": (1024, 2048, 4096, 8192),
    "programs": (2, 4, 8, 16),
    "l2_percent": (0, 20, 40, 60),  # 0: three launches always
    "alone_tiles": (0, 1, 4, 16),
    "on_chip": (0, 1),
}
CANDIDATES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "row_forward": {"threads": (64, 128, 256, 512, 1024), "elements": (1024, 2048, 4096, 8192)},
    "row_forward_loop": {"threads": (128, 256, 512), "l2_percent": (0, 40, 80, 160)},  # 0: a row a multiprocessor
    "row_backward": {"programs": (1, 2, 4, 8, 16), "threads": (64, 128, 256, 512), "elements": (1024, 2048, 4096)},
    "batch_norm_nchw": _BATCH_NORM,
    "batch_norm_nhwc": {**_BATCH_NORM, "run": (32, 64, 128)},
}
# Medians of do_bench on a quiet GPU differ by less from one time to the next.
NOISE = 0.01

Clock = Callable[[Case, Tuning], float]


@dataclass(frozen=True)
class Tuned:
    """What came out for one group of plans: values other than the defaults, and time over the defaults' (below 1)."""

    plans: str
    values: Mapping[str, int]
    ratio: float
    cells: int


def plans_of(case: Case) -> str | None:
    """The group of plans that a case's time depends on; None where that is more than one, or none at all."""
    itemsize = TORCH_DTYPES[case.dtype].itemsize
    if case.layout != "rows":  # batch norm, fused or not
        return None if case.mode == "eval" else plan.batch_norm_plans(case.layout == "nhwc", itemsize)
    direction = {"fwd": "forward", "bwd": "backward"}.get(case.mode)
    return None if direction is None else plan.row_plans(direction, case.shape[-1], itemsize)


def search(cases: Sequence[Case], clock: Clock, end: float) -> Iterator[Tuned]:
    """Tunes group after group until `end` (of time.monotonic); `clock` gives a case's microseconds, inf where wrong."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        if plans := plans_of(case):
            groups.setdefault(plans, []).append(case)
    for plans, members in groups.items():
        if time.monotonic() >= end:
            return
        yield _tune(plans, members, clock, end)


def _tune(plans: str, cases: Sequence[Case], clock: Clock, end: float) -> Tuned:
    default = [clock(case, plan.UNTUNED) for case in cases]
    best: dict[str, int] = {}
    least, changed = 1.0, True
    seen = {frozenset(best.items())}
    while changed and time.monotonic() < end:
        changed = False
        for name, candidates in CANDIDATES[plans.split()[0]].items():
            for value in candidates:
                tried = {**best, name: value}
                if frozenset(tried.items()) in seen or time.monotonic() >= end:
                    continue
                seen.add(frozenset(tried.items()))
                ratio = _geometric_mean(
                    clock(case, Tuning({plans: tried})) / before for case, before in zip(cases, default, strict=True)
                )
                if ratio < least * (1 - NOISE):
                    best, least, changed = tried, ratio, True
    return Tuned(plans, best, least, len(cases))


def _geometric_mean(ratios: Iterator[float]) -> float:
    found = list(ratios)
    # A cell that fails with the defaults as well (inf over inf) decides nothing.
    logarithms = [log(ratio) if ratio < inf else inf for ratio in found if ratio == ratio]
    return exp(sum(logarithms) / len(logarithms)) if logarithms else inf


@contextmanager
def planning(tuning: Tuning) -> Iterator[None]:
    """Within, plans for GPUs have these values."""
    with mock.patch.object(plan, "tuning_of", lambda _: tuning):
        device._properties.cache_clear()
        try:
            yield
        finally:
            device._properties.cache_clear()


def gpu_clock(where: torch.device) -> Clock:
    """Times normlib's cells on a GPU, judged as in any run."""
    setting = cell.Setting(where, 0, "normlib", providers()["torch"])
    last: list[cell.Problem] = []

    def clock(case: Case, tuning: Tuning) -> float:
        if not last or last[0].case != case.problem:
            for problem in last:
                problem.release()
            last[:] = [cell.Problem(case.problem, operators()[case.op], setting)]
        with planning(tuning):
            ended: list[cell.Finished] = []
            last[0].measure(case, [providers()["normlib"]], ended.append)
        (record,) = (finished.record for finished in ended)
        return record.latency_us if record.status == "ok" and record.latency_us else inf

    return clock


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0 done, 2 unusable arguments or no GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--op", default="all", help="operators, as for bench.run (default: all that have plans)")
    parser.add_argument("--preset", default="quick", help="whose cells are measured (default: quick)")
    parser.add_argument("--dtype", help="in place of the preset's")
    parser.add_argument("--time-budget", default="10m", help="such as 90s or 10m (default: 10m)")
    parser.add_argument("--out", type=Path, help="the file (default: where plans look for this GPU)")
    given = vars(parser.parse_args(argv))
    try:
        end = time.monotonic() + sweep.seconds("--time-budget", given["time_budget"])
        asked = {"op": given["op"], "preset": given["preset"], "dtype": given["dtype"], "mode": "fwd,bwd"}
        cases = sweep.cases(sweep.parse(asked, operators(), "quick"), operators())
        if not torch.cuda.is_available():
            raise BadArgument("device", "a GPU is needed, and there is none: nothing is measured without one")
    except BadArgument as error:
        print("bench.tune: error:", error, file=sys.stderr)
        return 2
    where = torch.device("cuda")
    described = environment.collect(where, {})
    about = {key: described[key] for key in ("device_name", "torch", "triton", "cuda", "git_commit", "git_dirty")}
    file = given["out"] or plan.tuning_file(described["device_name"])
    return _run(cases, gpu_clock(where), end, file, {**about, "measured": environment.now()})


def _run(cases: Sequence[Case], clock: Clock, end: float, file: Path, about: Mapping[str, object]) -> int:
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    values, gains = kept.get("values", {}), kept.get("gains", {})
    for tuned in search(cases, clock, end):
        values.pop(tuned.plans, None)
        gains.pop(tuned.plans, None)
        if tuned.values:
            values[tuned.plans] = dict(tuned.values)
            gains[tuned.plans] = {"time_over_default": round(tuned.ratio, 4), "cells": tuned.cells}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**about, "values": values, "gains": gains}, indent=1) + "\n", encoding="utf-8")
        found = " ".join(f"{k}={v}" for k, v in tuned.values.items()) or "the defaults"
        print(
            f"{tuned.plans}: {found}, {1 / tuned.ratio:.3f}x the defaults' speed over {tuned.cells} cells", flush=True
        )
    print(f"written: {file}" if file.exists() else "no cell of this preset has a plan to tune")
    return 0


if __name__ == "__main__":
    sys.exit(main())
