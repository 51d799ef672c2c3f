"""Measures a device's constants (bandwidths, launches, barriers) by the clock that times cells.

A time per round, launch or wait is the slope between a call with one of them and a call with many, which leaves out
what a call costs besides. bench/device_constants/__main__.py says what each figure is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from bench.device_constants.kernels import barriers_kernel, copy_kernel, empty_kernel, read_kernel
from bench.measure import telemetry
from bench.measure.sampling import SamplingAborted, StoppingRule
from bench.measure.timing.clock import BlockTimer, Gpu
from bench.measure.timing.phases import Call, NotCaptured, Phases, capture
from normlib.kernels import plan
from normlib.kernels.host import device_of

SIZES = tuple(1 << power for power in range(24, 32))  # bytes: 16 MiB to 2 GiB
# Two dozen series of so many seconds, and what the compiler takes, fit into the 20 s of the whole.
RULE = StoppingRule(budget_s=0.15)
# Rounds, launches and waits of the longer call.
MANY = 33
HOST_REPEATS = 20
# Of the sweeps: four loads of 128 bits a thread, and as many threads as a multiprocessor holds.
BLOCK, WARPS, PROGRAMS = 4096, 8, 8

Block = Callable[[BlockTimer], list[float]]
Figure = dict[str, Any]


class Unmeasured(Exception):
    """A figure cannot be had; the text says why, in one line."""


def medians(phases: Phases, runs: Mapping[str, Call], block: Block) -> dict[str, float]:
    """Returns the microseconds of a call of each run; raises what a run raises, or Unmeasured."""
    timers = phases.each(phases.timer, runs)
    try:
        found = phases.in_turns(block, timers, RULE)
    except SamplingAborted as lost:
        raise list(lost.errors.values())[-1] from lost
    for name in runs:
        if name in phases.failed:
            raise phases.failed[name]
        if timers[name].host_bound:
            raise Unmeasured(f"{name}: calls wait for the device, so that the host is in their time")
    return {name: median(series.samples) for name, series in found.items()}


def bandwidths(phases: Phases, runs: Mapping[int, Call], ways: int) -> dict[str, float]:
    """Returns the GB/s of cold calls by bytes of the tensor; a call moves the tensor `ways` times."""
    found = medians(phases, {str(size): run for size, run in runs.items()}, BlockTimer.cold)
    return {size: _rounded(ways * int(size) / us / 1e3) for size, us in found.items()}


def slope(phases: Phases, run_of: Callable[[int], Call]) -> float:
    """Returns the microseconds that one more round, launch or wait adds to a call; `run_of` takes their number."""
    found = medians(phases, {str(count): run_of(count) for count in (1, MANY)}, BlockTimer.hot)
    return (found[str(MANY)] - found["1"]) / (MANY - 1)


def host_us(gpu: Gpu, launch: Call) -> float:
    """Returns the microseconds that one launch takes the host while the device is idle."""
    taken = []
    for _ in range(HOST_REPEATS):
        gpu.synchronize()
        began = gpu.now()
        for _ in range(MANY):
            launch()
        taken.append(gpu.now() - began)
    gpu.synchronize()
    return 1e6 * median(taken) / MANY


@dataclass(frozen=True)
class Session:
    """A device with its clock, and what a plan knows of it."""

    gpu: Gpu
    phases: Phases
    device: torch.device
    facts: plan.Device
    sizes: Sequence[int] = SIZES


def session(device: torch.device, sizes: Sequence[int] = SIZES) -> Session:
    """Returns a session on a GPU, which must be the current one, for tensors of these bytes."""
    gpu = Gpu(device)
    return Session(gpu, Phases(gpu, telemetry.monitor(device)), device, device_of(torch.empty(1, device=device)), sizes)


def copy_figure(on: Session) -> Figure:
    """Returns the bandwidth of PyTorch's copies."""
    source, target = _floats(on, _sizes(on)[-1]), _floats(on, _sizes(on)[-1])

    def copies(size: int) -> Call:
        here, there = source[: size // 4], target[: size // 4]
        return lambda: there.copy_(here)

    return {"gbps": bandwidths(on.phases, {size: copies(size) for size in _sizes(on)}, 2)}


def read_figure(on: Session) -> Figure:
    """Returns the bandwidth of loads without stores."""
    x = _floats(on, _sizes(on)[-1])
    return {"gbps": bandwidths(on.phases, {size: reading(x[: size // 4], 1, on.facts) for size in _sizes(on)}, 1)}


def l2_figure(on: Session) -> Figure:
    """Returns the bandwidths of tensors that stay in the L2."""
    size = on.facts.l2 // 3 // (4 * BLOCK) * 4 * BLOCK
    if not size:
        raise Unmeasured("the device does not tell the size of its L2")
    x, y = _floats(on, size), _floats(on, size)
    read = slope(on.phases, lambda rounds: reading(x, rounds, on.facts))
    copied = slope(on.phases, lambda rounds: copying(y, x, rounds, on.facts))
    return {"bytes": size, "read_gbps": _gbps(size, read), "copy_gbps": _gbps(2 * size, copied)}


def launch_figure(on: Session, captured: Callable[[Call], Any] = capture) -> Figure:
    """Returns the time of one more launch in a stream, in a CUDA graph, and on the host."""
    stream = slope(on.phases, launching)
    try:
        graph = slope(on.phases, lambda launches: captured(launching(launches)).replay)
    except NotCaptured as error:
        raise Unmeasured(f"no CUDA graph: {error}") from error
    return {
        "stream_us": _rounded(stream),
        "graph_us": _rounded(graph),
        "host_us": _rounded(host_us(on.gpu, launching(1))),
    }


def barrier_figure(on: Session) -> Figure:
    """Returns the time of one more wait, with a program on each multiprocessor."""
    if not on.facts.cooperative:
        raise Unmeasured("programs of one launch cannot be relied on to run at the same time on this device")
    programs = on.facts.multiprocessors
    counters = torch.zeros(2, dtype=torch.int32, device=on.device)
    seen = torch.zeros(programs, dtype=torch.int32, device=on.device)
    for waits in (1, MANY):
        waiting(seen, counters, waits, launch_cooperative_grid=True)()
        check_barriers(seen, counters, waits)
    us = slope(on.phases, lambda waits: waiting(seen, counters, waits, launch_cooperative_grid=True))
    if counters.any():
        raise Unmeasured(f"the barrier has left its counters at {counters.tolist()}")
    return {"us": _rounded(us), "programs": programs}


FIGURES: Mapping[str, Callable[[Session], Figure]] = {
    "copy": copy_figure,
    "read": read_figure,
    "l2": l2_figure,
    "launch": launch_figure,
    "barrier": barrier_figure,  # the last, for it may hang
}


def reading(x: torch.Tensor, rounds: int, facts: plan.Device, block: int = BLOCK) -> Call:
    """Returns a launch that reads all of x `rounds` times."""
    grid = _grid(x, facts, block)
    sums = torch.empty(grid, dtype=torch.float32, device=x.device)
    return lambda: read_kernel[grid](sums, x, x.numel(), rounds, BLOCK=block, num_warps=WARPS)


def copying(y: torch.Tensor, x: torch.Tensor, rounds: int, facts: plan.Device, block: int = BLOCK) -> Call:
    """Returns a launch that copies all of x to y `rounds` times."""
    grid = _grid(x, facts, block)
    return lambda: copy_kernel[grid](y, x, x.numel(), rounds, BLOCK=block, num_warps=WARPS)


def launching(launches: int) -> Call:
    """Returns `launches` launches of a kernel that does nothing."""

    def run() -> None:
        for _ in range(launches):
            empty_kernel[(1,)](num_warps=1)

    return run


def waiting(seen: torch.Tensor, counters: torch.Tensor, waits: int, **options: bool) -> Call:
    """Returns a launch whose programs, one for each element of `seen`, wait `waits` times for each other."""
    return lambda: barriers_kernel[(seen.numel(),)](seen, counters, waits, **options)


def check_barriers(seen: torch.Tensor, counters: torch.Tensor, waits: int) -> None:
    """Raises Unmeasured unless every program has waited for all, and the counters are zeros again."""
    if counters.any():
        raise Unmeasured(f"the barrier has left its counters at {counters.tolist()}")
    early = int((seen != waits * seen.numel()).sum())
    if early:
        raise Unmeasured(f"{early} of {seen.numel()} programs did not wait for all others at {waits} barriers")


def _sizes(on: Session) -> list[int]:
    """Returns the sizes that fit: there are two tensors and the clock's own, so free memory must hold four."""
    torch.cuda.empty_cache()  # what an earlier figure has let go of
    free, _ = torch.cuda.mem_get_info(on.device)
    fitting = [size for size in on.sizes if size <= free // 4]
    if not fitting:
        raise Unmeasured(f"{free} bytes of memory are free, too few for {min(on.sizes)} four times")
    return fitting


def _floats(on: Session, size: int) -> torch.Tensor:
    return torch.ones(size // 4, dtype=torch.float32, device=on.device)


def _grid(x: torch.Tensor, facts: plan.Device, block: int) -> tuple[int]:
    return (min(PROGRAMS * facts.multiprocessors, plan.cdiv(x.numel(), block)),)


def _gbps(size: int, us: float) -> float:
    if us <= 0:
        raise Unmeasured(f"{MANY} rounds take no longer than one")
    return _rounded(size / us / 1e3)


def _rounded(figure: float) -> float:
    """Rounds to five digits, more than the clock can tell apart."""
    return float(f"{figure:.5g}")
