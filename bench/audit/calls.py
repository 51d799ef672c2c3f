"""What is audited: calls of the library, on the shapes of presets and some more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import cast

import torch

from bench.audit.choices import audited, models
from bench.audit.passes import PASSES, Passes, Tensors
from bench.cases.case import OPTIONS, named
from bench.cases.operators import Operator
from bench.cases.operators.group_norm import usual_groups
from normlib.kernels.plan import Device
from normlib.kernels.row_norm.plan import RowBackwardPlan

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}
# Beside the presets' shapes, as `extra`: ragged, tiny and very wide rows, and channels that are a multiple of nothing.
EXTRA_COLUMNS = (8, 100, 1000, 16384, 65536, 131072)
EXTRA_SEQUENCES = ((50, 32, 1760),)  # on which the kernels are batch norm's
EXTRA_BATCHES = ((4, 65, 7, 7), (64, 1000), (8, 3, 224, 224), (32, 64, 56, 56))


@dataclass(frozen=True)
class Launch:
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
    def passes(self) -> Passes:
        """The operator's, with these options."""
        found = PASSES[self.op]
        return found.of(**dict(self.options)) if found.of else found

    @property
    def activation_bytes(self) -> int:
        """Of x: one unit."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def run_bytes(self) -> int:
        """Bytes of a contiguous run: loads can be as wide as the largest power of two that divides it."""
        innermost = {"nchw": self.shape[2:] or self.shape[1:], "nhwc": self.shape[1:2]}.get(
            self.layout, self.shape[-1:]
        )
        if self.op == "group_norm" and innermost == self.shape[1:2]:  # programs begin at a group's first channel
            (channels,) = innermost
            innermost = (channels // int(dict(self.options).get("groups", usual_groups(channels))),)
        return prod(innermost) * DTYPES[self.dtype].itemsize

    def tensors(self, device: str) -> Tensors:
        """Every tensor of the call, all ones; on the meta device without memory."""
        dtype = DTYPES[self.dtype]
        if self.layout == "nhwc":
            n, c, *positions = self.shape
            x = torch.ones((n, *positions, c), dtype=dtype, device=device).movedim(-1, 1)
        else:
            x = torch.ones(self.shape, dtype=dtype, device=device)
        passes = self.passes
        vectors = passes.vectors(self.shape, dtype)
        found = {name: x if name == "x" else torch.ones_like(x) for name in passes.activations}
        found |= {name: torch.ones(shape, dtype=kind, device=device) for name, (shape, kind) in vectors.items()}
        return {name: tensor for name, tensor in found.items() if name not in self.without}


def launches(ops: Iterable[str] | None = None, names: Iterable[str] | None = None) -> Iterator[Launch]:
    """The calls of these operators (all) and presets (every model, and `extra`), each once."""
    ops = tuple(audited() if ops is None else ops)
    names = models(ops) if names is None else tuple(names)
    yield from dict.fromkeys(launch for op in ops for name in names for launch in _of(audited()[op], name))


def _of(operator: Operator, preset: str) -> Iterator[Launch]:
    if preset == "extra":
        extra = {"rows": tuple((4096, n) for n in EXTRA_COLUMNS), "tnh": EXTRA_SEQUENCES}
        shapes = extra.get(operator.layouts[0], EXTRA_BATCHES)
        for options in product(*([(name, value) for value in values] for name, values in operator.choices.items())):
            for shape, dtype, layout in product(shapes, ("bf16", "fp32"), operator.layouts):
                yield Launch(operator.name, shape, dtype, layout, (), options)
            for layout in operator.layouts:
                yield Launch(operator.name, (64, 1024), "fp64", layout, (), options)
        if "rows" in operator.layouts:  # a wide row of which not everything is wanted
            for names in (("dx",), ("dw", "db")):
                yield Launch(operator.name, (4096, 65536), "bf16", "rows", names)
    elif preset in operator.presets:
        for grid in operator.presets[preset].grids:
            for values in product(*(grid[axis] for axis in (*operator.axes, "dtype", "layout"))):
                found = dict(zip((*operator.axes, "dtype", "layout"), values, strict=True))
                axes = {axis: cast(int | str, found[axis]) for axis in operator.axes}
                options = tuple((axis, value) for axis, value in axes.items() if axis in OPTIONS)
                shape = operator.shape(axes)
                yield Launch(operator.name, shape, str(found["dtype"]), str(found["layout"]), (), options)


def one_of_each_plan(calls: Iterable[Launch], device: Device) -> Iterator[Launch]:
    """The first call with each kind of plan, its kernels, warps and registers, in every layout, with every option."""
    seen: set[tuple[object, ...]] = set()
    for launch in calls:
        tensors, found = launch.tensors("meta"), set()
        for mode, each in launch.passes.modes.items():
            declared = each.declare(tensors, device)
            plan = declared.once or declared.plan
            options = plan.rows.options if isinstance(plan, RowBackwardPlan) else plan.options
            kernels = tuple(moved.kernel for moved in declared.launches)
            found.add((launch.op, launch.layout, launch.options, mode, declared.kind, kernels, *options.items()))
        if not found <= seen:
            seen |= found
            yield launch


def one_of_each_kernel(calls: Iterable[Launch], device: Device) -> Iterator[Launch]:
    """Yields the first call that launches each kernel: far fewer than there are plans."""
    seen: set[str] = set()
    for launch in calls:
        tensors = launch.tensors("meta")
        declared = (each.declare(tensors, device) for each in launch.passes.modes.values())
        found = {moved.kernel for one in declared for moved in one.launches}
        if not found <= seen:
            seen |= found
            yield launch


def call(launch: Launch, device: Device) -> None:
    """Runs the operator's launchers, every pass once, on tensors without memory."""
    for each in launch.passes.modes.values():
        each.run(launch.tensors("meta"), device)
