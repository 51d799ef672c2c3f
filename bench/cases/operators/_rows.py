"""What layer norm and RMS norm share: x is (tokens, hidden), and every row has its own statistics.

With a residual the stream z = x + residual is normalized, and given back beside y.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from bench.cases.case import DTYPES, Case
from bench.cases.models import widths_of_tokens
from bench.cases.operators import Inputs, Operator, Preset, Reference
from bench.cases.operators._draw import TORCH_DTYPES, Draw
from bench.cases.operators._models import model_presets

_LAYOUT = ("rows",)
_WIDE_DTYPES = ("fp32", "bf16")
# Of x's size, the residual's: then fp16 holds the sum in the family `huge` too.
_RESIDUAL = 2.0**-4

_PRESETS = {
    "smoke": Preset(
        "two tiny shapes, one ragged: errors in every dtype within seconds, without a GPU",
        (
            {"tokens": (5,), "hidden": (99,), "dtype": DTYPES, "layout": _LAYOUT},
            {"tokens": (16,), "hidden": (256,), "dtype": DTYPES, "layout": _LAYOUT},
        ),
    ),
    "quick": Preset(
        "few and many rows of three language-model widths, forward and backward: two minutes on a GPU",
        (
            {"tokens": (64, 8192), "hidden": (1024, 4096, 12288), "dtype": ("bf16",), "layout": _LAYOUT},
            {"tokens": (8192,), "hidden": (4096,), "dtype": ("fp32",), "layout": _LAYOUT},
        ),
        modes=("fwd", "bwd"),
    ),
    "full": Preset(
        "one row to 131072, widths from 64 to 65536 and off the powers of two, every dtype",
        (
            {
                "tokens": (1, 64, 4096, 16384),
                "hidden": (768, 1000, 1024, 2048, 4096, 5120, 7168, 8192, 12288, 16384),
                "dtype": DTYPES,
                "layout": _LAYOUT,
            },
            # Very long rows; 16384 of them would take the float64 reference beyond most devices' memory.
            {"tokens": (1, 64, 4096), "hidden": (32768, 65536), "dtype": DTYPES, "layout": _LAYOUT},
            # The norms of queries and keys: very many short rows.
            {"tokens": (131072,), "hidden": (64, 128, 256), "dtype": DTYPES, "layout": _LAYOUT},
        ),
    ),
    "decode": Preset(
        "a token each of 1 to 64 sequences, in every width of the language models: few rows, forward",
        ({"tokens": (1, 4, 16, 64), "hidden": widths_of_tokens(), "dtype": ("bf16",), "layout": _LAYOUT},),
        modes=("fwd",),
    ),
    "wide": Preset(
        "rows of 16384 to 131072, beyond what registers hold, one to thousands of them",
        (
            {"tokens": (1, 64, 4096), "hidden": (16384, 32768, 65536), "dtype": _WIDE_DTYPES, "layout": _LAYOUT},
            # As many elements as the largest of those.
            {"tokens": (1, 64, 2048), "hidden": (131072,), "dtype": _WIDE_DTYPES, "layout": _LAYOUT},
        ),
    ),
}

# Of queries and keys, which are no stream that anything is added to.
_HEADS = {
    "qk-norm": Preset(
        "norms of queries and keys: 32 heads of 64 to 16384 tokens, rows of 64, 128 and 256",
        ({"tokens": (2048, 32768, 131072, 524288), "hidden": (64, 128, 256), "dtype": ("bf16",), "layout": _LAYOUT},),
    ),
}

# The stream's addition is tried in every dtype, the powers of two where the norms are.
_SMOKE_ADD = Preset(
    "a tiny ragged shape in every dtype, and one of powers of two: errors within seconds, without a GPU",
    (
        {"tokens": (5,), "hidden": (99,), "dtype": DTYPES, "layout": _LAYOUT},
        {"tokens": (16,), "hidden": (256,), "dtype": ("bf16",), "layout": _LAYOUT},
    ),
)


class RowNorm(Operator):
    """A norm of rows with weight, and maybe bias, in x's dtype, as language models have them."""

    axes = ("tokens", "hidden")
    layouts = _LAYOUT
    modes = ("fwd", "bwd", "fwd_bwd")
    statistics_dim = 0
    has_bias: bool
    statistics: int  # float32 values that forward saves a row

    def __init__(self) -> None:
        self.presets: Mapping[str, Preset] = {**_PRESETS, **_HEADS, **model_presets(self.name, self.layouts)}

    def shape(self, axes: Mapping[str, int | str]) -> tuple[int, ...]:
        """(tokens, hidden)."""
        return int(axes["tokens"]), int(axes["hidden"])

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """x of (tokens, hidden) with offset rows, weight and bias of (hidden,), dy like x; all in the case's dtype."""
        draw, dtype = Draw(case, device, seed), TORCH_DTYPES[case.dtype]
        found = {
            "x": draw.activations(case, self.statistics_dim),
            "dy": draw.normal(case.shape),
            "weight": draw.weight(case.shape[1]),
        }
        if self.has_bias:
            found["bias"] = draw.bias(case.shape[1])
        return {name: tensor.to(dtype) for name, tensor in found.items()}

    def outputs(self, mode: str) -> tuple[str, ...]:
        """y forward; dx, dw and (with a bias) db backward."""
        gradients = ("dx", "dw", "db") if self.has_bias else ("dx", "dw")
        return {"fwd": ("y",), "bwd": gradients, "fwd_bwd": ("y", *gradients)}[mode]

    def bytes_moved(self, case: Case) -> int:
        """Forward reads x and writes y; backward reads x and dy and writes dx; parameters and statistics once each."""
        tokens, hidden = case.shape
        item = TORCH_DTYPES[case.dtype].itemsize
        activation = tokens * hidden * item
        saved = 4 * tokens * self.statistics
        parameters = 1 + self.has_bias
        forward = 2 * activation + parameters * hidden * item + saved
        # The weight comes in; dw, and db with a bias, go out.
        backward = 3 * activation + (1 + parameters) * hidden * item + saved
        return {"fwd": forward, "bwd": backward, "fwd_bwd": forward + backward}[case.mode]


class RowNormAdd(RowNorm):
    """A row norm of z = x + residual, both in x's dtype; z is the residual stream, which goes on to the next layer."""

    def __init__(self, norm: RowNorm) -> None:
        self.norm = norm
        self.eps, self.has_bias, self.statistics, self.saved = norm.eps, norm.has_bias, norm.statistics, norm.saved
        self.presets = {**_PRESETS, "smoke": _SMOKE_ADD, **model_presets(self.name, self.layouts)}

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """Those of the norm, a residual of x's family, and dz, the gradient that arrives at z from the next layer."""
        draw = Draw(replace(case, op=f"{case.op} residual"), device, seed)  # of random numbers that x has none of
        residual, dz = draw.activations(case, self.statistics_dim) * _RESIDUAL, draw.normal(case.shape)
        return {**super().inputs(case, device, seed), "residual": residual, "dz": dz.to(residual.dtype)}

    def reference(self, case: Case, inputs: Inputs) -> Reference:
        """z = x + residual as rounded to the case's dtype, and the norm of that; dx, of x and of residual, takes dz in.

        The rounding is part of the definition: z is what the next layer and backward see, so y is to be its norm.
        """
        z = inputs["x"] + inputs["residual"]
        truth = self.norm.reference(case, {**inputs, "x": z})
        return truth | {"z": z.double(), "dx": truth["dx"] + inputs["dz"].double()}

    def outputs(self, mode: str) -> tuple[str, ...]:
        """z beside y."""
        return tuple(n for name in self.norm.outputs(mode) for n in (("y", "z") if name == "y" else (name,)))

    def dtypes(self, inputs: Inputs) -> dict[str, torch.dtype]:
        """z comes in x's."""
        return super().dtypes(inputs) | {"z": inputs["x"].dtype}

    def bytes_moved(self, case: Case) -> int:
        """Forward reads residual and writes z besides, backward reads dz."""
        activation = case.shape[0] * case.shape[1] * TORCH_DTYPES[case.dtype].itemsize
        return super().bytes_moved(case) + {"fwd": 2, "bwd": 1, "fwd_bwd": 3}[case.mode] * activation
