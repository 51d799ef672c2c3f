"""Estimates how long a sweep takes, for --list, time budgets and ranks. No figure here was measured on a GPU.

On a GPU a cell takes its samples, and moves its bytes as often as it is called and judged. A compilation counts once
however many cases share it: the kernels of normlib that Triton distinguishes (specializations.py), the graphs of
torch.compile, one kernel a direction of the others. Processes beside the measuring one compile ahead (precompile.py),
so that it waits only for the rest. On a CPU Triton's interpreter runs the kernels, whose time follows elements and,
where programs merge their results, columns; the other providers are quick beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import TYPE_CHECKING

from bench.cases.case import Case
from bench.cases.operators import operators
from bench.measure.precompile import GRAPHS, KERNELS, processes, properties

if TYPE_CHECKING:
    import torch

# No GPU has measured any of the seconds below.
# Imports, looking for providers, the worker's start and its copy of a gigabyte; the page with its figures. On a server
# without a GPU the imports took 2 to 6 s, and a page of a hundred cells 3; a GPU's context and libraries come on top.
_START_S = {"cuda": 12.0, "cpu": 6.0}
_REPORT_S = {"cuda": 5.0, "cpu": 3.0}
# Half a second of cold samples at most, a tenth each of hot ones and of a graph's replays, a tenth of calls in a row
# (timing/phases.py), as much again for warming up, the profiler, capturing, and judging in float64 before and after.
_CELL_S = 1.25
# Five steps of a counter that moves every hundred milliseconds, with --energy.
_ENERGY_S = 0.55
# A bandwidth between a laptop's and a data centre's. Calls, and passes in float64.
_NOMINAL_BYTES_S = 1e12
_PASSES = 200
# On one core of a server without a GPU, for sm_90: 22 kernels of batch norm took 19 s, 13 of layer norm 6 s.
_KERNEL_S = 0.8
# A compiled kernel read from disk and loaded.
_FOUND_KERNEL_S = 0.05
# Assumed: Dynamo's and Inductor's work and a few Triton kernels for one direction, after Inductor has been imported,
# which takes some seconds in every process. With g++ in Triton's place a direction took 3 to 5 s on that server.
_DIRECTION_S = 1.5
_INDUCTOR_S = 5.0
# Of a graph that is found in Inductor's cache: Dynamo's part, and the choice among a reduction's few configurations.
_FOUND_GRAPH_S = 0.7
# Assumed, of providers that compile kernels of their own: one for each direction of a problem.
_OTHERS_S = 1.0
# From a process's start to its first compilation.
_HELPER_START_S = 4.0

# Processor time of one call in the interpreter, fitted by eye within a factor of two to some thirty shapes, batch norm
# of 64 to 2048 channels and rows of 128 to 131072. It supports no claim of speed.
_CALL_S, _ELEMENT_S, _COLUMN_S = 0.02, 3e-6, 3e-4
# From the first call to the judgement after timing, and what comes along: float64, copies, another provider.
_CALLS, _CPU_CELL_S = 6, 0.1

# A compilation: its provider, and what tells it apart from others.
_Thing = tuple[str, Hashable]


@dataclass(frozen=True)
class ExpectedTime:
    """An estimate of a sweep's seconds, and the number of its compilations."""

    starting: float
    measuring: float
    compiling: float  # that the measuring process waits for
    reporting: float
    kernels: int = 0  # of normlib
    graphs: int = 0  # of torch.compile

    @property
    def total(self) -> float:
        return self.starting + self.measuring + self.compiling + self.reporting


@dataclass(frozen=True)
class _Costs:
    alone: float  # seconds in the measuring process
    found: float = inf  # seconds where another process has compiled it before; inf where none does


def expected(
    cases: Sequence[Case],
    providers: Collection[str],
    device: torch.device,
    helpers: tuple[int, int] | None = None,
    energies: bool = False,
) -> ExpectedTime:
    """Estimates a sweep of these cases with these providers, by name, on a device of this kind.

    `helpers` are the numbers of processes that compile kernels and graphs ahead: this machine's unless given. With
    `energies` a cell takes the time for its energy too.
    """
    starting, reporting = _START_S[device.type], _REPORT_S[device.type]
    seconds = [_measuring(case, providers, device) for case in cases]
    if device.type != "cuda":
        return ExpectedTime(starting, sum(seconds), 0.0, reporting)
    if energies:
        seconds = [one + len(providers) * _ENERGY_S for one in seconds]
    needs = [_compiled(case, providers, device) for case in cases]
    things = {thing: costs for need in needs for thing, costs in need.items()}
    kinds = [name for name, _ in things]
    waited = _waited(needs, seconds, _ready(things, helpers or processes(device), starting), starting)
    inductor = _INDUCTOR_S if GRAPHS in kinds else 0.0
    return ExpectedTime(starting, sum(seconds), waited + inductor, reporting, kinds.count(KERNELS), kinds.count(GRAPHS))


def expected_seconds(case: Case, providers: Collection[str], device: torch.device) -> float:
    """Estimates the seconds of a case with these providers, all its compilations included; ranks are dealt cases by it.

    A sum over cases counts a shared compilation more than once; `expected` does not.
    """
    alone = _compiled(case, providers, device).values() if device.type == "cuda" else ()
    return _measuring(case, providers, device) + sum(costs.alone for costs in alone)


def _measuring(case: Case, providers: Collection[str], device: torch.device) -> float:
    if device.type == "cuda":
        moved = operators()[case.op].bytes_moved(case) * _PASSES / _NOMINAL_BYTES_S
        return len(providers) * (_CELL_S + moved)
    interpreted = _CALLS * interpreter_seconds(case) if KERNELS in providers else 0.0
    return len(providers) * _CPU_CELL_S + interpreted


def _compiled(case: Case, providers: Collection[str], device: torch.device) -> dict[_Thing, _Costs]:
    """Returns what must be compiled before the case can be measured on a GPU."""
    from bench.measure.providers import providers as known
    from bench.measure.providers.torch_compile import compiled_as
    from bench.measure.specializations import kernels

    plain = replace(case, inputs="normal", offset=0.0)
    shared = compiled_as(plain)
    found: dict[_Thing, _Costs] = {}
    if KERNELS in providers:
        for kernel in kernels(plain, properties(device)):
            found[KERNELS, kernel] = _Costs(_KERNEL_S, _FOUND_KERNEL_S)
    if GRAPHS in providers:
        found[GRAPHS, shared] = _Costs((1 if shared.mode == "eval" else 2) * _DIRECTION_S, _FOUND_GRAPH_S)
    for name in providers:
        if name in known() and known()[name].compiles:
            for direction in ("fwd", "bwd") if case.mode in ("bwd", "fwd_bwd") else (case.mode,):
                found[name, replace(plain, mode=direction)] = _Costs(_OTHERS_S)
    return found


def _ready(things: Mapping[_Thing, _Costs], helpers: tuple[int, int], graphs_from: float) -> dict[_Thing, float]:
    """Returns when each is compiled ahead, in seconds from the run's start; helpers take turns in the order of need."""
    ready: dict[_Thing, float] = {}
    kinds = ((KERNELS, _HELPER_START_S), (GRAPHS, graphs_from + _HELPER_START_S + _INDUCTOR_S))
    for (name, begins), count in zip(kinds, helpers, strict=True):
        clocks = [begins] * count
        for i, thing in enumerate(thing for thing in things if thing[0] == name and count):
            clocks[i % count] += things[thing].alone
            ready[thing] = clocks[i % count]
    return ready


def _waited(
    needs: Iterable[Mapping[_Thing, _Costs]],
    measuring: Iterable[float],
    ready: Mapping[_Thing, float],
    starting: float,
) -> float:
    """Returns the seconds that the measuring process spends on compilation: what is not ready it compiles itself."""
    clock, waited = starting, 0.0
    known: set[_Thing] = set()
    for need, seconds in zip(needs, measuring, strict=True):
        for thing, costs in need.items():
            if thing not in known:
                known.add(thing)
                took = costs.found if ready.get(thing, inf) <= clock else costs.alone
                clock, waited = clock + took, waited + took
        clock += seconds
    return waited


def interpreter_seconds(case: Case) -> float:
    """Estimates one call of the kernels in the interpreter: passes over the elements, and merges over columns."""
    passes = 2 if case.mode == "fwd_bwd" else 1
    # Batch norm merges statistics forward and gradients backward, a norm of rows only the latter; evaluation nothing,
    # and where each row has a parameter of its own nothing either.
    operator = operators()[case.op]
    merging = {"fwd": ("fwd",), "bwd": ("bwd",), "fwd_bwd": ("fwd", "bwd")}.get(case.mode, ())
    merges = len(merging) if operator.statistics_dim else merging.count("bwd") if operator.parameter_dim else 0
    return passes * (_CALL_S + _ELEMENT_S * prod(case.shape)) + merges * _COLUMN_S * case.shape[1]
