"""`torchrun --nproc-per-node=N -m bench.run --op sync_bn ...`: measures cells of all ranks together.

In other sweeps a rank measures cells of its own until their noise is low. Here every rank must call as often as the
others, so the number of calls is fixed, in the ranks' own processes; a call's time is that of its slowest rank.
`--batch` is each rank's; inputs are batch norm's, of the whole batch, of which a rank has its rows. A step is forward
and backward. `communication_us` is the time of the step's collectives repeated without the rest, `bytes_sent` what a
rank gives to them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest import mock

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
from bench.cases.operators.batch_norm import MOMENTUM
from bench.cases.random_inputs import laid_out
from bench.cli import BadArgument
from bench.measure import accuracy, environment
from bench.measure.timing.clock import Gpu
from bench.page.formatting import plural
from bench.ranks.team import MEETING_S, START_WITH
from bench.results import records as results
from bench.results import tables
from bench.results.records import CUDA_EVENT, HOST_CPU, INTERPRETER, Record
from bench.results.thresholds import SUBJECT

OP = "sync_batch_norm"
BASELINE = "torch"
# Chosen: a median of 50 calls on a GPU; on a CPU, whose times claim nothing, enough to have one.
CALLS = {"cuda": 50, "cpu": 3}


@dataclass(frozen=True)
class RankGroup:
    """The ranks, and this process's place and device among them."""

    group: dist.ProcessGroup
    rank: int
    size: int
    device: torch.device


# (channels, eps, whether channels are innermost, group, device) -> the layer
Make = Callable[[int, float, bool, dist.ProcessGroup, torch.device], nn.Module]


@dataclass(frozen=True)
class SyncLayer:
    """A synchronized batch norm by its provider's name; the modules that it needs, and whether it needs a GPU."""

    name: str
    make: Make
    modules: tuple[str, ...] = ()
    gpu_only: str = ""  # the layer in words

    def unavailable(self, device: torch.device) -> str:
        """Returns why it cannot run on such a device, if it cannot."""
        if missing := [module for module in self.modules if find_spec(module) is None]:
            return f"not installed: {', '.join(missing)}"
        return f"{self.gpu_only} runs on GPUs only" if self.gpu_only and device.type != "cuda" else ""


def _as_pytorchs(layer: type[nn.Module]) -> Make:
    return lambda channels, eps, _, group, device: layer(channels, eps, MOMENTUM, process_group=group, device=device)


def _apex(channels: int, eps: float, last: bool, group: dist.ProcessGroup, device: torch.device) -> nn.Module:
    made = importlib.import_module("apex.parallel").SyncBatchNorm
    layer: nn.Module = made(channels, eps, MOMENTUM, process_group=group, channel_last=last).to(device)
    return layer


_LAYERS = (
    SyncLayer("torch", _as_pytorchs(nn.SyncBatchNorm), gpu_only="PyTorch's SyncBatchNorm"),
    SyncLayer("normlib", _as_pytorchs(normlib.SyncBatchNorm)),
    # Without its extension syncbn, apex falls back to Python, which is not the layer that is asked for.
    SyncLayer("apex", _apex, ("apex", "syncbn"), "Apex's SyncBatchNorm"),
)
LAYERS = {layer.name: layer for layer in _LAYERS}


def main(
    given: Mapping[str, Any],
    device: torch.device,
    operator: Operator,
    folder_of: Callable[[str], Path],
    typed: list[str],
    render: Callable[[Path], Path],
) -> int:
    """Measures batch norm's cases, as parsed, with every layer; returns 1 where a cell of the subject is wrong."""
    asked = sweep.parse({**given, "op": operator.short, "mode": "fwd_bwd"}, {operator.name: operator}, "smoke")
    names = cli.some_of("--providers", given["providers"] or ",".join(LAYERS), LAYERS)
    subject = cli.among("--subject", given["subject"], names, LAYERS) if given["subject"] else SUBJECT
    cases = sweep.cases(asked, {operator.name: operator})
    here = _joined(device)
    try:
        described = environment.collect(device, {}) | {"ranks": here.size}
        _check_alike(here, described, cases)
        console = Console(highlight=False, quiet=here.rank > 0, width=160)
        ranks = f"{plural(here.size, 'rank')} of {described['device_name']}"
        console.print(f"{plural(len(cases), 'case')} x {', '.join(names)} on {ranks}")
        records: list[Record] = []
        for case in cases:
            found = [measure_cell(case, LAYERS[name], operator, here, int(given["seed"] or 0)) for name in names]
            baseline = next((record.latency_us for record in found if record.provider == BASELINE), None)
            for record in found:
                # Only a GPU's clock supports a claim of speed, and only of what is right.
                if baseline and record.latency_us and (record.clock, record.status) == (CUDA_EVENT, "ok"):
                    record.speedup = baseline / record.latency_us
                console.print(_line(record), markup=False, soft_wrap=True)
            records += found
        if here.rank == 0:
            folder = folder_of(f"sync_bn-{device.type}")
            _write(folder, records, described | {"subject": subject}, typed, given)
            console.print(f"report: {render(folder)}", markup=False, soft_wrap=True)
        dist.barrier(here.group)
    finally:
        dist.destroy_process_group()
    return int(any(r.provider == subject and r.status in ("wrong", "crash") for r in records))


def _joined(device: torch.device) -> RankGroup:
    try:
        # NCCL for what lies on GPUs; gloo for CPUs, and for what ranks say to each other.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=MEETING_S))
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".").rpartition("rendezvous: ")[2]
        raise BadArgument("--op", f"sync_bn needs ranks: {reason}; {START_WITH}") from error
    group = dist.group.WORLD
    assert group is not None
    return RankGroup(group, dist.get_rank(), dist.get_world_size(), device)


def _check_alike(here: RankGroup, described: Mapping[str, Any], cases: list[Case]) -> None:
    every: list[Any] = [None] * here.size
    dist.all_gather_object(every, (described, [case.label for case in cases]))
    for rank, (theirs, labels) in enumerate(every):
        changed = environment.differences(every[0][0], theirs, ())
        changed += ["its arguments give other cells"] if labels != every[0][1] else []
        if changed:
            raise BadArgument("torchrun", f"rank {rank} is not like rank 0: {'; '.join(changed)}")


def measure_cell(case: Case, layer: SyncLayer, operator: Operator, here: RankGroup, seed: int) -> Record:
    """Measures one cell on all ranks; every rank returns the same record."""
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
        reason=layer.unavailable(here.device),
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

    with recorded_collectives() as sent:
        own = step()
    found = _gathered(own, here)
    found |= {name: getattr(norm, name).clone() for name in ("running_mean", "running_var")}
    reference = operator.reference(whole, inputs)
    reference = {name: reference[name] for name in operator.outputs("fwd_bwd")}
    amplification = operator.amplification(inputs, reference)
    record.errors = accuracy.check(found, reference, operator.dtypes(inputs), None, 1, amplification)
    record.status, record.reason = accuracy.verdict(record.errors)

    on_cpu = INTERPRETER if record.backend == INTERPRETER else HOST_CPU
    record.clock = CUDA_EVENT if here.device.type == "cuda" else on_cpu
    times = _timed(step, here)
    record.latency_us, record.samples = median(times), len(times)
    record.latency_us_p10, record.latency_us_p90 = (float(q) for q in np.quantile(times, (0.1, 0.9)))
    record.latency_us_min = min(times)
    record.bytes_sent = sum(one.bytes for one in sent)
    repeated = [one.again(here.group, here.device) for one in sent]
    record.communication_us = median(_timed(lambda: [call() for call in repeated], here)) if sent else 0.0
    return record


def _gathered(step: Mapping[str, Tensor], here: RankGroup) -> dict[str, Tensor]:
    """Returns the whole batch's y and dx, and the sums of all ranks' dw and db, as DistributedDataParallel's are."""
    found = {}
    for name, tensor in step.items():
        every = [torch.empty_like(tensor.contiguous()) for _ in range(here.size)]
        dist.all_gather(every, tensor.contiguous(), group=here.group)
        summed = torch.stack(every).double().sum(0).to(tensor.dtype)
        found[name] = torch.cat(every) if name in ("y", "dx") else summed
    return found


def _timed(run: Callable[[], object], here: RankGroup) -> list[float]:
    """Returns the microseconds of each call on its slowest rank; a GPU's cache is cold."""
    times = []
    gpu = Gpu(here.device) if here.device.type == "cuda" else None
    run()  # warm
    for _ in range(CALLS[here.device.type]):
        if gpu is not None:
            gpu.flush()
            gpu.synchronize()
        dist.barrier(here.group)
        if gpu is not None:
            first, last = gpu.event(), gpu.event()
            first.record()
            run()
            last.record()
            gpu.synchronize()
            times.append(1e3 * first.elapsed_time(last))
        else:
            began = perf_counter()
            run()
            times.append(1e6 * (perf_counter() - began))
    slowest = torch.tensor(times, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX, group=here.group)
    return [float(t) for t in slowest]


@dataclass(frozen=True)
class SentCollective:
    """One collective as a rank took part in it: its name in torch.distributed, and what the rank gave."""

    name: str
    numel: int
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def again(self, group: dist.ProcessGroup, device: torch.device) -> Callable[[], Any]:
        """Returns the same collective on zeros, ready to be called."""
        mine = torch.zeros(self.numel, dtype=self.dtype, device=device)
        call = getattr(dist, self.name)
        if self.name == "all_reduce":
            return lambda: call(mine, group=group)
        every = mine.new_empty(group.size() * self.numel)
        parts = list(every.chunk(group.size())) if self.name == "all_gather" else every
        return lambda: call(parts, mine, group=group)


# By name: which argument a rank gives. all_gather_into_tensor is all_gather_single's older name.
_GIVEN = {"all_gather_single": 1, "all_gather_into_tensor": 1, "all_gather": 1, "all_reduce": 0}


@contextmanager
def recorded_collectives() -> Iterator[list[SentCollective]]:
    """Yields the list that collectives called meanwhile, through torch.distributed, are added to."""
    found: list[SentCollective] = []
    inside = False

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:  # one name calls another
                return call(*args, **kwargs)
            given: Tensor = args[_GIVEN[name]]
            found.append(SentCollective(name, given.numel(), given.dtype))
            inside = True
            try:
                return call(*args, **kwargs)
            finally:
                inside = False

        return recorded

    with ExitStack() as patches:
        for name in _GIVEN:
            if hasattr(dist, name):
                patches.enter_context(mock.patch.object(dist, name, watched(name, getattr(dist, name))))
        yield found


def _line(record: Record) -> str:
    cell = f"{record.status}: {record.case.label} {record.provider}"
    if record.latency_us is None:
        return f"{cell}: {record.reason}"
    error = max(e.rel_l2_error or 0.0 for e in record.errors)
    alone = f", {record.communication_us:.0f} us of them for {record.bytes_sent} bytes" if record.bytes_sent else ""
    claimed = "" if record.clock == CUDA_EVENT else f" ({record.clock}: no claim of speed)"
    return f"{cell}: largest relative error {error:.1e}; {record.latency_us:.0f} us{alone}{claimed}"


def _write(
    folder: Path, records: list[Record], described: Mapping[str, Any], typed: list[str], given: Mapping[str, Any]
) -> None:
    results.rewrite(folder / results.RECORDS, records)
    tables.write(folder, records)
    environment.write(
        folder,
        {
            **described,
            "run": folder.resolve().name,
            "started": environment.now(),
            "finished": environment.now(),
            "command": environment.command(typed),
            "seed": records[0].seed,
            "baseline": BASELINE if any(record.provider == BASELINE for record in records) else "",
            "copy_gbps": None,
            "arguments": {**given, "op": "sync_bn"},
            "notes": [f"measured by {plural(described['ranks'], 'rank')} together; --batch is each rank's"],
            "complete": True,
            "stopped_by": "",
            "cells_planned": len(records),
        },
    )
