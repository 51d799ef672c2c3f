"""`python -m bench.host_overhead`: microseconds between a call of a norm and the launch of its kernels, and the counts.

A small norm takes the device less time than the host needs to ask for it, so the host's time is what a user waits for.
Three figures a call, each a median over blocks of calls:

- `host`: normlib with the launch taken out: `kernel[grid](...)` returns at once. What is left is normlib's checks,
  PyTorch's dispatcher and autograd, the plan, the allocations.
- `launch`: what Triton's Python adds between there and the device: it binds and specializes the arguments and looks the
  kernel up. The median difference of two neighbouring blocks, one with the launch and one without.
- `torch`: PyTorch's own operator on the same tensors.

Without a GPU the tensors lie on the CPU and take the kernels' path all the same, up to a stand-in for the kernel
(bench/fake_gpu.py), so `launch` lacks the driver's own call, and no result is right. PyTorch's figure then contains
all of its CPU kernel, on 2 kB (batch norm: 8 kB) of x. The clock is the process's own time, which other work on the
machine does not add to. With a GPU everything is launched, asynchronously, on the GPU: the clock is the wall's, and the
host waits for the device once a block of calls, or more often where the device is the slower of the two.

Counted in one call more, by PyTorch's profiler: kernels launched (normlib's own; PyTorch's are not counted), operators
called through the dispatcher, those among them that allocated memory.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from statistics import median
from time import process_time
from typing import TYPE_CHECKING, Any, NoReturn

os.environ.pop("TRITON_INTERPRET", None)  # the interpreter takes another way to a kernel
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # PyTorch's profiler says when it begins and ends, at every call

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from triton.runtime.jit import JITFunction

import normlib
from bench import cli
from bench.cases.case import MODES
from bench.cli import BadArgument
from bench.fake_gpu import absent_gpu

if TYPE_CHECKING:
    from torch.utils.benchmark import Measurement

# Calls in a block: some tens of milliseconds, long beside a clock's tick and a wait for the device.
CALLS = 500
REPEAT = 15
FORMS = ("functional", "module")
Call = Callable[[], object]


@dataclass(frozen=True)
class Norm:
    """One operator: its functional form, its module, the shape of x, and what the functional form takes after x."""

    functional: str
    module: Callable[[Any], nn.Module]
    shape: tuple[int, ...]
    arguments: Callable[[Any], tuple[Any, ...]]


# As small as they come without being odd: 2 kB and 8 kB of activations in float32.
NORMS = {
    "bn": Norm(
        "batch_norm",
        lambda library: library.BatchNorm2d(64),
        (4, 64, 2, 4),
        lambda m: (m.running_mean, m.running_var, m.weight, m.bias, m.training, m.momentum, m.eps),
    ),
    "ln": Norm(
        "layer_norm",
        lambda library: library.LayerNorm(64),
        (8, 64),
        lambda m: (m.normalized_shape, m.weight, m.bias, m.eps),
    ),
    "rms": Norm(
        "rms_norm",
        lambda library: library.RMSNorm(64, eps=1e-6),
        (8, 64),
        lambda m: (m.normalized_shape, m.weight, m.eps),
    ),
}


@dataclass
class Cost:
    """One call's cost to the host. `host_us` is all of it for torch; `launch_us` and `kernels` are normlib's alone."""

    op: str
    mode: str
    form: str
    library: str
    device: str
    host_us: float
    host_iqr_us: float
    launch_us: float | None
    kernels: int | None
    allocations: int
    operators: int


def call_of(library: Any, op: str, mode: str, form: str, device: torch.device) -> Call:
    """The call that is measured, on tensors of its own; in mode `eval` a model's in evaluation."""
    norm = NORMS[op]
    layer = norm.module(library if library is normlib else nn).to(device).train(mode != "eval")
    x = torch.randn(norm.shape, device=device, requires_grad=mode != "eval")
    if form == "module":
        forward: Callable[[], Tensor] = partial(layer, x)
    else:
        functional = library.functional if library is normlib else nn.functional
        forward = partial(getattr(functional, norm.functional), x, *norm.arguments(layer))
    leaves, dy = (x, *layer.parameters()), torch.randn(norm.shape, device=device)
    if mode == "bwd":
        return partial(torch.autograd.grad, forward(), leaves, dy, retain_graph=True)
    if mode == "fwd_bwd":
        return lambda: torch.autograd.grad(forward(), leaves, dy)
    return forward


@contextmanager
def no_launch() -> Iterator[list[str]]:
    """Within, `kernel[grid](...)` does nothing but return; yields the names of the kernels that were not launched."""
    launched: list[str] = []
    run = JITFunction.run
    JITFunction.run = lambda self, *_, **__: launched.append(self.__name__)
    try:
        yield launched
    finally:
        JITFunction.run = run


def count(call: Call) -> tuple[list[str], list[str], int]:
    """(kernels launched, operators called, how many of those allocated) in one call, without the launches."""
    with no_launch() as launched:
        call()
        launched.clear()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
            call()
    events = [e for e in profiled.events() if e.name.startswith(("aten::", "normlib::"))]
    allocations = sum(e.self_cpu_memory_usage > 0 or e.self_device_memory_usage > 0 for e in events)
    return launched, [e.name for e in events], allocations


def measure(ops: Sequence[str], modes: Sequence[str], repeat: int, device: torch.device) -> list[Cost]:
    """Every operator, mode and form of both libraries; a block of each in turn, so that a slow moment meets all."""
    # It imports what compiles extensions, and that warns where there is a CUDA compiler and no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Measurement, Timer, timer

    cells = list(product(ops, modes, FORMS, (normlib, torch)))
    calls = {cell: call_of(cell[3], *cell[:3], device) for cell in cells}
    clock = process_time if device.type == "cpu" else timer
    launches: dict[bool, Callable[[], AbstractContextManager[object]]] = {False: no_launch, True: nullcontext}
    blocks: dict[tuple[Any, bool], list[Measurement]] = {
        (cell, launch): [] for cell in cells for launch in launches if launch or cell[3] is normlib
    }
    for _ in range(repeat):
        for (cell, launch), timed in blocks.items():
            with launches[launch](), torch.set_grad_enabled(cell[1] != "eval"):
                timed.append(Timer("call()", timer=clock, globals={"call": calls[cell]}).timeit(CALLS))

    costs = []
    for cell in cells:
        op, mode, form, library = cell
        whole, bare = blocks[cell, True], blocks.get((cell, False))
        host = Measurement.merge(bare or whole)[0]
        with torch.set_grad_enabled(mode != "eval"):
            kernels, operators, allocations = count(calls[cell])
        costs.append(
            Cost(
                op=op,
                mode=mode,
                form=form,
                library=library.__name__,
                device=str(device),
                host_us=1e6 * host.median,
                host_iqr_us=1e6 * host.iqr,
                launch_us=1e6 * median(a.median - b.median for a, b in zip(whole, bare, strict=True)) if bare else None,
                kernels=len(kernels) if bare else None,
                allocations=allocations,
                operators=len(operators),
            )
        )
    return costs


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadArgument("arguments", message)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = _Parser(prog="python -m bench.host_overhead", description=(__doc__ or "").splitlines()[0])
    for option, allowed in (("--op", NORMS), ("--mode", MODES)):
        names = ", ".join(allowed)
        parser.add_argument(option, metavar="NAMES", default=names, help=f"of {names} (default: all)")
    parser.add_argument("--repeat", metavar="N", default=str(REPEAT), help=f"blocks of {CALLS} calls ({REPEAT})")
    parser.add_argument("--json", action="store_true", help="one JSON object a cell on stdout, no table")
    try:
        given = parser.parse_args(argv)
        ops, modes = cli.some_of("--op", given.op, NORMS), cli.some_of("--mode", given.mode, MODES)
        if not re.fullmatch(r"[1-9][0-9]{0,3}", given.repeat):
            raise BadArgument("--repeat", f"{given.repeat!r} is not a whole number from 1 to 9999")
    except BadArgument as error:
        print("bench.host_overhead: error:", *str(error).split(), file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with absent_gpu() if device.type == "cpu" else nullcontext():
        costs = measure(ops, modes, int(given.repeat), device)
    if given.json:
        for cost in costs:
            print(json.dumps(asdict(cost)))
    else:
        show(costs, device)
    return 0


def show(costs: Sequence[Cost], device: torch.device) -> None:
    """A row for every operator, mode and form, normlib beside torch."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if device.type == "cuda":
        console.print(f"every launch is made, asynchronously, on {torch.cuda.get_device_name(device)}")
    else:
        console.print("no GPU: launches end at a stand-in for the kernel; torch's figure contains its CPU kernel")
    console.print("microseconds a call: median and distance between quartiles; counts: normlib / torch")
    headings = ("op", "mode", "form", "host", "iqr", "launch", "torch", "iqr", "kernels", "allocations", "operators")
    table = Table(*headings)
    for ours, theirs in zip(costs[::2], costs[1::2], strict=True):
        figures = (ours.host_us, ours.host_iqr_us, ours.launch_us, theirs.host_us, theirs.host_iqr_us)
        counts = (f"{ours.allocations} / {theirs.allocations}", f"{ours.operators} / {theirs.operators}")
        table.add_row(ours.op, ours.mode, ours.form, *(f"{us:.1f}" for us in figures), str(ours.kernels), *counts)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
