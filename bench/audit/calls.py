"""The audited calls of the library: on the shapes of presets and some more, and small ones to count bytes of."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import prod
from typing import cast
from unittest import mock

import torch

from bench.audit import synchronized
from bench.audit.choices import audited, models
from bench.cases.case import OPTIONS, Case, named
from bench.cases.operators import Inputs, Operator
from bench.cases.operators.group_norm import groups_of
from bench.cases.random_inputs import TORCH_DTYPES
from bench.measure.launches import ForwardOf, Pass, RecordedPass, passes, recorded, untouched
from bench.measure.providers.normlib import forward_of
from normlib.kernels.plan import Device
from normlib.kernels.row_norm.plan import RowBackwardPlan

DTYPES = {**TORCH_DTYPES, "fp64": torch.float64}
# Beside the presets' shapes, as `extra`: ragged, tiny and very wide rows, and channels that are a multiple of nothing.
EXTRA_COLUMNS = (8, 100, 1000, 16384, 65536, 131072)
EXTRA_SEQUENCES = ((50, 32, 1760),)  # on which the kernels are batch norm's
EXTRA_BATCHES = ((4, 65, 7, 7), (64, 1000), (8, 3, 224, 224), (32, 64, 56, 56))


@dataclass(frozen=True)
class Call:
    """One call of the library: an operator on a shape, `without` some of its tensors or gradients."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    without: tuple[str, ...] = ()
    options: tuple[tuple[str, int | str], ...] = ()  # as a case has them

    def __str__(self) -> str:
        without = f"without {', '.join(self.without)}" if self.without else ""
        shape = "x".join(map(str, self.shape))
        return " ".join(filter(None, (self.op, shape, *named(self.options), self.dtype, self.layout, without)))

    @property
    def case(self) -> Case:
        return Case(self.op, self.shape, self.options, self.dtype, self.layout, "")

    @property
    def activation_bytes(self) -> int:
        """Bytes of x: one unit."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def run_bytes(self) -> int:
        """Bytes of a contiguous run: loads can be as wide as the largest power of two that divides it."""
        innermost = {"nchw": self.shape[2:] or self.shape[1:], "nhwc": self.shape[1:2]}.get(
            self.layout, self.shape[-1:]
        )
        if self.op == "group_norm" and innermost == self.shape[1:2]:  # programs begin at a group's first channel
            innermost = (self.shape[1] // groups_of(self.case),)
        return prod(innermost) * DTYPES[self.dtype].itemsize

    def passes(
        self, device: str = "cpu", make: Callable[..., Inputs] = untouched, forward: ForwardOf | None = None
    ) -> Iterator[Pass]:
        """Yields the call's passes by mode, each to be run before the next one is asked for.

        `make` makes the inputs, and `forward` another call than the operator's own.
        """
        operator, wide = audited()[self.op], self.dtype == "fp64"  # which cases have none of
        inputs = make(operator, replace(self.case, dtype="fp32") if wide else self.case, device)
        if wide:
            inputs = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
        own = synchronized.OPERATOR.forward if self.op == synchronized.OPERATOR.name else forward_of
        with mock.patch("normlib.sync_batch_norm._gather", synchronized.gather_copies):
            yield from passes(operator, self.case, forward or own, inputs, self.without)

    def recorded(self, device: Device) -> list[RecordedPass]:
        """Returns the call's passes on such a device."""
        return recorded(self.passes(), device)


def calls(ops: Iterable[str] | None = None, names: Iterable[str] | None = None) -> Iterator[Call]:
    """Yields the calls of these operators (default: all) and presets (default: every model, and `extra`), each once."""
    ops = tuple(audited() if ops is None else ops)
    names = models(ops) if names is None else tuple(names)
    yield from dict.fromkeys(call for op in ops for name in names for call in _of(audited()[op], name))


def _of(operator: Operator, preset: str) -> Iterator[Call]:
    if preset == "extra":
        extra = {"rows": tuple((4096, n) for n in EXTRA_COLUMNS), "tnh": EXTRA_SEQUENCES}
        wide: tuple[int, ...] = (64, 1024)
        shapes: tuple[tuple[int, ...], ...] = extra.get(operator.layouts[0], EXTRA_BATCHES)
        if operator.name == "instance_norm":  # which refuses a single position
            shapes, wide = tuple(shape if len(shape) > 2 else (*shape, 2) for shape in shapes), (*wide, 2)
        elif operator.layouts == ("tnh",):
            wide = (4, 16, 1024)
        for options in product(*([(name, value) for value in values] for name, values in operator.choices.items())):
            for shape, dtype, layout in product(shapes, ("bf16", "fp32"), operator.layouts):
                yield Call(operator.name, shape, dtype, layout, (), options)
            for layout in operator.layouts:
                yield Call(operator.name, wide, "fp64", layout, (), options)
        if "rows" in operator.layouts:  # a wide row of which not everything is wanted
            for names in (("dx",), ("dw", "db")):
                yield Call(operator.name, (4096, 65536), "bf16", "rows", names)
    elif preset in operator.presets:
        for grid in operator.presets[preset].grids:
            for values in product(*(grid[axis] for axis in (*operator.axes, "dtype", "layout"))):
                found = dict(zip((*operator.axes, "dtype", "layout"), values, strict=True))
                axes = {axis: cast(int | str, found[axis]) for axis in operator.axes}
                options = tuple((axis, value) for axis, value in axes.items() if axis in OPTIONS)
                shape = operator.shape(axes)
                yield Call(operator.name, shape, str(found["dtype"]), str(found["layout"]), (), options)


def one_of_each_plan(calls: Iterable[Call], device: Device) -> Iterator[Call]:
    """Yields the first call of each kind of plan as one_of_each_kind, and of each choice of its tiles and warps."""

    def chosen(call: Call, one: RecordedPass) -> Iterator[Hashable]:
        plan = one.plan.rows if isinstance(one.plan, RowBackwardPlan) else one.plan
        yield _kind(call, one), *plan.options.items()

    return _one_of_each(chosen, calls, device)


def one_of_each_kind(calls: Iterable[Call], device: Device) -> Iterator[Call]:
    """Yields the first call of each kind of plan and its kernels, in every layout, with every option."""
    return _one_of_each(lambda call, one: [_kind(call, one)], calls, device)


def one_of_each_kernel(calls: Iterable[Call], device: Device) -> Iterator[Call]:
    """Yields the first call that launches each kernel: far fewer than there are plans."""
    return _one_of_each(lambda _, one: _kernels(one), calls, device)


def _one_of_each(
    told_apart: Callable[[Call, RecordedPass], Iterable[Hashable]], calls: Iterable[Call], device: Device
) -> Iterator[Call]:
    seen: set[Hashable] = set()
    for call in calls:
        found = {each for one in call.recorded(device) for each in told_apart(call, one)}
        if not found <= seen:
            seen |= found
            yield call


def _kind(call: Call, one: RecordedPass) -> Hashable:
    return call.op, call.layout, call.options, one.mode, one.kind, _kernels(one)


def _kernels(one: RecordedPass) -> tuple[str, ...]:
    return tuple(moved.kernel for moved in one.launches)


# ------------------------------------------------------------------------------------------- calls that are counted

# A call, and the device that it is planned for.
SmallCall = tuple[Call, Device]
# Enough programs that a channel is split and a grid is persistent, few enough to be quick: 2 ms each.
DEVICE = Device(multiprocessors=1)
# A plan knows a dtype by its size, so float16 goes as bfloat16 does.
COUNTED_DTYPES = ("fp32", "bf16", "fp64")
# Both loops, the last step partial.
LOOP = {"bf16": (1, 16390), "fp64": (2, 8205)}
# One chunk and a tile of rows that is not full; three chunks, the last one partial.
ROW_SHAPES = ((100, 100), (5, 1603))
# Three runs of 11; more channels than a tile; (N, C), with two channels in the last group; runs longer than a tile.
BATCH_SHAPES = ((3, 5, 11), (2, 65, 7, 7), (33, 130), (2, 3, 700))
# More than a tile a split, the last one ragged; channels that end within a group.
SPLIT_SHAPES = {"nchw": (6, 5, 1212), "nhwc": (6, 68, 111)}
SEQUENCES = (11, 3, 130)
LOOP_WITHOUT = (("dx",), ("dw",))
# A device on which long rows go in slices: backward three of them, two groups of rows, two rounds; and forward.
SLICED = replace(DEVICE, multiprocessors=3, cooperative=True)
SLICED_ROWS = (("bf16", (4, 8202)), ("fp64", (3, 4102)), ("bf16", (3, 16392)), ("fp64", (3, 8200)))
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
    "sync_batch_norm": (("weight", "bias"), ("running_mean", "running_var"), ("dx",)),
    "lp_norm": (("weight", "bias"), ("running_mean", "running_norm"), ("dx",), ("dw", "db"), ("dx", "dw", "db")),
}


def small_calls(ops: Iterable[str]) -> Iterator[tuple[Call, Device]]:
    """Yields the small calls of these operators, each with the device that it is planned for."""
    for op in ops:
        of_layout = _fused if "nchw" in audited()[op].layouts else _rows
        yield from _OWN.get(op, of_layout)(op)


@cache
def recorded_small_calls() -> tuple[tuple[Call, Device, list[RecordedPass]], ...]:
    """Returns the small calls of all operators, each with what its passes launch."""
    return tuple((call, device, call.recorded(device)) for call, device in small_calls(audited()))


def _rows(op: str) -> Iterator[SmallCall]:
    """Yields every kind of plan in every dtype, ragged; and calls without what is optional."""
    for dtype, shape in (*product(COUNTED_DTYPES, ROW_SHAPES), *LOOP.items()):
        yield Call(op, shape, dtype, "rows"), DEVICE
    for names in WITHOUT[op]:
        yield Call(op, ROW_SHAPES[0], "fp64", "rows", names), DEVICE
    for names in LOOP_WITHOUT:
        yield Call(op, LOOP["fp64"], "fp64", "rows", names), DEVICE
    for dtype, shape in SLICED_ROWS:
        yield Call(op, shape, dtype, "rows"), SLICED


def _batch_norm(op: str) -> Iterator[SmallCall]:
    """Yields every dtype in both layouts, ragged; and calls without what is optional."""
    for dtype in COUNTED_DTYPES:
        for shape in BATCH_SHAPES:
            for layout in ("nchw", "nhwc") if len(shape) > 2 else ("nchw",):
                yield Call(op, shape, dtype, layout), DEVICE
        for layout, shape in SPLIT_SHAPES.items():
            yield Call(op, shape, dtype, layout), DEVICE
    for names in WITHOUT[op]:
        yield Call(op, BATCH_SHAPES[0], "fp64", "nchw", names), DEVICE


def _grouped(op: str) -> Iterator[SmallCall]:
    """Yields one launch and streaming, in both layouts; and of each calls without what is optional."""

    def call(shape: tuple[int, ...], groups: int, dtype: str, layout: str, without: tuple[str, ...] = ()) -> Call:
        return Call(op, shape, dtype, layout, without, (("groups", groups),) if op == "group_norm" else ())

    shapes = GROUPED[op]
    for (shape, groups), dtype, layout in product(shapes, ("fp32", "bf16"), ("nchw", "nhwc")):
        yield call(shape, groups, dtype, layout), replace(DEVICE, multiprocessors=2)
    for names, layout in product(WITHOUT[op], ("nchw", "nhwc")):
        shape, groups = shapes[0]
        yield call(shape, groups, "fp64", layout, names), DEVICE


def _fused(op: str) -> Iterator[SmallCall]:
    """Yields both layouts in one dtype, and calls without what is optional: fusing adds to tiles, not dtypes."""
    for layout, shape in SPLIT_SHAPES.items():
        yield Call(op, shape, "bf16", layout), DEVICE
    for names in ((), *WITHOUT[op]):
        yield Call(op, BATCH_SHAPES[0], "fp64", "nchw", names), DEVICE


def _lp_norm(op: str) -> Iterator[SmallCall]:
    """Yields every p in both layouts, ragged; and calls without what is optional of p = inf, which has most."""
    for p, layout in product(audited()[op].choices["p"], ("nchw", "nhwc")):
        yield Call(op, (2, 65, 7, 7), "bf16", layout, (), (("p", p),)), DEVICE
    for names in WITHOUT[op]:
        yield Call(op, BATCH_SHAPES[0], "fp64", "nchw", names, (("p", "inf"),)), DEVICE


def _sequences(op: str) -> Iterator[SmallCall]:
    """Yields one call: the launches are batch norm's."""
    yield Call(op, SEQUENCES, "bf16", "tnh"), DEVICE


def _synchronized(op: str) -> Iterator[SmallCall]:
    """Yields merges of as many ranks as there are lanes, and of fewer; in every dtype and both layouts, ragged."""

    def call(dtype: str, layout: str, ranks: int, without: tuple[str, ...] = ()) -> tuple[Call, Device]:
        return Call(op, (2, 65, 7, 7), dtype, layout, without, (("ranks", ranks),)), DEVICE

    for dtype, layout, ranks in (("fp32", "nchw", 2), ("bf16", "nhwc", 3), ("fp64", "nchw", 17)):
        yield call(dtype, layout, ranks)
    for names in WITHOUT[op]:
        yield call("fp64", "nchw", 3, names)


# Operators whose plans are not those of their layout's others.
_OWN: Mapping[str, Callable[[str], Iterator[SmallCall]]] = {
    "batch_norm": _batch_norm,
    **dict.fromkeys(GROUPED, _grouped),
    "lp_norm": _lp_norm,
    "sequence_batch_norm": _sequences,
    "sync_batch_norm": _synchronized,
}
