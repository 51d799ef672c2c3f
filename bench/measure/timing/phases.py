"""The phases that the calls of one case go through on a GPU, each call beside the others.

Cold calls come first, as theirs is the figure that counts. Then hot calls, calls in a row, with --energy their energy,
the profiler's kernels, and CUDA graphs last, because a capture that fails may spoil the process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TypeVar

import torch
from torch import profiler

from bench.measure import telemetry
from bench.measure.ending import exits_raised, one_line, text_of
from bench.measure.sampling import SamplingAborted, Series, StoppingRule, side_by_side
from bench.measure.timing import energy
from bench.measure.timing.clock import BlockTimer, Gpu, measure_overhead
from bench.measure.timing.energy import CallEnergy
from bench.measure.witness import Witness

# nvbench's least time for one measurement; a quiet cell needs a small part of it. The other series only stand beside
# the first, and get a fifth.
COLD, BESIDE = StoppingRule(budget_s=0.5), StoppingRule(budget_s=0.1)
# Calls in a row last as long as a warm-up; three times, for a median.
CALL_S, CALL_REPEATS = 0.025, 3
# Enough for a median; a profile of many more takes longer to read than to make.
PROFILED_S, PROFILED_CALLS = 0.05, 10
# A profile that saw nothing is made once more, after the pauses below.
_PROFILE_TRIES = 2
# CUPTI detaches in a thread of its own, which starts at a call of the driver after the profile. Until it is done,
# launches still cost the host more, and a profile that begins sees nothing (kineto issue 1554). Nothing tells when it
# is done: some waits for the device, with a pause after each. Chosen, not measured.
_DETACH_WAITS, _DETACH_S = 3, 0.01
# As many calls as torch.cuda.make_graphed_callables makes: what happens only once must not be captured.
_GRAPH_WARM_UP = 3

Call = Callable[[], object]
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class KernelTime:
    """Microseconds of one call's kernels, added up, and their number; or None and a remark why."""

    kernel_us: float | None = None
    launches: int | None = None
    remark: str = ""


@dataclass(frozen=True)
class GraphReplays:
    """Cold replays of one call's CUDA graph; or None, a remark why, and whether the process may be spoiled."""

    replays: Series | None = None
    remark: str = ""
    poisoned: bool = False


@dataclass(frozen=True)
class GpuFigures:
    """The results of all phases for one call."""

    cold: Series
    hot: Series
    call_us: float
    energy: CallEnergy
    kernels: KernelTime
    graph: GraphReplays
    host_bound: bool
    doubt: str = ""  # why the cold times cannot be believed


@dataclass(frozen=True)
class ProfiledLaunch:
    """A kernel, copy or fill as the device ran it."""

    name: str
    duration_us: float


class Unclear(Exception):
    """The profile does not divide into the calls that were made; the text says why, in one line."""


class NotCaptured(Exception):
    """There is no CUDA graph of this call, for the reason given.

    `poisoned`: what comes after it in this process may be spoiled. Where the driver refuses to end a capture, PyTorch
    cannot take its allocator and its random generators out of it.
    """

    def __init__(self, reason: str, poisoned: bool) -> None:
        super().__init__(reason)
        self.poisoned = poisoned


def measure(
    runs: Mapping[str, Call],
    device: torch.device,
    graphless: Collection[str],
    seed: int,
    began: Callable[[str], None],
    witnesses: Mapping[str, Witness],
    energies: bool,
) -> dict[str, GpuFigures | Exception]:
    """Measures the calls as timing.measure_together says."""
    with torch.cuda.device(device):
        try:
            phases = Phases(Gpu(device), telemetry.monitor(device), seed, began, witnesses)
        except Exception as error:  # no memory for what clears the cache, say
            return dict.fromkeys(runs, error)
        return phases.measure(runs, graphless, energies)


def cold(run: Call, device: torch.device) -> Series:
    """Takes cold samples of one call by itself; raises what it raises."""
    with torch.cuda.device(device):
        phases = Phases(Gpu(device), telemetry.monitor(device))
        found = phases.in_turns(BlockTimer.cold, phases.each(phases.timer, {"": run}), COLD)
    if phases.failed:
        raise phases.failed[""]
    return found[""]


class Phases:
    """One session on the device. A call that fails is out of every later phase, and its error is kept in `failed`."""

    def __init__(
        self,
        gpu: Gpu,
        monitor: telemetry.Monitor | None,
        seed: int = 0,
        began: Callable[[str], None] = lambda name: None,
        witnesses: Mapping[str, Witness] | None = None,
    ) -> None:
        self._witnesses = witnesses or {}
        self._gpu, self._monitor, self._seed, self._began = gpu, monitor, seed, began
        self._overhead = measure_overhead(gpu)
        self.failed: dict[str, Exception] = {}

    def measure(
        self, runs: Mapping[str, Call], graphless: Collection[str], energies: bool = False
    ) -> dict[str, GpuFigures | Exception]:
        """Returns each call's figures, or what it raised; where the device was lost, only what had failed by then."""
        try:
            watched = {name: (run, self._witnesses.get(name)) for name, run in runs.items()}
            timers = self.each(lambda one: self.timer(*one), watched)
            cold = self.in_turns(BlockTimer.cold, timers, COLD)
            doubts = self.each(BlockTimer.doubt, timers)
            hot = self.in_turns(BlockTimer.hot, timers, BESIDE)
            call_us = self.each(self._call_us, timers)
            spent = self.each(self._energy, timers) if energies else dict.fromkeys(timers, CallEnergy())
            kernels = self.each(self._kernels, timers)
            graphs = self._graphs({name: timer for name, timer in timers.items() if name not in graphless})
        except SamplingAborted:
            return dict(self.failed)
        graphs |= {name: GraphReplays(remark="an earlier capture of it has spoiled its process") for name in graphless}
        found: dict[str, GpuFigures | Exception] = {}
        for name in runs:
            found[name] = self.failed.get(name) or GpuFigures(
                cold[name],
                hot[name],
                call_us[name],
                spent[name],
                kernels[name],
                graphs[name],
                timers[name].host_bound,
                doubts[name],
            )
        return found

    def timer(self, run: Call, witness: Witness | None = None) -> BlockTimer:
        """Returns a timer of the call, warmed up."""
        return BlockTimer(self._gpu, run, self._overhead, witness)

    def each(self, step: Callable[[In], Out], given: Mapping[str, In]) -> dict[str, Out]:
        """Takes one step for each call that has not failed, one after the other; raises SamplingAborted."""
        found = {}
        for name, one in given.items():
            if name in self.failed:
                continue
            self._began(name)
            try:
                with exits_raised():
                    found[name] = step(one)
                self._gpu.synchronize()
            except SamplingAborted:
                raise
            except Exception as error:
                self.failed[name] = error
                if not self._gpu.alive():
                    raise SamplingAborted({name: error}) from error
        return found

    def in_turns(
        self, block: Callable[[BlockTimer], list[float]], timers: Mapping[str, BlockTimer], rule: StoppingRule
    ) -> dict[str, Series]:
        """Samples each call that has not failed, block by block in turns; raises SamplingAborted."""
        try:
            found = side_by_side(
                {name: partial(block, timer) for name, timer in timers.items() if name not in self.failed},
                rule,
                seed=self._seed,
                began=self._began,
                watch=self._monitor.read if self._monitor else lambda: None,
                alive=self._gpu.alive,
            )
        except SamplingAborted as lost:
            self.failed.update(lost.errors)
            raise
        self.failed |= {name: result for name, result in found.items() if isinstance(result, Exception)}
        return {name: result for name, result in found.items() if isinstance(result, Series)}

    def _call_us(self, timer: BlockTimer) -> float:
        """Returns microseconds of one of many calls in a row, from before the first launch until the last is done."""
        from torch.utils.benchmark import Timer  # slow to import, and of no use to a CPU

        def clock() -> float:
            self._gpu.synchronize()
            return self._gpu.now()

        calls = max(2, min(10_000, int(CALL_S / timer.call_s)))
        timed = Timer("run()", timer=clock, globals={"run": timer.run}, num_threads=torch.get_num_threads())
        return 1e6 * median(timed.timeit(calls).mean for _ in range(CALL_REPEATS))

    def _energy(self, timer: BlockTimer) -> CallEnergy:
        return energy.of_call(
            self._gpu, timer.run, timer.call_s, self._monitor.energy_mj if self._monitor else lambda: None
        )

    def _kernels(self, timer: BlockTimer) -> KernelTime:
        calls = max(2, min(PROFILED_CALLS, int(PROFILED_S / timer.call_s)))
        try:
            return KernelTime(*of_one_call(launched(self._gpu, timer.run, calls), calls))
        except Exception as error:  # the call has shown that it works: this is the profiler's
            return KernelTime(remark=_one_line(error))

    def _graphs(self, timers: Mapping[str, BlockTimer]) -> dict[str, GraphReplays]:
        """Captures and replays one call after the other, until a capture spoils the process; raises SamplingAborted."""
        found: dict[str, GraphReplays] = {}
        spoiled = ""
        for name, timer in timers.items():
            if spoiled:
                # A capture could fail for that reason only, and its provider would seem impossible to capture.
                found[name] = GraphReplays(remark=f"the capture of {spoiled} has spoiled this process")
                continue
            found |= self.each(partial(self._graph, name), {name: timer})
            if name in found and found[name].poisoned:
                spoiled = name
        return found

    def _graph(self, name: str, timer: BlockTimer) -> GraphReplays:
        try:
            graph = capture(timer.run)
        except NotCaptured as error:
            return GraphReplays(remark=_one_line(error), poisoned=error.poisoned)
        replays = self.in_turns(BlockTimer.cold, {name: self.timer(graph.replay)}, BESIDE)
        if name in self.failed:
            raise self.failed[name]
        return GraphReplays(replays[name])


def launched(gpu: Gpu, run: Call, calls: int) -> list[ProfiledLaunch]:
    """Returns everything the device does in so many cold calls, flushes included, by PyTorch's profiler, in order."""
    # Else Kineto stays attached to the driver, and every later launch of this process costs the host more (pytorch
    # issue 144455). Detaching and CUDA graphs get along since CUDA 12.6, the oldest that torch 2.11 is built for.
    os.environ.setdefault("TEARDOWN_CUPTI", "1")
    for _ in range(_PROFILE_TRIES):
        gpu.synchronize()
        with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as profiled:
            for _ in range(calls):
                gpu.flush()
                run()
            gpu.synchronize()
        for _ in range(_DETACH_WAITS):
            gpu.synchronize()
            time.sleep(_DETACH_S)
        cuda = profiler.DeviceType.CUDA
        events = [event for event in profiled.events() if event.device_type == cuda and not event.is_user_annotation]
        if events:
            break
    events.sort(key=lambda event: event.time_range.start)
    return [ProfiledLaunch(event.name, event.time_range.elapsed_us()) for event in events]


def of_one_call(launches: Sequence[ProfiledLaunch], calls: int) -> tuple[float, int]:
    """Returns one call's microseconds of work, the median over the calls, and its launches; without the flush.

    Raises Unclear unless every call launches the same after its flush, in the same order: otherwise it is not known
    which launch belongs to which call.
    """
    if not launches:
        raise Unclear("the profiler saw nothing on the device")
    each, rest = divmod(len(launches), calls)
    if rest:
        raise Unclear(f"{len(launches)} launches in {calls} calls")
    chunks = [launches[i : i + each] for i in range(0, len(launches), each)]
    if len({tuple(launch.name for launch in chunk) for chunk in chunks}) > 1:
        raise Unclear("not every call launches the same")
    return median(sum(launch.duration_us for launch in chunk[1:]) for chunk in chunks), each - 1


def capture(run: Call) -> torch.cuda.CUDAGraph:
    """Captures a CUDA graph of one call; raises NotCaptured.

    It is captured on the present stream, unless that is the default stream, which cannot be captured: backward runs
    where its forward ran, so that the backward pass of a cell that was built on the default stream is out of reach.
    """
    present = torch.cuda.current_stream()
    side = torch.cuda.Stream() if present == torch.cuda.default_stream() else present
    try:
        side.wait_stream(present)
        with torch.cuda.stream(side):
            for _ in range(_GRAPH_WARM_UP):
                run()
        torch.cuda.synchronize()
    except Exception as error:
        raise NotCaptured(text_of(error), poisoned=False) from error
    graph = torch.cuda.CUDAGraph()
    # Ending the capture fails as well after an error in it, and says only that it was no good any more.
    first: Exception | None = None
    try:
        # The outer one is for failures, after which torch.cuda.graph leaves its own stream the current one.
        with torch.cuda.stream(present), torch.cuda.graph(graph, stream=side):
            try:
                run()
            except Exception as error:
                first = error
                raise
    except Exception as error:
        raise NotCaptured(text_of(first or error), poisoned=True) from error
    return graph


def _one_line(error: Exception) -> str:
    return one_line(text_of(error)) or type(error).__name__
