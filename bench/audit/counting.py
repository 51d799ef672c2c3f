"""Bytes counted in Triton's interpreter, beside those that the plan declares: they must agree to the byte.

`python -m bench.audit.counting OPERATORS` prints one JSON object a launch. It interprets, so it is a process of its own
beside the one that compiles. The shapes are small, and of every kind of plan: what they prove is the declaration,
which is the same function for large ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product, zip_longest
from typing import Any

import numpy as np
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, TensorHandle, interpreter_builder

from bench.audit.calls import Launch
from bench.operators import operators
from normlib.kernels.plan import Device
from normlib.kernels.traffic import Access, Traffic

# Enough programs that a channel is split and a grid is persistent, few enough to be quick: 2 ms each.
DEVICE = Device(multiprocessors=1)
# A plan knows a dtype by its size, so float16 goes as bfloat16 does.
DTYPES = ("fp32", "bf16", "fp64")
# Both loops, the last step partial.
LOOP = {"bf16": (1, 16390), "fp64": (2, 8205)}
# One chunk and a tile of rows that is not full; three chunks, the last one partial.
ROW_SHAPES = ((100, 100), (5, 1603))
# Three runs of 11; more channels than a tile; (N, C), with two channels in the last group; runs longer than a tile.
BATCH_SHAPES = ((3, 5, 11), (2, 65, 7, 7), (33, 130), (2, 3, 700))
# As the second one, in runs of a multiple of 4: shorter ones take three launches behind a ReLU.
ALIGNED_SHAPE = (2, 65, 6, 6)
# One tile a split; three channel groups of 68, in tiles of 32; and the cache, in units of x, in which two of the groups
# fit forward (3) or backward (6), so that the third runs behind them.
ONCE_SHAPES = {"nchw": (6, 5, 12), "nhwc": (6, 68, 111)}
ONCE_CACHE = {"fp32": (3, 6), "bf16": (6,), "fp64": (3,)}
SEQUENCES = (11, 3, 130)
LOOP_WITHOUT = (("dx",), ("dw",))
# A device on which the same rows go in slices: three of them, two groups of rows, two rounds.
SLICED = replace(DEVICE, multiprocessors=3, cooperative=True)
SLICED_ROWS = {"bf16": (4, 8202), "fp64": (3, 4102)}
# Groups: of rows that they do not fill; two a tile; several splits of a channel, with few groups; (N, C).
GROUPED = {
    "group_norm": (((3, 10, 11), 2), ((2, 8, 7, 7), 4), ((1, 6, 4100), 2), ((5, 12), 4)),
    "instance_norm": (((3, 5, 11), 5), ((1, 3, 9000), 3)),
}
# What may be left out.
WITHOUT: dict[str, tuple[tuple[str, ...], ...]] = {
    "layer_norm": (("weight", "bias"), ("bias",), ("dx",), ("dw",), ("db",), ("dw", "db"), ("dx", "dw", "db")),
    "rms_norm": (("weight",), ("dx",), ("dw",), ("dx", "dw")),
    "partial_rms_norm": (),
    "layer_norm_add": (("dz",), ("dx",)),
    "rms_norm_add": (("dz",),),
    "weight_norm": (("dx",), ("dw",)),
    "batch_norm": (
        ("weight", "bias"),
        ("bias",),
        ("running_mean", "running_var"),
        ("dx",),
        ("dw", "db"),
        ("dx", "dw", "db"),
    ),
    "batch_norm_relu": (("weight", "bias"), ("dx",), ("dw", "db")),
    "batch_norm_add_relu": (("dz",), ("dx",), ("dw", "db"), ("dx", "dw", "db")),
    "batch_renorm": (("weight", "bias"), ("dx",), ("dw", "db")),
    "noisy_batch_norm": (("running_mean", "running_var"), ("dx",), ("dw", "db")),
    "group_norm": (("weight", "bias"), ("dx",), ("dw",), ("db",), ("dw", "db"), ("dx", "dw", "db")),
    "instance_norm": (("running_mean", "running_var"), ("dx",)),
    "lp_norm": (("weight", "bias"), ("running_mean", "running_norm"), ("dx",), ("dw", "db"), ("dx", "dw", "db")),
}


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
        """Where declaration and count differ, a line each."""
        if self.declared is None or self.counted is None or self.declared.kernel != self.counted.kernel:
            said, done = (side.kernel if side else "no launch" for side in (self.declared, self.counted))
            return [f"{done} was launched, {said} is declared"]
        found = []
        if self.declared.grid != self.counted.grid:
            found.append(f"{self.counted.kernel} has a grid of {self.counted.grid}, declared is {self.declared.grid}")
        for name in self.declared.accesses.keys() | self.counted.accesses.keys():
            declared, counted = (side.accesses.get(name) for side in (self.declared, self.counted))
            if declared != counted:
                found.append(f"{self.counted.kernel} moves other bytes of {name}: {counted}, declared {declared}")
        return sorted(found)

    def as_dict(self) -> dict[str, Any]:
        """As a line of records.jsonl, of either side what is compared."""
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
        """Whose address the first one is: of the argument that begins last before it."""
        first = int(addresses.flat[0])
        return max((n for n, begin in self._begin.items() if begin <= first), key=self._begin.__getitem__)

    def traffic(self) -> Traffic:
        """As a plan declares it, less the arguments that were not touched."""
        found = {
            name: Access(lanes["load"], lanes["store"], int(self._touched[name].sum())).of(self._itemsize[name])
            for name, lanes in self._lanes.items()
            if lanes["load"] or lanes["store"]
        }
        return Traffic(self._kernel, self.grid, found)

    def masked(self) -> dict[str, int]:
        return {name: lanes["masked"] for name, lanes in self._lanes.items()}


def _extent(tensor: Tensor) -> int:
    """Elements from the first to the last in memory."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


@contextmanager
def counting() -> Iterator[list[_Ledger]]:
    """Within, every launch in the interpreter leaves a ledger of its accesses."""
    ledgers: list[_Ledger] = []
    launch = GridExecutor.__call__
    load, store = interpreter_builder.create_masked_load, interpreter_builder.create_masked_store

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

    def open_barrier(operation: Any, pointers: Any, *rest: Any) -> TensorHandle:
        # Programs run one after another, so nobody else will come: all have arrived. No address depends on a value.
        return TensorHandle(np.full(pointers.data.shape, 2**31 - 1, np.int32), tl.int32)

    GridExecutor.__call__ = counted_launch
    interpreter_builder.create_atomic_rmw = open_barrier
    interpreter_builder.create_masked_load = counted_load
    interpreter_builder.create_masked_store = counted_store
    try:
        yield ledgers
    finally:
        GridExecutor.__call__ = launch
        del interpreter_builder.create_masked_load, interpreter_builder.create_masked_store
        del interpreter_builder.create_atomic_rmw


def counts(call: Launch, device: Device) -> Iterator[Count]:
    """Every pass of the call, run and counted."""
    for mode, each in call.passes.modes.items():
        tensors = call.tensors("cpu")
        if not tensors.keys() >= each.needs:
            continue
        declared = each.declare(tensors, device)
        with counting() as ledgers:
            each.run(tensors, device)
        for said, done in zip_longest(declared.launches, ledgers):
            counted, masked = (None, {}) if done is None else (done.traffic(), done.masked())
            yield Count(str(call), call.op, mode, declared.kind, said, counted, masked)


def calls(ops: Iterable[str]) -> Iterator[tuple[Launch, Device]]:
    """Every kind of plan of these operators in every dtype and layout, ragged; and everything optional left out."""
    for op in ops:
        if op == "batch_norm":
            yield from _batch_norm_calls()
        elif op in GROUPED:
            yield from _group_norm_calls(op)
        elif op == "lp_norm":
            yield from _lp_norm_calls()
        elif "nchw" in operators()[op].layouts:
            yield from _fused_calls(op)
        elif op == "sequence_batch_norm":  # whose launches are batch norm's
            yield Launch(op, SEQUENCES, "bf16", "tnh"), DEVICE
        else:
            for dtype, shape in (*product(DTYPES, ROW_SHAPES), *LOOP.items()):
                yield Launch(op, shape, dtype, "rows"), DEVICE
            for names in WITHOUT[op]:
                yield Launch(op, ROW_SHAPES[0], "fp64", "rows", names), DEVICE
            for names in LOOP_WITHOUT:
                yield Launch(op, LOOP["fp64"], "fp64", "rows", names), DEVICE
            for dtype, shape in SLICED_ROWS.items():
                yield Launch(op, shape, dtype, "rows"), SLICED


def _batch_norm_calls() -> Iterator[tuple[Launch, Device]]:
    roomy = replace(DEVICE, l2=1 << 30)
    for dtype in DTYPES:
        for shape in BATCH_SHAPES:
            for layout in ("nchw", "nhwc") if len(shape) > 2 else ("nchw",):
                yield Launch("batch_norm", shape, dtype, layout), DEVICE
        for layout, shape in ONCE_SHAPES.items():
            call = Launch("batch_norm", shape, dtype, layout)
            for cache in ONCE_CACHE[dtype]:
                yield call, replace(DEVICE, l2=cache * call.activation_bytes, cooperative=True)
        yield Launch("batch_norm", BATCH_SHAPES[0], dtype, "nchw"), roomy
    for names, device in product(WITHOUT["batch_norm"], (DEVICE, roomy)):
        yield Launch("batch_norm", BATCH_SHAPES[0], "fp64", "nchw", names), device


def _group_norm_calls(op: str) -> Iterator[tuple[Launch, Device]]:
    """One launch and streaming, in both layouts; everything optional left out of each."""

    def call(shape: tuple[int, ...], groups: int, dtype: str, layout: str, without: tuple[str, ...] = ()) -> Launch:
        return Launch(op, shape, dtype, layout, without, (("groups", groups),) if op == "group_norm" else ())

    shapes = GROUPED[op]
    for (shape, groups), dtype, layout in product(shapes, ("fp32", "bf16"), ("nchw", "nhwc")):
        yield call(shape, groups, dtype, layout), replace(DEVICE, multiprocessors=2)
    for names, layout in product(WITHOUT[op], ("nchw", "nhwc")):
        shape, groups = shapes[0]
        yield call(shape, groups, "fp64", layout, names), DEVICE


def _fused_calls(op: str) -> Iterator[tuple[Launch, Device]]:
    """Every kind of plan once more, and everything optional left out: what is fused adds to tiles, not to dtypes."""
    for layout, shape in ONCE_SHAPES.items():
        call = Launch(op, shape, "bf16", layout)
        yield call, DEVICE
        yield call, replace(DEVICE, l2=6 * call.activation_bytes, cooperative=True)
    for names, l2 in product(((), *WITHOUT[op]), (0, 1 << 30)):
        yield Launch(op, ALIGNED_SHAPE, "fp64", "nchw", names), replace(DEVICE, l2=l2)


def _lp_norm_calls() -> Iterator[tuple[Launch, Device]]:
    """Every p in both layouts, ragged; and everything optional left out where there is most, with a peak."""
    for p, layout in product(operators()["lp_norm"].choices["p"], ("nchw", "nhwc")):
        yield Launch("lp_norm", (2, 65, 7, 7), "bf16", layout, (), (("p", p),)), DEVICE
    for names in WITHOUT["lp_norm"]:
        yield Launch("lp_norm", BATCH_SHAPES[0], "fp64", "nchw", names, (("p", "inf"),)), DEVICE


def main(ops: Sequence[str]) -> int:
    np.seterr(all="ignore")  # what tensors hold is of no interest, and some hold what memory held before
    for call, device in calls(ops or WITHOUT):
        for count in counts(call, device):
            print(json.dumps({"record": "count", **count.as_dict(), "problems": count.problems}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
