"""Batch norm with a ReLU behind it, and maybe a residual added in between, as convolutional nets have them.

The ReLU's gradient jumps where its input z crosses zero, and there float32 and float64 may stand on different sides,
both being right. So the inputs are drawn without such a place: where the terms of z cancel to within MARGIN, that
element of the residual, or of x where there is none, is moved a little. Every sign has to be the truth's then; the
judgement is that of every operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from bench.cases.case import DTYPES, Case
from bench.cases.operators import Inputs, Preset, Reference, _ratio
from bench.cases.operators._draw import TORCH_DTYPES, Draw
from bench.cases.operators.batch_norm import MOMENTUM, BatchNorm, laid_out
from normlib import reference

# Of the terms' size: a dozen roundings of float32, and one of the norm itself to the case's dtype before it is added.
# Where nothing is added, that one changes no sign.
FLOAT32_MARGIN = 16 * 2.0**-24
MARGIN = {name: FLOAT32_MARGIN + torch.finfo(dtype).eps for name, dtype in TORCH_DTYPES.items()}

# To move an element of x moves its channel's statistics, and so every z of it. One round was enough in every family,
# dtype and operator, for (3, 37, 7, 7) and (64, 64, 28, 28).
_ROUNDS = 8

_SMOKE = Preset(
    "a tiny ragged shape in every dtype and layout, and one of powers of two: errors within seconds, without a GPU",
    (
        {"batch": (3,), "channels": (37,), "spatial": ("7x7",), "dtype": DTYPES, "layout": BatchNorm.layouts},
        {"batch": (4,), "channels": (64,), "spatial": ("4x4",), "dtype": ("bf16",), "layout": BatchNorm.layouts},
    ),
)


class BatchNormRelu(BatchNorm):
    """relu(batch_norm(x)), or with `adds` relu(batch_norm(x) + residual)."""

    def __init__(self, name: str, short: str, adds: bool) -> None:
        self.name, self.short, self.adds = name, short, adds
        super().__init__()
        self.presets: Mapping[str, Preset] = {**self.presets, "smoke": _SMOKE}

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """Those of batch_norm, and a residual with values around 1 in x's dtype; every sign is decided."""
        found = self.drawn(case, device, seed)
        for _ in range(_ROUNDS):
            if not self._decide(case, found):
                return found
        raise ValueError(f"{case.label}: after {_ROUNDS} rounds there are still signs that float32 cannot decide")

    def drawn(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """Returns the inputs before any sign is decided, which takes a look at their values."""
        found = super().inputs(replace(case, op="batch_norm"), device, seed)  # of the same random numbers
        if self.adds:
            draw = Draw(replace(case, op=f"{case.op} residual"), device, seed)  # of random numbers that x has none of
            found["residual"] = laid_out(draw.normal(case.shape).to(TORCH_DTYPES[case.dtype]), case.layout)
        return found

    def _decide(self, case: Case, inputs: Inputs) -> bool:
        """Moves what is undecided away from zero; whether there was anything."""
        moved, margin = (inputs["residual"], MARGIN[case.dtype]) if self.adds else (inputs["x"], FLOAT32_MARGIN)
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

    def reference(self, case: Case, inputs: Inputs) -> Reference:
        """As batch_norm's, of the ReLU's result, and `dresidual`."""
        x, weight, bias, dy = (inputs[name] for name in ("x", "weight", "bias", "dy"))
        mean, var, residual = inputs["running_mean"], inputs["running_var"], inputs.get("residual")
        truth = reference.batch_norm(x, weight, bias, case.eps, dy, residual, relu=True)
        truth["running_mean"] = (1 - MOMENTUM) * mean.double() + MOMENTUM * truth["mean"]
        truth["running_var"] = (1 - MOMENTUM) * var.double() + MOMENTUM * truth["var_unbiased"]
        truth["dresidual"] = truth["dz"]
        evaluated = reference.batch_norm_eval(x, mean, var, weight, bias, case.eps, None, residual, relu=True)
        names = (*self.outputs("fwd_bwd"), *self.saved)
        return {name: truth[name] for name in names} | {"y_eval": evaluated["y"]}

    def outputs(self, mode: str) -> tuple[str, ...]:
        """dresidual beside dx."""
        names = super().outputs(mode)
        return (*names, "dresidual") if self.adds and "dx" in names else names

    def dtypes(self, inputs: Inputs) -> dict[str, torch.dtype]:
        """dresidual comes in the residual's, which is x's."""
        return super().dtypes(inputs) | {"dresidual": inputs["x"].dtype}

    def bytes_moved(self, case: Case) -> int:
        """A ReLU moves nothing; with a residual each pass moves it, or its gradient, and backward needs its signs.

        A bit an element is the least that anyone keeps of them.
        """
        if not self.adds:
            return super().bytes_moved(case)
        elements = prod(case.shape)
        activation, signs = elements * TORCH_DTYPES[case.dtype].itemsize, -(-elements // 8)
        each = {"fwd": activation + signs, "bwd": activation + signs, "eval": activation}
        return super().bytes_moved(case) + each.get(case.mode, each["fwd"] + each["bwd"])

    def amplification(self, inputs: Inputs, reference: Reference) -> dict[str, float]:
        """Of dw and db that of batch norm for what the ReLU lets through of dy; of y that of its terms where it does.

        x_hat is taken from the saved statistics, for y does not tell it where it is zero.
        """
        bias, residual = _terms(inputs)
        channel = [1, -1] + [1] * (residual.dim() - 2)
        tensors = (inputs["x"], inputs["weight"], reference["mean"], reference["rstd"])
        x, weight, mean, rstd = (t.double() for t in tensors)
        x_hat = (x - mean.view(channel)) * rstd.view(channel)
        plain = {**reference, "y": x_hat * weight.view(channel) + bias}
        plain.pop("y_eval", None)
        found = super().amplification({**inputs, "dy": inputs["dy"] * (reference["y"] != 0)}, plain)
        for name in ("y", "y_eval"):
            if name in reference:
                y = reference[name]
                terms = torch.stack([y - bias - residual, bias.expand_as(y), residual.expand_as(y)]).norm(dim=0)
                found[name] = max(_ratio(torch.where(y > 0, terms, 0.0), y, self.statistics_dim), 1.0)
        return found


def _terms(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """(bias, residual) in float64, to be added to something of x's shape."""
    residual = inputs.get("residual", torch.zeros_like(inputs["x"]))
    return inputs["bias"].double().view([1, -1] + [1] * (residual.dim() - 2)), residual.double()
