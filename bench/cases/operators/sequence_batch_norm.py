"""Batch normalization of sequences over all their steps: x is (time, batch, hidden), its features the channels.

Parameters and running statistics are float32 whatever x's dtype is, as in batch_norm, whose operator this is on the
steps: a padded or packed batch has fewer of them, and is nothing else to the kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from bench.cases.case import DTYPES, Case
from bench.cases.operators import Forward, Functional, Inputs, Operator, Preset, Reference, batch_norm

_LAYOUT = ("tnh",)
_ACTIVATIONS = ("x", "dy", "y", "dx", "y_eval")
_PRESETS = {
    "smoke": Preset(
        "two tiny shapes, one ragged: errors in every dtype within seconds, without a GPU",
        (
            {"time": (9,), "batch": (5,), "hidden": (37,), "dtype": DTYPES, "layout": _LAYOUT},
            {"time": (8,), "batch": (4,), "hidden": (64,), "dtype": ("fp32", "bf16"), "layout": _LAYOUT},
        ),
    ),
    "quick": Preset(
        "short and long utterances in widths of recurrent nets, forward and backward: two minutes on a GPU",
        (
            {"time": (50, 800), "batch": (32,), "hidden": (800, 1760, 2560), "dtype": ("fp16",), "layout": _LAYOUT},
            {"time": (800,), "batch": (32,), "hidden": (1760,), "dtype": ("fp32",), "layout": _LAYOUT},
        ),
        modes=("fwd", "bwd"),
    ),
    "full": Preset(
        "few and many steps, one sequence and many, hidden sizes on and off the powers of two, every dtype",
        (
            {
                "time": (50, 400, 1600),
                "batch": (1, 32, 64),
                "hidden": (256, 1000, 1024, 1760, 2560),
                "dtype": DTYPES,
                "layout": _LAYOUT,
            },
        ),
    ),
}


def _flat(case: Case) -> Case:
    """Batch norm of the steps, (time * batch, hidden)."""
    return replace(case, op="batch_norm", shape=(prod(case.shape[:-1]), case.shape[-1]), layout="nchw")


class SequenceBatchNorm(Operator):
    """Training forward and backward with running statistics, and evaluation."""

    name = "sequence_batch_norm"
    short = "seq_bn"
    axes = ("time", "batch", "hidden")
    layouts = _LAYOUT
    modes = batch_norm.OPERATOR.modes
    eps = batch_norm.OPERATOR.eps
    statistics_dim = 2
    presets: Mapping[str, Preset] = _PRESETS

    def shape(self, axes: Mapping[str, int | str]) -> tuple[int, ...]:
        """(time, batch, hidden); raises ValueError for a single step of a single sequence."""
        time, batch, hidden = (int(axes[name]) for name in self.axes)
        if time * batch == 1:
            raise ValueError("training needs more than one value a feature: raise time or batch")
        return time, batch, hidden

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """x and dy of the case's shape and dtype; the rest float32 of (hidden,), running_var positive."""
        return _shaped(batch_norm.OPERATOR.inputs(_flat(case), device, seed), case.shape)

    def reference(self, case: Case, inputs: Inputs) -> Reference:
        """Training's y, dx, dw, db, running_mean, running_var, mean, rstd, and evaluation's y_eval, in float64."""
        return _shaped(batch_norm.OPERATOR.reference(_flat(case), _shaped(inputs, (-1, case.shape[-1]))), case.shape)

    def bind(self, case: Case, function: Functional) -> Forward:
        return batch_norm.OPERATOR.bind(case, function)

    def outputs(self, mode: str) -> tuple[str, ...]:
        """Those of batch_norm."""
        return batch_norm.OPERATOR.outputs(mode)

    def amplification(self, inputs: Inputs, reference: Reference) -> dict[str, float]:
        """That of batch_norm."""
        steps = (-1, inputs["x"].shape[-1])
        return batch_norm.OPERATOR.amplification(_shaped(inputs, steps), _shaped(reference, steps))

    def bytes_moved(self, case: Case) -> int:
        """Those of batch_norm."""
        return batch_norm.OPERATOR.bytes_moved(_flat(case))


def _shaped(tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """With the activations in another shape."""
    return {name: t.reshape(shape) if name in _ACTIVATIONS else t for name, t in tensors.items()}


OPERATOR = SequenceBatchNorm()
