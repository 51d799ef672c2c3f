"""A case: one operator on one shape, dtype, layout and mode. A cell is a case run by one provider."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

MODES = {
    "fwd": "training forward",
    "bwd": "backward only, every gradient",
    "fwd_bwd": "forward and backward",
    "eval": "forward in evaluation mode",
}
ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
DTYPES = tuple(ITEM_BYTES)
# Families of x; all but the first are judged and not timed, for time does not depend on values.
INPUTS = {
    "normal": "every statistic with a scale and a mean/std up to 3 of its own",
    "offset": "mean/std of --offset in every statistic",
    "outlier": "one element of every statistic a thousand standard deviations away",
    "constant": "no variance at all",
    "tiny": "a variance far below eps",
    "huge": "values up to the end of fp16",
    "denormal": "values below the smallest normal number of the dtype",
    "nonfinite": "a NaN, an Inf and a -Inf, each in a statistic of its own",
}
# Axes that x's shape does not show, and that therefore stand beside it in a name.
OPTIONS = ("p", "groups", "ranks")
OFFSETS = (1e2, 1e4, 1e6)  # where --offset is not given


@dataclass(frozen=True)
class Case:
    """One problem in one mode: everything that its inputs and the float64 reference depend on.

    `op` is the operator's name (`batch_norm`), `shape` the shape of x, `axes` the values that made it, as
    (name, value) pairs in the operator's order (("batch", 32), ("channels", 64), ("spatial", "56x56")).
    """

    op: str
    shape: tuple[int, ...]
    axes: tuple[tuple[str, int | str], ...]
    dtype: str
    layout: str
    mode: str
    eps: float = 1e-5
    inputs: str = "normal"
    offset: float = 0.0  # mean/std of the family `offset`, 0 in the others

    @property
    def family(self) -> str:
        """The inputs as people write them: `normal`, `offset 1e+04`."""
        return f"{self.inputs} {exactly(self.offset, '.0e')}" if self.offset else self.inputs

    @property
    def options(self) -> tuple[tuple[str, int | str], ...]:
        """The axes that the shape does not show: (("p", "inf"),)."""
        return tuple((name, value) for name, value in self.axes if name in OPTIONS)

    @property
    def item_bytes(self) -> int:
        """Bytes of one element of x."""
        return ITEM_BYTES[self.dtype]

    @property
    def activation_bytes(self) -> int:
        """Bytes of x."""
        return prod(self.shape) * self.item_bytes

    @property
    def problem(self) -> Case:
        """The same case with the mode left out: cases of one problem share inputs and reference."""
        return replace(self, mode="")

    def of_rows(self, rows: int) -> Case:
        """The same case with so many rows: another size of x's first dimension, which the first axis gives."""
        (axis, _), *others = self.axes
        return replace(self, shape=(rows, *self.shape[1:]), axes=((axis, rows), *others))

    @property
    def label(self) -> str:
        """For example `batch_norm 32x64x56x56 fp16 nhwc fwd`."""
        shape = "x".join(map(str, self.shape))
        family = "" if self.inputs == "normal" else self.family
        parts = (self.op, shape, *named(self.options), self.dtype, self.layout, self.mode, family)
        return " ".join(part for part in parts if part)


def exactly(number: float, form: str) -> str:
    """The number in this form if that is all of it, else to its last digit: names must not become equal by rounding."""
    written = format(number, form)
    return written if float(written) == number else repr(number)


def named(options: Iterable[tuple[str, int | str]]) -> tuple[str, ...]:
    """Options as people write them: `p=inf`."""
    return tuple(f"{name}={value}" for name, value in options)
