"""Compiles ahead of the measurement, in processes beside it, so that the measuring process finds it on disk.

Triton's kernels of normlib are compiled for the device's target without a look at the device: calls run on tensors of
the CPU whose memory nobody touches, and every launch stops after compilation (bench/fake_gpu.py). The
specialization is the real call's, and so is the key under which Triton's cache on disk keeps the kernel. Graphs of
torch.compile are compiled on tensors without memory (FakeTensorMode), and the measuring process finds them in
Inductor's cache. No kernel is launched, so nothing runs on the device beside what is timed; a process that compiles
graphs does hold a context of it, and loads kernels.

It is a help and nothing depends on it: what fails or takes too long costs nothing, the measuring process then compiles
for itself. At the end of the run what still goes on is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

import torch

from bench.cases.case import Case
from bench.cases.operators import operators
from bench.measure.ending import ending
from bench.measure.providers import Unsupported, providers

if TYPE_CHECKING:
    from triton.backends.compiler import GPUTarget

    from normlib.kernels.plan import Device

KERNELS, GRAPHS = "normlib", "torch_compile"  # the providers whose compilations these are
# The measuring process has one core, and the process that started it another.
_LEFT_ALONE = 2
# Each process that compiles graphs holds a context of the device, of some half a gigabyte.
_MOST_FOR_GRAPHS = 4
# Behind the measuring process where cores are scarce after all.
_NICENESS = 10

Job = Callable[[], object]


def processes(device: torch.device) -> tuple[int, int]:
    """Returns how many processes compile ahead on this machine: of kernels, and of graphs.

    None without an NVIDIA GPU or with fewer than four cores for this run; under torchrun its processes share the cores.
    """
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type != "cuda" or torch.version.hip is not None or cores < 4:
        return 0, 0
    graphs = min(_MOST_FOR_GRAPHS, (cores - _LEFT_ALONE) // 2)
    return cores - _LEFT_ALONE - graphs, graphs


class Ahead:
    """The processes of one run: those for kernels start at once, those for graphs when they are told to."""

    def __init__(self, cases: Iterable[Case], names: Collection[str], device: torch.device) -> None:
        self._cases, self._names, self._device = tuple(cases), names, device
        self._for_kernels, self._for_graphs = processes(device)
        self._running: list[tuple[BaseProcess, Connection, int]] = []
        self._refused: list[str] = []

    def kernels(self) -> None:
        """Starts those that compile normlib's kernels, problem by problem in the order of cases."""
        if KERNELS in self._names:
            self._start(self._kernel_jobs, self._for_kernels)

    def graphs(self) -> None:
        """Starts those that compile graphs; a worker has the device by then, where only one process may have it."""
        if GRAPHS in self._names:
            self._start(self._graph_jobs, self._for_graphs)

    def close(self) -> str:
        """Ends what is left, and returns what is to be said of it all, or ""."""
        answers = self._refused
        planned = sum(count for _, _, count in self._running)
        for process, pipe, _ in self._running:
            with suppress(EOFError, OSError):
                while pipe.poll():
                    answers.append(pipe.recv())
            _end(process)
            pipe.close()
        errors = [answer for answer in answers if answer]
        by = "1 process" if len(self._running) == 1 else f"{len(self._running)} processes"
        said = f"{by} compiled {len(answers) - len(errors)} of {planned} problems and graphs ahead"
        self._running, self._refused = [], []
        if errors:
            return f"{said}; {len(errors)} failed, the first with {errors[0]}"
        return said if planned else ""

    def _kernel_jobs(self) -> list[Job]:
        device, target = properties(self._device), _target(self._device)
        return [partial(compile_kernels, group, device, target) for group in _problems(self._cases)]

    def _graph_jobs(self) -> list[Job]:
        from bench.measure.providers.torch_compile import compiled_as

        cases = dict.fromkeys(compiled_as(_plain(case)) for case in self._cases)
        return [partial(compile_graph, case, self._device) for case in cases]

    def _start(self, jobs: Callable[[], list[Job]], most: int) -> None:
        """Deals the jobs in turns: what is measured first is compiled first."""
        if not (most and self._cases):
            return
        try:
            dealt = jobs()
            count = min(most, len(dealt))
            self._running += [start(dealt[i::count]) for i in range(count)]
        except Exception as error:  # the run goes on without
            self._refused.append(ending(error)[1])


def start(jobs: Sequence[Job]) -> tuple[BaseProcess, Connection, int]:
    """Returns a process that does these jobs one after another, the pipe that it answers through, and their number."""
    context = multiprocessing.get_context("forkserver")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, jobs), daemon=True)
    process.start()
    theirs.close()
    return process, mine, len(jobs)


def compile_kernels(cases: Sequence[Case], device: Device, target: GPUTarget) -> None:
    """Compiles what normlib's cells of these cases, of one problem, launch on such a device; fills Triton's cache."""
    from bench.fake_gpu import compiling_for
    from bench.measure.launches import untouched

    inputs = untouched(operators()[cases[0].op], cases[0])
    with compiling_for(target, device):
        for case in cases:
            providers()[KERNELS].build(case, inputs).outputs()


def compile_graph(case: Case, device: torch.device) -> None:
    """Compiles what torch_compile's cells of this case run; fills Inductor's cache."""
    from bench.measure.providers import torch_compile

    torch_compile.compile_ahead(case, device)


def properties(device: torch.device) -> Device:
    """Returns the device as plans see it, or where there is no GPU an H200."""
    from bench.fake_gpu import H200
    from normlib.kernels import host as of_tensors

    return of_tensors._properties(device.index) if torch.cuda.is_available() else H200


def _target(device: torch.device) -> GPUTarget:
    """Returns what Triton's driver calls the device, which it would take the device itself to ask."""
    from triton.backends.compiler import GPUTarget

    major, minor = torch.cuda.get_device_capability(device)
    return GPUTarget("cuda", 10 * major + minor, 32)


def _plain(case: Case) -> Case:
    """Returns the case with normal inputs: nothing is compiled for values."""
    return replace(case, inputs="normal", offset=0.0)


def _problems(cases: Iterable[Case]) -> list[tuple[Case, ...]]:
    """Returns the cases by problem, each once."""
    found: dict[Case, dict[Case, None]] = {}
    for case in map(_plain, cases):
        found.setdefault(case.problem, {})[case] = None
    return [tuple(group) for group in found.values()]


def _work(pipe: Connection, jobs: Sequence[Job]) -> None:
    """A process's life: it answers each job with its error, or "", and ends with the last, or with its parent."""
    os.setpgid(0, 0)  # Ctrl-C is not for it, and what it has started (ptxas) ends with it
    os.nice(_NICENESS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    # Compilers complain to the terminal, where the run's display is.
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    for job in jobs:
        answer = ""
        try:
            with suppress(Unsupported):  # then there is nothing to compile
                job()
        except Exception as error:
            answer = ending(error)[1]
        with suppress(OSError):
            pipe.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


def _end(process: BaseProcess) -> None:
    """Kills it with all that it has started."""
    if process.is_alive() and process.pid is not None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has not come so far as to have a group
            process.kill()
    process.join()
    process.close()
