"""A case: one operator on one shape, dtype, layout and mode. A cell is a case run by one provider."""

from __future__ import annotations

from dataclasses import dataclass, replace

MODES = {
    "fwd": "training forward",
    "bwd": "backward alone, every gradient",
    "fwd_bwd": "forward and backward",
    "eval": "forward in evaluation mode",
}
DTYPES = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Case:
    """What is measured; everything that inputs and the float64 reference depend on.

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

    @property
    def problem(self) -> Case:
        """The same case with the mode left out: cases of one problem share inputs and reference."""
        return replace(self, mode="")

    @property
    def label(self) -> str:
        """For example `batch_norm 32x64x56x56 fp16 nhwc fwd`."""
        shape = "x".join(map(str, self.shape))
        return " ".join(part for part in (self.op, shape, self.dtype, self.layout, self.mode) if part)
