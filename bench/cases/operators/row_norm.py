"""Layer norm, RMS norm and their fused forms: x is (tokens, hidden), and every row has its own statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.cases.case import MODES, Case
from bench.cases.models import widths_of_tokens
from bench.cases.operators import Forward, Inputs, Operator, Reference, ratio
from bench.cases.presets import Preset, grid, preset

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LAYOUTS = ("rows",)
# The residual's size, in that of x: small enough for fp16 to hold the sum in the family `huge` too.
_RESIDUAL = 2.0**-4

_PRESETS = {
    "smoke": preset(
        "two tiny shapes, one ragged: errors in every dtype within seconds, without a GPU",
        grid(_LAYOUTS, tokens=5, hidden=99),
        grid(_LAYOUTS, tokens=16, hidden=256),
    ),
    "quick": preset(
        "few and many rows of three language-model widths, forward and backward: two minutes on a GPU",
        grid(_LAYOUTS, ("bf16",), tokens=(64, 8192), hidden=(1024, 4096, 12288)),
        grid(_LAYOUTS, ("fp32",), tokens=8192, hidden=4096),
        modes=("fwd", "bwd"),
    ),
    "full": preset(
        "one row to 131072, widths from 64 to 65536 and off the powers of two, every dtype",
        grid(
            _LAYOUTS,
            tokens=(1, 64, 4096, 16384),
            hidden=(768, 1000, 1024, 2048, 4096, 5120, 7168, 8192, 12288, 16384),
        ),
        # Very long rows; 16384 of them would take the float64 reference beyond most devices' memory.
        grid(_LAYOUTS, tokens=(1, 64, 4096), hidden=(32768, 65536)),
        # The norms of queries and keys: very many short rows.
        grid(_LAYOUTS, tokens=131072, hidden=(64, 128, 256)),
    ),
    "decode": preset(
        "a token each of 1 to 64 sequences, in every width of the language models: few rows, forward",
        grid(_LAYOUTS, ("bf16",), tokens=(1, 4, 16, 64), hidden=widths_of_tokens()),
        modes=("fwd",),
    ),
    "wide": preset(
        "rows of 16384 to 131072, beyond what registers hold, one to thousands of them",
        grid(_LAYOUTS, ("fp32", "bf16"), tokens=(1, 64, 4096), hidden=(16384, 32768, 65536)),
        # As many elements as the largest of those.
        grid(_LAYOUTS, ("fp32", "bf16"), tokens=(1, 64, 2048), hidden=131072),
    ),
}
# Queries and keys are not part of the residual stream: no fused operator has this preset.
_HEADS = preset(
    "norms of queries and keys: 32 heads of 64 to 16384 tokens, rows of 64, 128 and 256",
    grid(_LAYOUTS, ("bf16",), tokens=(2048, 32768, 131072, 524288), hidden=(64, 128, 256)),
)
# The addition is tried in every dtype; powers of two are tried where the norms are.
_SMOKE_ADD = preset(
    "a tiny ragged shape in every dtype, and one of powers of two: errors within seconds, without a GPU",
    grid(_LAYOUTS, tokens=5, hidden=99),
    grid(_LAYOUTS, ("bf16",), tokens=16, hidden=256),
)


class RowNorm(Operator):
    """A norm of rows with weight, and maybe bias, in x's dtype, as language models have them."""

    axes = ("tokens", "hidden")
    layouts = _LAYOUTS
    statistics_dim = 0
    rowwise = tuple(MODES)
    sweeps: Mapping[str, Preset] = {**_PRESETS, "qk-norm": _HEADS}

    def __init__(self, name: str, short: str, eps: float, saved: tuple[str, ...], parameters: tuple[str, ...]) -> None:
        self.name, self.short, self.eps, self.saved, self.parameters = name, short, eps, saved, parameters

    def shape(self, axes: Mapping[str, int | str]) -> tuple[int, ...]:
        """(tokens, hidden)."""
        return int(axes["tokens"]), int(axes["hidden"])

    def truth(self, case: Case, inputs: Inputs) -> Reference:
        from normlib import reference

        formula = getattr(reference, self.name)
        found: Reference = formula(
            inputs["x"], case.shape[1:], inputs["weight"], inputs.get("bias"), case.eps, inputs["dy"]
        )
        return found

    def arguments(self, case: Case) -> dict[str, Any]:
        return {"normalized_shape": case.shape[-1:], "eps": case.eps}

    def saved_values(self, case: Case) -> int:
        return len(self.saved) * case.shape[0]

    def amplification(self, inputs: Inputs, reference: Reference) -> dict[str, float]:
        """Returns those of any norm, and that of dx: short rows cancel most of rstd weight dy."""
        terms = inputs["dy"].double() * inputs["weight"].double() * reference["rstd"].view(-1, 1)
        dx = ratio(terms, reference["dx"], self.statistics_dim)
        return super().amplification(inputs, reference) | {"dx": max(dx, 1.0)}


class RowNormAdd(RowNorm):
    """A row norm of z = x + residual, both in x's dtype; z is the residual stream, which goes on to the next layer."""

    sweeps: Mapping[str, Preset] = {**_PRESETS, "smoke": _SMOKE_ADD}
    results = ("y", "z")
    activations: Mapping[str, int] = {"fwd": 4, "bwd": 4}  # forward reads residual and writes z too, backward reads dz

    def __init__(self, name: str, short: str, norm: RowNorm) -> None:
        super().__init__(name, short, norm.eps, norm.saved, norm.parameters)
        self.norm: RowNorm = norm

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """The norm's inputs, a residual of x's family, and dz, the gradient that arrives at z from the next layer."""
        from bench.cases.random_inputs import RandomInputs

        draw = RandomInputs(replace(case, op=f"{case.op} residual"), device, seed)  # random numbers that x has none of
        residual, dz = draw.activations(case, self.statistics_dim) * _RESIDUAL, draw.normal(case.shape)
        return {**super().inputs(case, device, seed), "residual": residual, "dz": dz.to(residual.dtype)}

    def truth(self, case: Case, inputs: Inputs) -> Reference:
        """z = x + residual as rounded to the case's dtype, and the norm of that; dx, of x and of residual, includes dz.

        The rounding is part of the definition: z is what the next layer and backward see, so y is to be its norm.
        """
        z = inputs["x"] + inputs["residual"]
        found = self.norm.truth(case, {**inputs, "x": z})
        return found | {"z": z.double(), "dx": found["dx"] + inputs["dz"].double()}

    def unfused(self, norm: Forward) -> Forward:
        def add_and_normalize(x: Tensor, residual: Tensor, **parameters: Tensor) -> tuple[Tensor, Tensor]:
            z = x + residual
            return norm(z, **parameters), z

        return add_and_normalize


LAYER_NORM = RowNorm("layer_norm", "ln", 1e-5, ("mean", "rstd"), ("weight", "bias"))
# Without a bias, which no peer has.
RMS_NORM = RowNorm("rms_norm", "rms", 1e-6, ("rstd",), ("weight",))
OPERATORS = (
    LAYER_NORM,
    RMS_NORM,
    # By the first sixteenth of each row.
    RowNorm("partial_rms_norm", "prms", 1e-6, ("rstd",), ("weight",)),
    RowNormAdd("layer_norm_add", "ln_add", LAYER_NORM),
    RowNormAdd("rms_norm_add", "rms_add", RMS_NORM),
)
