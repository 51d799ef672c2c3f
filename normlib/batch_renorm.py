"""Batch renormalization: batch norm that computes the same in training as in evaluation (Ioffe 2017)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from normlib import composed, reference
from normlib.batch_norm import fake_eval, fake_train, fits, step
from normlib.dispatch import (
    CustomOperator,
    LazyModule,
    Quadruple,
    Triple,
    backward_operator,
    by_mask,
    contiguous,
    derive_again,
    derive_by,
    refuse_gradient,
)
from normlib.kernels.host import statistics_dtype
from normlib.statistics_norm import StatisticsNorm

batch_norm_kernels = LazyModule("normlib.kernels.batch_norm.launch")
kernels = LazyModule("normlib.kernels.batch_norm.renorm")


def _train(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_std: Tensor,
    momentum: float,
    eps: float,
    rmax: float,
    dmax: float,
    limits: Tensor | None,
) -> Quadruple:
    vectors = (contiguous(weight), contiguous(bias), running_mean, running_std)
    return kernels.batch_renorm_forward(x, *vectors, momentum, eps, rmax, dmax, contiguous(limits))


def _fake_renorm_train(x: Tensor, *_: Any) -> Quadruple:
    y, mean, rstd = fake_train(x)
    return y, mean, rstd, mean.new_empty((4, x.shape[1]))


def _eval(x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_std: Tensor) -> Tensor:
    vectors = (contiguous(weight), contiguous(bias), running_mean.contiguous(), running_std.contiguous())
    return batch_norm_kernels.batch_norm_eval_forward(x, *vectors, 0.0, std=True)


def _backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    renorm: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    output_mask: list[bool],
) -> Triple:
    saved, needs = (mean.contiguous(), rstd.contiguous()), (output_mask[0], any(output_mask[1:]))
    if renorm is None:
        found = batch_norm_kernels.batch_norm_backward(dy, x, *saved, contiguous(weight), 0.0, True, *needs, std=True)
    else:
        found = kernels.batch_renorm_backward(dy, x, *saved, renorm.contiguous(), *needs)
    return cast(Triple, by_mask(found, (x, weight, bias), output_mask))


def _formula(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, renorm: Tensor | None, weight: Tensor | None, eps: float
) -> dict[str, Tensor]:
    if renorm is None:
        return reference.batch_renorm_eval(x, mean, rstd, weight, None, dy)
    # Batch norm with the weight r; r and d are constants here too.
    r, d = renorm[:2].double()
    truth = reference.batch_norm(x, r if weight is None else weight * r, None, eps, dy)
    truth["dw"] = r * truth["dw"] + d * truth["db"]
    return truth


_batch_renorm_train = CustomOperator(
    "batch_renorm_train", _train, _fake_renorm_train, mutates=("running_mean", "running_std")
)
_batch_renorm_eval = CustomOperator("batch_renorm_eval", _eval, fake_eval)
# Without renorm it is the backward pass of evaluation, and mean and rstd are running_mean and running_std.
_batch_renorm_backward = backward_operator("batch_renorm_backward", _backward)
derive_by(_batch_renorm_train, _batch_renorm_backward, results=("y", "mean", "rstd", "renorm"))
_GIVEN: dict[str, Any] = {"mean": "running_mean", "rstd": "running_std", "renorm": None, "eps": 0.0}
derive_by(_batch_renorm_eval, _batch_renorm_backward, results=("y",), **_GIVEN)
derive_again(_batch_renorm_backward, _formula)


def batch_renorm(
    input: Tensor,
    running_mean: Tensor,
    running_std: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.01,
    eps: float = 1e-3,
    rmax: float | Tensor = 3.0,
    dmax: float | Tensor = 5.0,
) -> Tensor:
    """Normalizes each channel by the batch's statistics, corrected towards the running ones.

    input: (N, C, *) in the dtypes and layouts of `batch_norm`; weight, bias, running_mean, running_std: (C,) in input's
    dtype, or float32 beside a 16-bit input. In training y = (x_hat r + d) weight + bias, where

        r = std / running_std, within [1 / rmax, rmax]       d = (mean - running_mean) / running_std, within dmax of 0

    are constants to the gradient and std = sqrt(var + eps); then the running statistics move by `momentum` towards the
    batch's. Otherwise y = (x - running_mean) / running_std weight + bias. rmax and dmax are numbers, or tensors of one
    element, whose values the host does not read: a schedule neither compiles again nor waits for the GPU. Returns
    input's shape and dtype. An rmax below 1, a dmax below 0 and vectors of another length raise ValueError, and what
    batch norm refuses raises the same error, before any buffer changes.

    Ioffe, "Batch renormalization" (2017), algorithm 1; momentum (its alpha) is the paper's.
    """
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_std": running_std}
    _check(input, vectors, rmax, dmax)
    arguments = (weight, bias, running_mean, running_std)
    if not fits(input, arguments, training, momentum, eps):
        buffers = (running_mean, running_std)
        return composed.batch_renorm(input, *buffers, weight, bias, training, momentum, eps, rmax, dmax)
    if not training:
        return cast(Tensor, _batch_renorm_eval(input, *arguments))
    return cast(Tensor, _batch_renorm_train(input, *arguments, momentum, eps, *_limits(rmax, dmax, input))[0])


def _check(input: Tensor, vectors: dict[str, Tensor | None], rmax: float | Tensor, dmax: float | Tensor) -> None:
    if input.dim() < 2:
        raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")
    for name, vector in vectors.items():
        if vector is None and name.startswith("running"):
            raise ValueError(f"batch_renorm needs {name}, in training too: it corrects the batch's statistics by it")
        if vector is not None and vector.shape != input.shape[1:2]:
            raise ValueError(f"{name} should have shape ({input.shape[1]},), not {tuple(vector.shape)}")
    for name, value, least in (("rmax", rmax, 1.0), ("dmax", dmax, 0.0)):
        refuse_gradient("batch_renorm", name, value)
        if not isinstance(value, Tensor) and not value >= least:
            raise ValueError(f"{name} must be at least {least:g}, not {value}")
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{name} must be a number or a tensor of one element, not of shape {tuple(value.shape)}")


def _limits(rmax: float | Tensor, dmax: float | Tensor, x: Tensor) -> tuple[float, float, Tensor | None]:
    """Returns (rmax, dmax, limits) for the operator; where one is a tensor, limits (2,) on x's device replaces both."""
    if not (isinstance(rmax, Tensor) or isinstance(dmax, Tensor)):
        return float(rmax), float(dmax), None
    dtype = statistics_dtype(x)
    both = (
        v.detach().to(x.device, dtype).reshape(()) if isinstance(v, Tensor) else x.new_full((), v, dtype=dtype)
        for v in (rmax, dmax)
    )
    return 1.0, 0.0, torch.stack(list(both))


@dataclass(frozen=True)
class Ramp:
    """A schedule: `start` until step `begin`, then linear, and `end` from step `finish` on."""

    start: float
    end: float
    begin: int
    finish: int

    def __call__(self, step: Tensor) -> Tensor:
        """Returns the value at a step, a tensor of one integer, on its device."""
        slope = (self.end - self.start) / (self.finish - self.begin)
        return (step * slope + (self.start - slope * self.begin)).clamp(*sorted((self.start, self.end)))


Schedule = float | Callable[[Tensor], float | Tensor]
# From the paper's section 4: batch norm for 5000 steps, then limits that widen.
PAPER_RMAX = Ramp(1.0, 3.0, 5000, 40000)
PAPER_DMAX = Ramp(0.0, 5.0, 5000, 25000)


class _BatchRenorm(StatisticsNorm):
    """Base class of the three layers, which differ in the inputs that they accept."""

    running_mean: Tensor
    running_std: Tensor
    num_batches_tracked: Tensor
    _spread = "running_std"
    beyond = "correction towards the running statistics"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-3,
        momentum: float | None = 0.01,
        affine: bool = True,
        rmax: Schedule = PAPER_RMAX,
        dmax: Schedule = PAPER_DMAX,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, True, device, dtype)
        self.rmax, self.dmax = rmax, dmax

    def extra_repr(self) -> str:
        names = ("eps", "momentum", "affine", "rmax", "dmax")
        return ", ".join([str(self.num_features), *(f"{name}={getattr(self, name)}" for name in names)])

    def forward(self, input: Tensor) -> Tensor:
        """input: (N, C, *); returns the same shape, dtype and layout."""
        self._check_input_dim(input)
        tracked, training, momentum = step(self, "running_std")
        limits: list[float | Tensor] = [1.0, 0.0]
        if training:
            limits = [v(self.num_batches_tracked) if callable(v) else v for v in (self.rmax, self.dmax)]
        buffers = (self.running_mean, self.running_std)
        if tracked[0] is None:  # they correct the batch all the same, and stay as they are
            buffers = (self.running_mean.clone(), self.running_std.clone())
        return batch_renorm(input, *buffers, self.weight, self.bias, training, momentum, self.eps, *limits)

    if TYPE_CHECKING:

        def __call__(self, input: Tensor) -> Tensor: ...


class BatchRenorm1d(_BatchRenorm):
    """Batch renormalization of (N, C) or (N, C, L): the layer of `functional.batch_renorm`, like torch.nn.BatchNorm1d.

    `rmax` and `dmax` are numbers or functions of num_batches_tracked, a tensor of one integer that counts the training
    steps; by default the paper's schedules. Buffers: running_mean, running_std (both (C,)) and num_batches_tracked.
    """

    _check_input_dim = torch.nn.BatchNorm1d._check_input_dim


class BatchRenorm2d(_BatchRenorm):
    """Batch renormalization of (N, C, H, W); otherwise as `BatchRenorm1d`."""

    _check_input_dim = torch.nn.BatchNorm2d._check_input_dim


class BatchRenorm3d(_BatchRenorm):
    """Batch renormalization of (N, C, D, H, W); otherwise as `BatchRenorm1d`."""

    _check_input_dim = torch.nn.BatchNorm3d._check_input_dim
