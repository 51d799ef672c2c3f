"""`torchrun --nproc-per-node=N -m bench.run --op sync_bn ...`: cells that all ranks measure together.

Elsewhere a rank measures cells of its own until their noise is low. Here every rank must call as often as the others,
so the number of calls is fixed, in the ranks' own processes; a call's time is that of its slowest rank. `--batch` is
each rank's; inputs are batch norm's, of the whole batch, of which a rank has its rows. A step is forward and backward.
`communication_us` is that of the step's collectives repeated alone, `bytes_sent` what a rank gives to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn

import normlib
from bench import cli
from bench.cases import sweep
from bench.cases.case import Case
from bench.cases.operators import Operator
from bench.cases.operators.batch_norm import laid_out
from bench.cli import BadArgument
from bench.measure import accuracy, environment, runner
from bench.measure.telemetry import cache_bytes
from bench.ranks.collectives import Sent, recording
from bench.ranks.sync_layers import LAYERS, Layer
from bench.ranks.team import MEETING_S
from bench.report import render
from bench.results import records as results
from bench.results.records import CUDA_EVENT, HOST_CPU, INTERPRETER, Record

OP = "sync_batch_norm"
BASELINE = "torch"
# Chosen: a median of 50 calls on a GPU; on a CPU, whose times claim nothing, enough to have one.
CALLS = {"cuda": 50, "cpu": 3}


@dataclass(frozen=True)
class _Group:
    group: dist.ProcessGroup
    rank: int
    size: int
    device: torch.device


def main(
    given: Mapping[str, Any],
    device: torch.device,
    operator: Operator,
    folder_of: Callable[[str], Path],
    typed: list[str],
) -> int:
    """Measures batch norm's cases, as parsed, with every layer; 0, 1 where a normlib cell is wrong, as bench.run."""
    cases, layers = _planned(given, operator, device)
    here = _joined(device)
    try:
        described = environment.collect(device, {}) | {"ranks": here.size}
        _alike(here, described, cases)
        console = Console(highlight=False, quiet=here.rank > 0, width=160)
        console.print(f"{len(cases)} cases x {', '.join(layers)} on {here.size} ranks of {described['device_name']}")
        records: list[Record] = []
        for case in cases:
            found = [_measured(case, layer, operator, here, int(given["seed"] or 0)) for layer in layers.values()]
            _compare(found)
            for record in found:
                error = max((e.rel_l2_error or 0.0 for e in record.errors), default=None)
                console.print(_line(record, error), markup=False, soft_wrap=True)
            records += found
        if here.rank == 0:
            folder = folder_of(f"sync_bn-{device.type}")
            _write(folder, records, described, [*layers], typed, dict(given))
            console.print(f"report: {render(folder)}", markup=False, soft_wrap=True)
        dist.barrier(here.group)
    finally:
        dist.destroy_process_group()
    return int(any(r.provider == "normlib" and r.status in ("wrong", "crash") for r in records))


def _planned(given: Mapping[str, Any], operator: Operator, device: torch.device) -> tuple[list[Case], dict[str, Layer]]:
    asked = sweep.parse({**given, "op": operator.short, "mode": "fwd_bwd"}, {operator.name: operator}, "smoke")
    names = cli.some_of("--providers", given["providers"] or ",".join(LAYERS), LAYERS)
    return sweep.cases(asked, {operator.name: operator}), {name: LAYERS[name] for name in names}


def _joined(device: torch.device) -> _Group:
    try:
        # NCCL for what lies on GPUs; gloo for CPUs, and for what ranks say to each other.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=MEETING_S))
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".").rpartition("rendezvous: ")[2]
        raise BadArgument(
            "--op", f"sync_bn needs ranks: {reason}; start it with torchrun --nproc-per-node=N -m bench.run ..."
        ) from error
    group = dist.group.WORLD
    assert group is not None
    return _Group(group, dist.get_rank(), dist.get_world_size(), device)


def _alike(here: _Group, described: Mapping[str, Any], cases: list[Case]) -> None:
    every: list[Any] = [None] * here.size
    dist.all_gather_object(every, (described, [case.label for case in cases]))
    for rank, (theirs, labels) in enumerate(every):
        changed = environment.differences(every[0][0], theirs, ())
        changed += ["its arguments give other cells"] if labels != every[0][1] else []
        if changed:
            raise BadArgument("torchrun", f"rank {rank} is not like rank 0: {'; '.join(changed)}")


def _measured(case: Case, layer: Layer, operator: Operator, here: _Group, seed: int) -> Record:
    """One cell, on all ranks; every rank gives the same record."""
    batch, *rest = case.shape
    whole = replace(case, shape=(batch * here.size, *rest))
    record = Record(
        op=OP,
        shape=list(whole.shape),
        axes={**dict(case.axes), "ranks": here.size},
        dtype=case.dtype,
        layout=case.layout,
        mode=case.mode,
        eps=case.eps,
        provider=layer.name,
        backend=normlib.backend_for(torch.empty(0, device=here.device)) if layer.name == "normlib" else layer.name,
        device=here.device.type,
        status="unsupported",
        reason=layer.unavailable(here.device) or "",
        bytes_moved=operator.bytes_moved(case),
        baseline=BASELINE,
        seed=seed,
    )
    if record.reason:
        return record
    inputs = operator.inputs(whole, here.device, seed)
    mine = slice(batch * here.rank, batch * (here.rank + 1))
    x, dy = (laid_out(inputs[name][mine].clone(), case.layout) for name in ("x", "dy"))
    x.requires_grad_()
    norm = layer.make(case.shape[1], case.eps, case.layout == "nhwc", here.group, here.device)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.weight is not None
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).copy_(inputs[name])

    def step() -> dict[str, Tensor]:
        y = norm(x)
        dx, dw, db = torch.autograd.grad(y, (x, norm.weight, norm.bias), dy)
        return {"y": y.detach(), "dx": dx, "dw": dw, "db": db}

    with recording() as sent:
        own = step()
    found = _gathered(own, here)
    found |= {name: getattr(norm, name).clone() for name in ("running_mean", "running_var")}
    truth = operator.reference(whole, inputs)
    truth = {name: truth[name] for name in operator.outputs("fwd_bwd")}
    amplification = operator.amplification(inputs, truth)
    record.errors = accuracy.check(found, truth, operator.dtypes(inputs), None, 1, amplification)
    record.status, record.reason = accuracy.verdict(record.errors)

    record.clock = CUDA_EVENT if here.device.type == "cuda" else HOST_CPU
    record.clock = INTERPRETER if record.backend == INTERPRETER else record.clock
    times = _timed(step, here)
    record.latency_us, record.samples = median(times), len(times)
    record.latency_us_p10, record.latency_us_p90 = (float(q) for q in np.quantile(times, (0.1, 0.9)))
    record.latency_us_min = min(times)
    record.bytes_sent = sum(one.bytes for one in sent)
    record.communication_us = median(_timed(_again(sent, here), here)) if sent else 0.0
    return record


def _again(sent: list[Sent], here: _Group) -> Callable[[], None]:
    calls = [one.again(here.group, here.device) for one in sent]

    def run() -> None:
        for call in calls:
            call()

    return run


def _gathered(step: Mapping[str, Tensor], here: _Group) -> dict[str, Tensor]:
    """The whole batch's y and dx, and the sums of every rank's dw and db, as DistributedDataParallel's would be."""
    found = {}
    for name, tensor in step.items():
        every = [torch.empty_like(tensor.contiguous()) for _ in range(here.size)]
        dist.all_gather(every, tensor.contiguous(), group=here.group)
        wide = tensor.dtype
        found[name] = (
            torch.cat(every) if name in ("y", "dx") else torch.stack([e.double() for e in every]).sum(0).to(wide)
        )
    return found


def _timed(run: Callable[[], object], here: _Group) -> list[float]:
    """Microseconds of each call, of the slowest rank's; nothing of theirs in a GPU's cache."""
    calls, times = CALLS[here.device.type], []
    on_gpu = here.device.type == "cuda"
    flush = torch.empty(2 * cache_bytes(here.device), dtype=torch.int8, device=here.device) if on_gpu else None
    run()  # warm
    for _ in range(calls):
        if flush is not None:
            flush.zero_()
            torch.cuda.synchronize(here.device)
        dist.barrier(here.group)
        if on_gpu:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            run()
            last.record()
            torch.cuda.synchronize(here.device)
            times.append(1e3 * first.elapsed_time(last))
        else:
            began = perf_counter()
            run()
            times.append(1e6 * (perf_counter() - began))
    slowest = torch.tensor(times, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX, group=here.group)
    return [float(t) for t in slowest]


def _compare(records: list[Record]) -> None:
    """Speedups over PyTorch's layer; a claim that only a GPU's clock supports, and only of what is right."""
    baseline = next((r for r in records if r.provider == BASELINE and r.latency_us), None)
    for record in records:
        if (
            baseline
            and baseline.latency_us
            and record.latency_us
            and (record.clock, record.status) == (CUDA_EVENT, "ok")
        ):
            record.speedup = baseline.latency_us / record.latency_us


def _line(record: Record, error: float | None) -> str:
    cell = f"{record.status}: {record.case.label} {record.provider}"
    if record.latency_us is None:
        return f"{cell}: {record.reason}"
    alone = f", {record.communication_us:.0f} us of them for {record.bytes_sent} bytes" if record.bytes_sent else ""
    claimed = "" if record.clock == CUDA_EVENT else f" ({record.clock}: no claim of speed)"
    return f"{cell}: largest relative error {error:.1e}; {record.latency_us:.0f} us{alone}{claimed}"


def _write(
    folder: Path,
    records: list[Record],
    described: Mapping[str, Any],
    providers: list[str],
    typed: list[str],
    given: dict[str, Any],
) -> None:
    for record in records:
        results.append(folder / results.RECORDS, record)
    results.to_frame(records).to_csv(folder / runner.TABLE, index=False)
    environment.write(
        folder,
        {
            **described,
            "run": folder.resolve().name,
            "started": environment.now(),
            "finished": environment.now(),
            "command": environment.command(typed),
            "seed": records[0].seed,
            "baseline": BASELINE if BASELINE in providers else "",
            "copy_gbps": None,
            "arguments": {**given, "op": "sync_bn"},
            "notes": [f"measured by {described['ranks']} ranks together; --batch is each rank's"],
            "complete": True,
            "stopped_by": "",
            "cells_planned": len(records),
        },
    )
