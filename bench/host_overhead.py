"""`python -m bench.host_overhead`: microseconds between a call of a norm and the launch of its kernels, and the counts.

A small norm takes the device less time than the host needs to launch it, so the host's time is what a user waits for.
Three times of a call, each a median over blocks of calls:

- `host`: normlib without the launch: `kernel[grid](...)` returns at once. It covers normlib's checks, PyTorch's
  dispatcher and autograd, the plan and the allocations.
- `launch`: what Triton's Python adds: it binds and specializes the arguments and looks up the kernel. It is the median
  difference of two neighbouring blocks, one with the launch and one without.
- `torch`: PyTorch's own operator on the same tensors.

Without a GPU the tensors are on the CPU and still take the kernels' path, up to a stand-in for the kernel
(bench/fake_gpu.py), so `launch` lacks the driver's own call, and no result is right. PyTorch's time then includes its
CPU kernel, on 2 kB (batch norm: 8 kB) of x. The clock is the time of this process, which other work on the machine does
not add to. With a GPU every launch is made, asynchronously: the clock is the wall's, and the host waits for the device
once a block of calls, or more often where the device is slower than the host.

Counted in one more call, by PyTorch's profiler: kernels launched (only normlib's), operators called through the
dispatcher, and how many of those allocated memory.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from statistics import median
from time import process_time
from typing import TYPE_CHECKING, Any

from bench import cli
from bench.cases.case import MODES

# What imports torch is imported inside functions: a bad argument is told at once, and `main` has switched Triton's
# interpreter off before.
if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.utils.benchmark import Measurement

# Calls in a block: some tens of milliseconds, long beside a clock's tick and a wait for the device.
CALLS = 500
REPEAT = 15
FORMS = ("functional", "module")
Call = Callable[[], object]


@dataclass(frozen=True)
class SmallNorm:
    """One operator: its functional form, its module, the shape of x, and what the functional form takes after x."""

    functional: str
    module: Callable[[Any], nn.Module]
    shape: tuple[int, ...]
    arguments: Callable[[Any], tuple[Any, ...]]


# Small, so that the host takes longer than the device: 2 kB and 8 kB of activations in float32.
NORMS = {
    "bn": SmallNorm(
        "batch_norm",
        lambda library: library.BatchNorm2d(64),
        (4, 64, 2, 4),
        lambda m: (m.running_mean, m.running_var, m.weight, m.bias, m.training, m.momentum, m.eps),
    ),
    "ln": SmallNorm(
        "layer_norm",
        lambda library: library.LayerNorm(64),
        (8, 64),
        lambda m: (m.normalized_shape, m.weight, m.bias, m.eps),
    ),
    "rms": SmallNorm(
        "rms_norm",
        lambda library: library.RMSNorm(64, eps=1e-6),
        (8, 64),
        lambda m: (m.normalized_shape, m.weight, m.eps),
    ),
}


@dataclass
class HostCost:
    """One call's cost to the host. `host_us` includes the launch for torch, which has no `launch_us` and `kernels`."""

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
    """Returns the call that is measured, on tensors of its own; in mode `eval` without gradients."""
    import torch
    from torch import nn

    norm, ours = NORMS[op], library.__name__ == "normlib"
    layer = norm.module(library if ours else nn).to(device).train(mode != "eval")
    x = torch.randn(norm.shape, device=device, requires_grad=mode != "eval")
    if form == "module":
        forward: Callable[[], Tensor] = partial(layer, x)
    else:
        functional = library.functional if ours else nn.functional
        forward = partial(getattr(functional, norm.functional), x, *norm.arguments(layer))
    leaves, dy = (x, *layer.parameters()), torch.randn(norm.shape, device=device)
    if mode == "bwd":
        return partial(torch.autograd.grad, forward(), leaves, dy, retain_graph=True)
    if mode == "fwd_bwd":
        return lambda: torch.autograd.grad(forward(), leaves, dy)
    return forward


@contextmanager
def no_launch() -> Iterator[list[str]]:
    """Makes `kernel[grid](...)` only return; yields the list of the kernels that would have been launched."""
    from triton.runtime.jit import JITFunction

    launched: list[str] = []
    run = JITFunction.run
    JITFunction.run = lambda self, *_, **__: launched.append(self.__name__)
    try:
        yield launched
    finally:
        JITFunction.run = run


def count(call: Call) -> tuple[list[str], list[str], int]:
    """Returns (kernels launched, operators called, how many of those allocated) of one call, without the launches."""
    from torch.profiler import ProfilerActivity, profile

    with no_launch() as launched:
        call()
        launched.clear()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
            call()
    events = [e for e in profiled.events() if e.name.startswith(("aten::", "normlib::"))]
    allocations = sum(e.self_cpu_memory_usage > 0 or e.self_device_memory_usage > 0 for e in events)
    return launched, [e.name for e in events], allocations


def measure(ops: Sequence[str], modes: Sequence[str], repeat: int, device: torch.device) -> list[HostCost]:
    """Measures every operator, mode and form of both libraries; in turns, so that a slow moment is shared by all."""
    # It imports what compiles extensions, and that warns where there is a CUDA compiler and no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    import torch
    from torch.utils.benchmark import Measurement, Timer, timer

    import normlib

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
            HostCost(
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


@cli.command("bench.host_overhead")
def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns its exit status."""
    parser = cli.Parser(prog="python -m bench.host_overhead", description=(__doc__ or "").partition("\n")[0])
    for option, allowed in (("--op", NORMS), ("--mode", MODES)):
        names = ", ".join(allowed)
        parser.add_argument(option, metavar="NAMES", default=names, help=f"of {names} (default: all)")
    parser.add_argument("--repeat", metavar="N", default=str(REPEAT), help=f"blocks of {CALLS} calls ({REPEAT})")
    parser.add_argument("--json", action="store_true", help="one JSON object a cell on stdout, no table")
    given = parser.parse_args(argv)
    ops, modes = cli.some_of("--op", given.op, NORMS), cli.some_of("--mode", given.mode, MODES)
    repeat = cli.count("--repeat", given.repeat)
    os.environ.pop("TRITON_INTERPRET", None)  # the interpreter takes another way to a kernel
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # PyTorch's profiler says when it begins and ends, at every call
    import torch

    from bench.fake_gpu import absent_gpu

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with absent_gpu() if device.type == "cpu" else nullcontext():
        costs = measure(ops, modes, repeat, device)
    if given.json:
        for cost in costs:
            print(json.dumps(asdict(cost)))
    else:
        show(costs, device)
    return 0


def show(costs: Sequence[HostCost], device: torch.device) -> None:
    """Prints a row for every operator, mode and form, normlib beside torch."""
    import torch
    from rich.table import Table

    console = cli.console(160)
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
