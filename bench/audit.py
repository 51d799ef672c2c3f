"""`python -m bench.audit`: what the compiler makes of every kernel for GPUs that are not there.

The launchers run as they would on a GPU, on tensors without memory; only the last step, the launch, is left out. So
what is inspected is what a user's call would compile: same plan, same specialization. Registers, spills and the width
of global loads are read from the machine code.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, cast

os.environ.pop("TRITON_INTERPRET", None)  # an interpreting process compiles nothing

import torch
import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from bench.operators import operators
from bench.operators._models import model_presets
from normlib.kernels import batch_norm, row_norm
from normlib.kernels.plan import Device

# Multiprocessors of the A100, H200, B200 and MI300X.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), Device(108)),
    "sm_90": (GPUTarget("cuda", 90, 32), Device(132)),
    "sm_100": (GPUTarget("cuda", 100, 32), Device(148)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), Device(304, 64, None)),
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}
# Beside the models' shapes: ragged, tiny and very wide rows, and channels that are a multiple of nothing.
EXTRA_COLUMNS = (8, 100, 1000, 16384, 65536, 131072)
EXTRA_BATCHES = ((4, 65, 7, 7), (64, 1000), (8, 3, 224, 224), (32, 64, 56, 56))


@dataclass(frozen=True)
class Launch:
    """One call of the library: an operator on a shape."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    layout: str

    @property
    def run_bytes(self) -> int:
        """Bytes of a contiguous run: loads can be as wide as the largest power of two that divides it."""
        innermost = self.shape[2:] if self.layout == "nchw" and len(self.shape) > 2 else self.shape[1:2]
        return prod(innermost) * DTYPES[self.dtype].itemsize


@dataclass
class Compiled:
    """One kernel as compiled for one target, and the first launch that needed it."""

    target: str
    kernel: str
    launch: str
    num_warps: int
    registers: int
    spill: int  # bytes of stack on NVIDIA, spilled vector registers on AMD
    shared: int  # bytes
    load_bits: int  # the widest global load
    wide: bool  # the activations' runs are multiples of 16 bytes, so 128-bit loads are possible


class _NoDevice:
    """A Triton driver for a target that is not there: enough of one to compile."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.name][0]

    def get_current_device(self) -> int:
        return list(TARGETS).index(self.name)  # Triton caches kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0


def launches() -> Iterator[Launch]:
    """Every shape of the models, in the models' dtypes and every layout; and the extra ones in 16 and 32 bits."""
    for operator in operators().values():
        for model in model_presets(operator.name, operator.axes, operator.layouts).values():
            for grid in model.grids:
                for values in product(*(grid[name] for name in (*operator.axes, "dtype", "layout"))):
                    named = dict(zip((*operator.axes, "dtype", "layout"), values, strict=True))
                    shape = operator.shape({axis: cast(int | str, named[axis]) for axis in operator.axes})
                    yield Launch(operator.name, shape, str(named["dtype"]), str(named["layout"]))
        extra = EXTRA_BATCHES if operator.name == "batch_norm" else [(4096, n) for n in EXTRA_COLUMNS]
        for shape, dtype, layout in product(extra, ("bf16", "fp32"), operator.layouts):
            yield Launch(operator.name, shape, dtype, layout)
        yield from (Launch(operator.name, (64, 1024), "fp64", layout) for layout in operator.layouts)


def call(launch: Launch, device: Device) -> None:
    """Runs the operator's launchers, forward and backward, on tensors without memory."""
    dtype = DTYPES[launch.dtype]
    if launch.layout == "nhwc":
        n, c, *positions = launch.shape
        x = torch.empty((n, *positions, c), dtype=dtype, device="meta").movedim(-1, 1)
    else:
        x = torch.empty(launch.shape, dtype=dtype, device="meta")
    if launch.op == "batch_norm":
        v = torch.empty(launch.shape[1], dtype=dtype if dtype == torch.float64 else torch.float32, device="meta")
        _, mean, rstd = batch_norm.batch_norm_forward(x, v, v, v, v, 0.1, 1e-5, device)
        batch_norm.batch_norm_eval_forward(x, v, v, v, v, 1e-5, device)
        batch_norm.batch_norm_backward(x, x, mean, rstd, v, 1e-5, False, True, True, device)
        batch_norm.batch_norm_backward(x, x, v, v, v, 1e-5, True, True, True, device)
    else:
        n, centred = launch.shape[1], launch.op == "layer_norm"
        w = torch.empty(n, dtype=dtype, device="meta")
        _, mean, rstd = row_norm.forward(x, w, w if centred else None, 1e-5, centred, n, device)
        row_norm.backward(x, x, mean, rstd, w, centred, n, dtype, dtype if centred else None, True, device)


@contextmanager
def compiling(name: str) -> Iterator[list[tuple[str, Any]]]:
    """Within, launching a kernel compiles it for the target and stops there; yields (name, kernel) pairs."""
    found: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found.append((self.__name__, kernel))
        return kernel

    JITFunction.run = compile_only
    driver.set_active(_NoDevice(name))
    try:
        yield found
    finally:
        JITFunction.run = run


def inspect(kernel: Any) -> tuple[int, int, int]:
    """(registers, spill, bits of the widest global load) of a compiled kernel."""
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        words = [int(w or 1) for w in re.findall(r"(?:global|buffer)_load_dword(?:x(\d))?", text)]
        return (
            _number(r"\.vgpr_count:\s*(\d+)", text),
            _number(r"\.vgpr_spill_count:\s*(\d+)", text),
            32 * max(words, default=0),
        )
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        code = _output(tools / "nvdisasm", "-c", file.name)
    widths = [int(w or 32) for w in re.findall(r"\bLDG\.E(?:\.(?!U?\d)\w+)*(?:\.(64|128))?", code)]
    return _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage), max(widths, default=0)


def _output(tool: Path, *arguments: str) -> str:
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"the compiler's report has no {pattern}")
    return int(match[1])


def audit(name: str) -> list[Compiled]:
    """Compiles every launch for one target and inspects each distinct kernel once."""
    _, device = TARGETS[name]
    results: dict[int, Compiled] = {}
    with compiling(name) as found:
        for launch in launches():
            found.clear()
            call(launch, device)
            for kernel_name, kernel in found:
                if id(kernel) in results:
                    results[id(kernel)].wide &= launch.run_bytes % 16 == 0
                    continue
                registers, spill, bits = inspect(kernel)
                results[id(kernel)] = Compiled(
                    target=name,
                    kernel=kernel_name,
                    launch=f"{launch.op} {'x'.join(map(str, launch.shape))} {launch.dtype} {launch.layout}",
                    num_warps=kernel.metadata.num_warps,
                    registers=registers,
                    spill=spill,
                    shared=kernel.metadata.shared,
                    load_bits=bits,
                    wide=launch.run_bytes % 16 == 0,
                )
    return list(results.values())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.audit", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", default=",".join(TARGETS), help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--json", action="store_true", help="one JSON object a kernel on stdout, no table")
    arguments = parser.parse_args(argv)
    names = arguments.target.split(",")
    for name in names:
        if name not in TARGETS:
            print(f"bench.audit: error: --target: {name!r} is not one of {', '.join(TARGETS)}", file=sys.stderr)
            return 2
    kernels = [kernel for name in names for kernel in audit(name)]
    if arguments.json:
        for kernel in kernels:
            print(json.dumps(asdict(kernel)))
    else:
        table = Table("target", "kernel", "warps", "registers", "spill", "shared", "load bits", "first needed by")
        for k in kernels:
            row = (k.target, k.kernel, k.num_warps, k.registers, k.spill, k.shared, k.load_bits, k.launch)
            table.add_row(*map(str, row), style="bold red" if k.spill else "")
        Console().print(table)
    return 1 if any(kernel.spill for kernel in kernels) else 0


if __name__ == "__main__":
    sys.exit(main())
