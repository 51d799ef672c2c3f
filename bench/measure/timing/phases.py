"""The phases that the runs of one case go through on a GPU, each run beside the others.

Cold calls first, for that is the figure that counts; CUDA graphs last, for a capture that fails may spoil the process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TypeVar

import torch

from bench.measure import telemetry
from bench.measure.timing import launches
from bench.measure.timing.clock import Gpu, Lane, pace
from bench.measure.timing.cuda_graph import NotCaptured, capture
from bench.measure.timing.sampling import Lost, Rule, Series, side_by_side

# nvbench's least time for one measurement; a quiet cell needs a small part of it. The other series are there to be
# looked at beside the first, and get a fifth.
COLD, BESIDE = Rule(budget_s=0.5), Rule(budget_s=0.1)
# Calls in a row for as long as a warm-up takes, and again, and again, for a median.
CALL_S, CALL_REPEATS = 0.025, 3
# Enough for a median; a profile of many more takes longer to read than to make.
PROFILED_S, PROFILED_CALLS = 0.05, 10

Run = Callable[[], object]
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Kernels:
    """Microseconds that one call's kernels take, added up, and their number; None, and a remark why."""

    kernel_us: float | None = None
    launches: int | None = None
    remark: str = ""


@dataclass(frozen=True)
class Graph:
    """Cold replays of one call's CUDA graph; None, and a remark why, and whether the process may be spoiled."""

    replays: Series | None = None
    remark: str = ""
    poisoned: bool = False


@dataclass(frozen=True)
class Measured:
    """What the phases found for one run."""

    cold: Series
    hot: Series
    call_us: float
    kernels: Kernels
    graph: Graph
    host_bound: bool


def measure(
    runs: Mapping[str, Run], device: torch.device, graphless: Collection[str], seed: int, began: Callable[[str], None]
) -> dict[str, Measured | Exception]:
    """As timing.measure_together says."""
    with torch.cuda.device(device):
        try:
            phases = Phases(Gpu(device), telemetry.monitor(device), seed, began)
        except Exception as error:  # no memory for what clears the cache, say
            return dict.fromkeys(runs, error)
        return phases.measure(runs, graphless)


def cold(run: Run, device: torch.device) -> Series:
    """Cold calls of one run by itself; raises what it raises."""
    with torch.cuda.device(device):
        phases = Phases(Gpu(device), telemetry.monitor(device))
        found = phases.in_turns(Lane.cold, phases.each(phases.lane, {"": run}), COLD)
    if phases.failed:
        raise phases.failed[""]
    return found[""]


class Phases:
    """One session on the device. A run that fails is out of every later phase, and its error is kept."""

    def __init__(
        self,
        gpu: Gpu,
        monitor: telemetry.Monitor | None,
        seed: int = 0,
        began: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._gpu, self._monitor, self._seed, self._began = gpu, monitor, seed, began
        self._pace = pace(gpu)
        self.failed: dict[str, Exception] = {}

    def measure(self, runs: Mapping[str, Run], graphless: Collection[str]) -> dict[str, Measured | Exception]:
        """Each run's figures, or what it raised; where the device was lost, no more than what had failed by then."""
        try:
            lanes = self.each(self.lane, runs)
            cold = self.in_turns(Lane.cold, lanes, COLD)
            hot = self.in_turns(Lane.hot, lanes, BESIDE)
            call_us = self.each(self._call_us, lanes)
            kernels = self.each(self._kernels, lanes)
            graphs = self._graphs({name: lane for name, lane in lanes.items() if name not in graphless})
        except Lost:
            return dict(self.failed)
        graphs |= {name: Graph(remark="an earlier capture of it has spoiled its process") for name in graphless}
        found: dict[str, Measured | Exception] = {}
        for name in runs:
            found[name] = self.failed.get(name) or Measured(
                cold[name], hot[name], call_us[name], kernels[name], graphs[name], lanes[name].host_bound
            )
        return found

    def lane(self, run: Run) -> Lane:
        """The run, warmed up."""
        return Lane(self._gpu, run, self._pace)

    def each(self, step: Callable[[In], Out], given: Mapping[str, In]) -> dict[str, Out]:
        """One step of each run that has not failed, one after the other; raises Lost."""
        found = {}
        for name, one in given.items():
            if name in self.failed:
                continue
            self._began(name)
            try:
                found[name] = step(one)
                self._gpu.synchronize()
            except Lost:
                raise
            except Exception as error:
                self._fail({name: error})
                if not self._gpu.alive():
                    raise Lost({name: error}) from error
        return found

    def in_turns(
        self, block: Callable[[Lane], list[float]], lanes: Mapping[str, Lane], rule: Rule
    ) -> dict[str, Series]:
        """A series of each run that has not failed, block by block in turns; raises Lost."""
        blocks = {name: partial(block, lane) for name, lane in lanes.items() if name not in self.failed}
        try:
            found = side_by_side(
                blocks,
                rule,
                seed=self._seed,
                began=self._began,
                watch=self._monitor.read if self._monitor else lambda: None,
                alive=self._gpu.alive,
            )
        except Lost as lost:
            self._fail(lost.errors)
            raise
        self._fail({name: result for name, result in found.items() if isinstance(result, Exception)})
        return {name: result for name, result in found.items() if isinstance(result, Series)}

    def _fail(self, errors: Mapping[str, Exception]) -> None:
        self.failed.update(errors)

    def _call_us(self, lane: Lane) -> float:
        """Microseconds of one of many calls in a row, from before the first is launched until the last is done."""
        from torch.utils.benchmark import Timer  # slow to import, and of no use to a CPU

        def clock() -> float:
            self._gpu.synchronize()
            return self._gpu.now()

        calls = max(2, min(10_000, int(CALL_S / lane.call_s)))
        timer = Timer("run()", timer=clock, globals={"run": lane.run}, num_threads=torch.get_num_threads())
        return 1e6 * median(timer.timeit(calls).mean for _ in range(CALL_REPEATS))

    def _kernels(self, lane: Lane) -> Kernels:
        calls = max(2, min(PROFILED_CALLS, int(PROFILED_S / lane.call_s)))
        try:
            found = launches.launched(self._gpu, lane.run, calls)
            return Kernels(*launches.of_one_call(found, calls))
        except Exception as error:  # the run has shown that it works: this is the profiler's
            return Kernels(remark=_one_line(error))

    def _graphs(self, lanes: Mapping[str, Lane]) -> dict[str, Graph]:
        """Captures and replays one run after the other, until a capture spoils the process; raises Lost."""
        found: dict[str, Graph] = {}
        spoiled = ""
        for name, lane in lanes.items():
            if spoiled:
                # A capture could fail for that reason alone, and its provider would be told that it cannot be captured.
                found[name] = Graph(remark=f"the capture of {spoiled} has spoiled this process")
                continue
            found |= self.each(partial(self._graph, name), {name: lane})
            if name in found and found[name].poisoned:
                spoiled = name
        return found

    def _graph(self, name: str, lane: Lane) -> Graph:
        try:
            graph = capture(lane.run)
        except NotCaptured as error:
            return Graph(remark=_one_line(error), poisoned=error.poisoned)
        replays = self.in_turns(Lane.cold, {name: self.lane(graph.replay)}, BESIDE)
        if name in self.failed:
            raise self.failed[name]
        return Graph(replays[name])


def _one_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
