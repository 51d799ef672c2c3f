"""Launches of normlib's kernels on CPU tensors, compiled for sm_90 and executed here instead of on a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton import knobs

from bench.fake_gpu import COMPILED, H200_TARGET, Driver, State, driven_by, recording
from normlib.kernels import host as counters
from normlib.kernels.plan import Device
from normlib.kernels.traffic import PARTIALS, KernelLaunch
from ptx.machine import Deadlock, Launch
from ptx.memory import BASE, Fault, GlobalMemory
from ptx.parsing import Program, Unsupported, program

NUMBERS = {"i32": np.int32, "u32": np.uint32, "i64": np.int64, "u64": np.uint64, "fp32": np.float32, "fp64": np.float64}


@dataclass(frozen=True)
class Emulation:
    """Settings of an emulation. A launch is executed in several orders from the same memory; the first results stay.

    `orders` is a number of random orders of programs, where programs can wait for each other; one more order is that of
    single warps. `contract` says which products are fused into sums, and with approx="worst" approximate instructions
    are as wrong as PTX allows. `edit(ptx)` plants a bug. At most `resident` programs run at a time.
    """

    orders: int = 2
    contract: str = "single"
    approx: str = "exact"
    edit: Callable[[str], str] = lambda ptx: ptx
    resident: int | None = None


def only_ptx(backend: Any = None, stages: Any = None, *_: Any) -> Any:
    """Has Triton stop at PTX: ptxas takes a third of the time. Without arguments it returns what a cache key needs."""
    if stages is None:
        return "only PTX", "only PTX"
    stages["cubin"] = lambda ptx, metadata: b""


@contextmanager
def emulated(device: Device, emulation: Emulation) -> Iterator[list[Counter]]:
    """Within, every launch is executed here; yields what was found in each, ((kind, what, where): how often)."""
    deterministic = torch.utils.deterministic
    hook, filled = knobs.runtime.add_stages_inspection_hook, deterministic.fill_uninitialized_memory
    knobs.runtime.add_stages_inspection_hook = only_ptx
    torch.use_deterministic_algorithms(True)  # torch.empty is then full of NaN: what no kernel wrote is seen
    deterministic.fill_uninitialized_memory = True
    executing = recording(device, lambda launch: execute(launch, emulation))
    try:
        with executing as found, driven_by(Driver(State(), H200_TARGET, COMPILED)), _cached_apart():
            yield found
    finally:
        torch.use_deterministic_algorithms(False)
        deterministic.fill_uninitialized_memory = filled
        knobs.runtime.add_stages_inspection_hook = hook


@contextmanager
def _cached_apart() -> Iterator[None]:
    """Within, Triton's cache is a folder of its own, for kernels that have PTX only."""
    with knobs.cache.scope():
        knobs.cache.dir = str(Path(knobs.cache.dir) / "only_ptx")
        yield


def execute(launch: KernelLaunch, emulation: Emulation) -> Counter:
    kernel = launch.run(warmup=True)
    name = launch.kernel.__name__
    arguments = {**dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)), **launch.constants}
    passed = [(n, arguments[n], kind) for n, kind in kernel.src.signature.items() if kind != "constexpr"]
    tensors = [value for _, value, _ in passed if isinstance(value, Tensor)]
    updated = [
        arguments[f"{n}_ptr"]
        for n, access in launch.traffic.accesses.items()
        if access.loads and access.stores and n not in PARTIALS
    ]
    found: Counter = Counter()
    try:
        code = program(emulation.edit(kernel.asm["ptx"]), emulation.contract)
        assert code.threads == 32 * kernel.metadata.num_warps
        orders = [{"seed": seed} for seed in range(emulation.orders if code.atomic else 1)]
        first = None
        for order in (*orders, {"seed": 0, "skewed": True}):
            memory = _memory(code, tensors, updated)
            parameters = [_parameter(memory, value, kind) for _, value, kind in passed]
            parameters += [np.uint64(0)] * (len(code.params) - len(parameters))  # scratch memory, which no kernel has
            run = Launch(code, launch.grid, parameters, memory, kernel.metadata.shared, approx=emulation.approx,
                         resident=emulation.resident, **order)  # fmt: skip
            run.run()
            found += Counter({(*kind, f"{name}: {line}"): n for (*kind, line), n in run.findings.items()})
            first = first or memory
            if (memory.bytes != first.bytes).any():
                places = np.flatnonzero(memory.bytes != first.bytes)
                others = [n for n, t, _ in passed if isinstance(t, Tensor) and _within(memory, t, places).any()]
                found["order", f"other bits of {', '.join(others)}", name] += 1
        first.write_back()
    except (Deadlock, Fault, Unsupported) as error:
        found[type(error).__name__.lower(), str(error), name] += 1
    slabs = {slab.untyped_storage().data_ptr() for slab in counters._slabs.get(torch.device("cpu"), ())}
    for n, value, _ in passed:
        if isinstance(value, Tensor) and value.untyped_storage().data_ptr() in slabs and value.any():
            found["fault", f"{n} is not left at zero", name] += 1
            value.zero_()
    return found


def _span(tensor: Tensor) -> tuple[int, int]:
    """Returns the addresses at which the tensor's elements begin and end."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (1 + last) * tensor.element_size() * (tensor.numel() > 0)


def _memory(code: Program, tensors: list[Tensor], updated: list[Tensor]) -> GlobalMemory:
    """Returns the memory of these tensors, where those that overlap are one buffer."""
    spans: list[tuple[int, int]] = []
    for begin, end in sorted(_span(tensor) for tensor in tensors):
        if spans and begin < spans[-1][1]:
            spans[-1] = spans[-1][0], max(spans[-1][1], end)
        else:
            spans.append((begin, end))
    memory = GlobalMemory(spans, code.grain, code.threads)
    for tensor in updated:
        begin, end = _span(tensor)
        memory.in_place[memory.index(begin) : memory.index(begin) + end - begin] = True
    return memory


def _within(memory: GlobalMemory, tensor: Tensor, places: np.ndarray) -> np.ndarray:
    begin, end = _span(tensor)
    return (places >= memory.index(begin)) & (places < memory.index(begin) + end - begin)


def _parameter(memory: GlobalMemory, value: Any, kind: str) -> np.unsignedinteger:
    if isinstance(value, Tensor):
        return np.uint64(BASE + memory.index(value.data_ptr()))
    if kind not in NUMBERS:
        raise Unsupported(f"no parameter of type {kind} is passed")
    number = NUMBERS[kind](value)
    return number.view({4: np.uint32, 8: np.uint64}[number.itemsize])
