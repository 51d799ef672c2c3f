"""Batch norm with a ReLU after it, and maybe a residual added in between, as convolutional nets have them.

The ReLU's gradient jumps where its input z crosses zero, and there float32 and float64 may stand on different sides,
both being right. So the inputs are drawn without such a place: where the terms of z cancel to within a margin, that
element of the residual, or of x where there is none, is moved a little. Every sign has to be the truth's then; the
judgement is that of every operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from bench.cases.case import Case
from bench.cases.operators import Forward, Inputs, Reference, channels_of, ratio
from bench.cases.operators.batch_norm import BATCH_NORM, SMOKE, BatchNorm
from bench.cases.presets import Preset

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Of the terms' size: a dozen roundings of float32. Where a residual is added, one of the norm itself to the case's
# dtype is added to it; where nothing is added, that one changes no sign.
_FLOAT32_MARGIN = 16 * 2.0**-24
# To move an element of x moves its channel's statistics, and so every z of it. One round was enough in every family,
# dtype and operator, for (3, 37, 7, 7) and (64, 64, 28, 28).
_ROUNDS = 8


class BatchNormRelu(BatchNorm):
    """relu(batch_norm(x)), or with `adds` relu(batch_norm(x) + residual), the end of a residual block."""

    norm = BATCH_NORM
    relu = True
    sweeps: Mapping[str, Preset] = {**BatchNorm.sweeps, "smoke": SMOKE}

    def __init__(self, name: str, short: str, adds: bool) -> None:
        self.name, self.short, self.adds = name, short, adds

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """Batch norm's inputs, and a residual with values around 1 in x's dtype; every sign is decided."""
        found = self.drawn(case, device, seed)
        for _ in range(_ROUNDS):
            if not self._decide(case, found):
                return found
        raise ValueError(f"{case.label}: after {_ROUNDS} rounds there are still signs that float32 cannot decide")

    def drawn(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """Returns the inputs before signs are decided, which depends on values."""
        from bench.cases.random_inputs import RandomInputs, laid_out

        found = super().inputs(replace(case, op="batch_norm"), device, seed)  # of the same random numbers
        if self.adds:
            draw = RandomInputs(replace(case, op=f"{case.op} residual"), device, seed)  # numbers that x has none of
            found["residual"] = laid_out(draw.normal(case.shape).to(found["x"].dtype), case.layout)
        return found

    def _decide(self, case: Case, inputs: Inputs) -> bool:
        """Moves what is undecided away from zero; returns whether there was anything."""
        import torch

        from normlib import reference

        moved = inputs["residual" if self.adds else "x"]
        margin = _FLOAT32_MARGIN + (torch.finfo(moved.dtype).eps if self.adds else 0.0)
        truth = reference.batch_norm(inputs["x"], inputs["weight"], inputs["bias"], case.eps)
        bias, residual = _terms(inputs)
        z = truth["y"] + residual
        room = margin * ((truth["y"] - bias).abs() + bias.abs() + residual.abs())
        undecided = z.abs() <= room
        slope = 1.0 if self.adds else (inputs["weight"].double() * truth["rstd"]).view_as(bias)
        # Twice the room, and no less than what the dtype tells apart.
        step = 2 * room / slope + 2 * torch.finfo(moved.dtype).eps * moved.double().abs()
        away = moved.double() + torch.where(z < 0, -step, step)
        moved.copy_(torch.where(undecided, away, moved))
        return bool(undecided.any())

    def arguments(self, case: Case) -> dict[str, Any]:
        return {**super().arguments(case), "activation": "relu"}

    def unfused(self, norm: Forward) -> Forward:
        def normalize_add_and_rectify(x: Tensor, residual: Tensor | None = None, **others: Tensor) -> Tensor:
            y: Tensor = norm(x, **others)
            return (y if residual is None else y + residual).relu()

        return normalize_add_and_rectify

    def outputs(self, mode: str) -> tuple[str, ...]:
        names = super().outputs(mode)
        return (*names, "dresidual") if self.adds and "dx" in names else names

    def bytes_moved(self, case: Case) -> int:
        """A ReLU moves nothing; with a residual each pass moves it, or its gradient, and backward needs its signs.

        A bit an element is the least that anyone keeps of them.
        """
        passes = case.mode.split("_") if self.adds else ()
        signs = -(-prod(case.shape) // 8)
        return super().bytes_moved(case) + sum(case.activation_bytes + (one != "eval") * signs for one in passes)

    def amplification(self, inputs: Inputs, reference: Reference) -> dict[str, float]:
        """Batch norm's for dw and db, with dy where the ReLU passes it on; for y that of its terms there.

        x_hat is taken from the saved statistics, for y does not tell it where it is zero.
        """
        import torch

        bias, residual = _terms(inputs)
        tensors = (inputs["x"], inputs["weight"], reference["mean"], reference["rstd"])
        x, weight, mean, rstd = (t.double() if t is inputs["x"] else t.double().view_as(bias) for t in tensors)
        plain = {**reference, "y": (x - mean) * rstd * weight + bias}
        plain.pop("y_eval", None)
        found = super().amplification({**inputs, "dy": inputs["dy"] * (reference["y"] != 0)}, plain)
        for name in ("y", "y_eval"):
            if name in reference:
                y = reference[name]
                terms = torch.stack([y - bias - residual, bias.expand_as(y), residual.expand_as(y)]).norm(dim=0)
                found[name] = max(ratio(torch.where(y > 0, terms, 0.0), y, self.statistics_dim), 1.0)
        return found


def _terms(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """(bias, residual) in float64, to be added to something of x's shape."""
    import torch

    residual = inputs.get("residual", torch.zeros_like(inputs["x"]))
    return inputs["bias"].double().view(channels_of(residual)), residual.double()


OPERATORS = (
    BatchNormRelu("batch_norm_relu", "bn_relu", adds=False),
    BatchNormRelu("batch_norm_add_relu", "bn_add_relu", adds=True),
)
