"""Bytes counted in Triton's interpreter, beside those that the launches declare: they must agree to the byte.

`python -m bench.audit.counting OPERATORS` prints one JSON object a launch. It interprets, so it is a process of its own
beside the one that compiles. The calls are small (calls.small_calls): what they prove is the declaration, which is the
same code for large ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, TensorHandle, interpreter_builder

from bench.audit.calls import Call, small_calls
from bench.audit.choices import audited
from bench.cases.case import Case
from bench.cases.operators import Inputs, Operator
from bench.fake_gpu import recording
from bench.measure.launches import RecordedPass
from normlib.kernels.plan import Device
from normlib.kernels.traffic import Access, KernelLaunch, Traffic


@dataclass(frozen=True)
class Count:
    """One launch of a pass of a call: as declared, as counted, and the lanes that masks switched off, by tensor.

    Where the pass makes other launches than it declares, there is nothing on the one side.
    """

    call: str
    op: str
    mode: str
    plan: str  # its kind
    declared: Traffic | None
    counted: Traffic | None
    masked: Mapping[str, int]

    @property
    def problems(self) -> list[str]:
        """The differences between declaration and count, a line each."""
        if self.declared is None or self.counted is None or self.declared.kernel != self.counted.kernel:
            said, done = (side.kernel if side else "no launch" for side in (self.declared, self.counted))
            return [f"{done} was launched, {said} is declared"]
        found = []
        for name in self.declared.accesses.keys() | self.counted.accesses.keys():
            declared, counted = (side.accesses.get(name) for side in (self.declared, self.counted))
            if declared != counted:
                found.append(f"{self.counted.kernel} moves other bytes of {name}: {counted}, declared {declared}")
        return sorted(found)

    def as_dict(self) -> dict[str, Any]:
        """Returns a line of records.jsonl, with what is compared of either side."""
        sides = {
            key: {name: value for name, value in asdict(side).items() if name in ("kernel", "grid", "accesses")}
            for key, side in (("declared", self.declared), ("counted", self.counted))
            if side is not None
        }
        return {**asdict(self), **sides}


class _Ledger:
    """The accesses of one launch, by argument."""

    def __init__(self, kernel: str, arguments: dict[str, Tensor]) -> None:
        self._kernel = kernel
        self.grid: tuple[int, ...] = ()
        self._lanes = {name: {"load": 0, "store": 0, "masked": 0} for name in arguments}
        # Widened to the end of the last element; arguments do not overlap within a launch.
        self._begin = {name: t.data_ptr() for name, t in arguments.items()}
        self._itemsize = {name: t.element_size() for name, t in arguments.items()}
        self._touched = {name: np.zeros(_extent(t), bool) for name, t in arguments.items()}

    def note(self, kind: str, addresses: np.ndarray, mask: np.ndarray) -> None:
        """Adds one access of a program; its lanes all go to one argument."""
        addresses, mask = np.atleast_1d(addresses.astype(np.int64)), np.atleast_1d(mask).astype(bool)
        active = addresses[mask]
        name = self._argument(active if active.size else addresses)
        self._lanes[name][kind] += active.size
        self._lanes[name]["masked"] += mask.size - active.size
        self._touched[name][(active - self._begin[name]) // self._itemsize[name]] = True

    def _argument(self, addresses: np.ndarray) -> str:
        """Returns the name of the argument that begins last before the first address."""
        first = int(addresses.flat[0])
        return max((n for n, begin in self._begin.items() if begin <= first), key=self._begin.__getitem__)

    def traffic(self) -> Traffic:
        """Returns what was counted as a launch declares it, less the arguments that were not touched."""
        found = {}
        for name, lanes in self._lanes.items():
            if lanes["load"] or lanes["store"]:
                elements = lanes["load"], lanes["store"], int(self._touched[name].sum())
                found[name] = Access(*(count * self._itemsize[name] for count in elements))
        return Traffic(self._kernel, self.grid, found)

    def masked(self) -> dict[str, int]:
        return {name: lanes["masked"] for name, lanes in self._lanes.items()}


def _extent(tensor: Tensor) -> int:
    """Returns the number of elements from the first to the last in memory."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


@contextmanager
def counting() -> Iterator[list[_Ledger]]:
    """Within, every launch in the interpreter leaves a ledger of its accesses."""
    ledgers: list[_Ledger] = []
    launch = GridExecutor.__call__
    load, store = interpreter_builder.create_masked_load, interpreter_builder.create_masked_store
    rmw = interpreter_builder.create_atomic_rmw

    def counted_launch(self: Any, *args: Any, **kwargs: Any) -> None:
        named = dict(zip(self.arg_names, args, strict=False)) | kwargs
        tensors = {name.removesuffix("_ptr"): t for name, t in named.items() if isinstance(t, Tensor)}
        ledgers.append(_Ledger(self.fn.__name__, tensors))
        launch(self, *args, **kwargs)
        ledgers[-1].grid = tuple(self.grid)

    def counted_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        ledgers[-1].note("load", pointers.data, mask.data)
        return load(pointers, mask, *rest)

    def counted_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        ledgers[-1].note("store", pointers.data, mask.data)
        return store(pointers, value, mask, *rest)

    def open_barrier(operation: Any, pointers: Any, value: Any, *rest: Any) -> TensorHandle:
        if value.data.any():
            return rmw(operation, pointers, value, *rest)
        # A look at a counter. Programs run one after another, so nobody else will come: all have arrived.
        return TensorHandle(np.full(pointers.data.shape, 2**31 - 1, np.int32), tl.int32)

    GridExecutor.__call__ = counted_launch
    interpreter_builder.create_atomic_rmw = open_barrier
    interpreter_builder.create_masked_load = counted_load
    interpreter_builder.create_masked_store = counted_store
    try:
        with np.errstate(all="ignore"):  # tensors hold what memory held before
            yield ledgers
    finally:
        GridExecutor.__call__ = launch
        del interpreter_builder.create_masked_load, interpreter_builder.create_masked_store
        del interpreter_builder.create_atomic_rmw


def counts(call: Call, device: Device) -> Iterator[Count]:
    """Runs every pass of the call and yields what was counted, launch by launch."""

    def run(launch: KernelLaunch) -> KernelLaunch:
        launch.run()
        return launch

    with counting() as ledgers, recording(device, run) as launches:
        for mode, run_pass in call.passes(make=_drawn):
            ledgers.clear()
            launches.clear()
            run_pass()
            for launch, ledger in zip_longest(launches, ledgers):
                kind = RecordedPass(mode, launches[0].plan, ()).kind
                counted, masked = (None, {}) if ledger is None else (ledger.traffic(), ledger.masked())
                yield Count(str(call), call.op, mode, kind, None if launch is None else launch.traffic, counted, masked)


def _drawn(operator: Operator, case: Case, device: str) -> Inputs:
    """Returns normal inputs: what is far from normal batch norm's statistics may sweep a second time."""
    return operator.drawn(replace(case, inputs="normal", offset=0.0), torch.device(device), 0)


def main(ops: Sequence[str]) -> int:
    for call, device in small_calls(ops or audited()):
        for count in counts(call, device):
            print(json.dumps({"record": "count", **count.as_dict(), "problems": count.problems}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
