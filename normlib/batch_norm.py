"""Batch normalization over all dimensions but the second (Ioffe and Szegedy 2015)."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from normlib.backend import serves
from normlib.batch_norm_add_relu import add_relu_eval, add_relu_train
from normlib.batch_norm_operators import batch_norm_eval, batch_norm_train
from normlib.channels import fits, step

# What may stand behind the norm, or before it; None is nothing.
ACTIVATIONS = (None, "relu")


def _least_eps() -> float:
    """Returns the smallest eps that this PyTorch's batch norm takes in evaluation: 0, or above it as in 2.11."""
    try:
        torch.nn.functional.batch_norm(torch.zeros(1, 1), torch.zeros(1), torch.ones(1), eps=0.0)
    except ValueError:
        return math.ulp(0.0)
    return 0.0


LEAST_EPS = _least_eps()


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    pre_activation: str | None = None,
) -> Tensor:
    """Normalizes each channel over the batch and all positions: `torch.nn.functional.batch_norm`.

    input: (N, C, *) in float32, float16, bfloat16 or float64, contiguous or channels-last (kept in the result);
    weight, bias, running_mean, running_var: (C,) in input's dtype, or float32 beside a 16-bit input. In training the
    batch's statistics are used (the biased variance), and the running buffers, if given, move by `momentum` towards
    them (the unbiased variance); otherwise the running buffers are used. Returns input's shape and dtype. Bad shapes,
    dtypes and eps raise what PyTorch raises, before any buffer changes.

    What stands around the norm runs in its kernels: `activation="relu"` gives relu(norm), with a residual of input's
    shape, dtype and device relu(norm + residual); `pre_activation="relu"` normalizes relu(input). They are computed in
    float32 (float64 for float64), rounded once, and no activation is saved for them: of a residual's sum one bit an
    element. ReLU and its gradient treat zero and NaN as PyTorch does, by the value before that rounding. Another
    activation, a residual without one and one that is not like input raise ValueError.

    Ioffe and Szegedy, "Batch normalization" (2015), algorithms 1 and 2.
    """
    _check_around(input, activation, residual, pre_activation)
    relu, pre_relu = activation is not None, pre_activation is not None
    buffers = (running_mean, running_var)
    fitting = fits(input, (weight, bias, *buffers), training, momentum, eps) and eps >= LEAST_EPS
    if not (fitting and (residual is None or serves(residual))):
        x = input.relu() if pre_relu else input
        y = torch.nn.functional.batch_norm(x, *buffers, weight, bias, training, momentum, eps)
        y = y if residual is None else y + residual
        return y.relu() if relu else y
    scalars = (momentum, eps) if training else (eps,)
    arguments = (weight, bias, *buffers, *scalars)
    if residual is None:
        if not training:
            return cast(Tensor, batch_norm_eval(input, *arguments, relu, pre_relu))
        return cast(Tensor, batch_norm_train(input, *arguments, relu, pre_relu)[0])
    derived = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (input, residual, weight, bias)
    )
    operator = add_relu_train if training else add_relu_eval
    return cast(Tensor, operator(input, residual, *arguments, derived, pre_relu)[0])


def _check_around(input: Tensor, activation: str | None, residual: Tensor | None, pre_activation: str | None) -> None:
    for name, value in (("activation", activation), ("pre_activation", pre_activation)):
        if value not in ACTIVATIONS:
            raise ValueError(f"{name} must be None or 'relu', not {value!r}")
    if residual is None:
        return
    if activation is None:
        raise ValueError("a residual is added before an activation: it needs activation='relu'")
    if (residual.shape, residual.dtype, residual.device) != (input.shape, input.dtype, input.device):
        wanted, found = (f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in (input, residual))
        raise ValueError(f"residual must have input's shape, dtype and device, {wanted}; got {found}")


class _BatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    # Also of a module that was made as another class.
    activation: str | None = None
    pre_activation: str | None = None

    def __init__(
        self, *args: Any, activation: str | None = None, pre_activation: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        _check_around(torch.empty(0), activation, None, pre_activation)
        self.activation, self.pre_activation = activation, pre_activation

    def extra_repr(self) -> str:
        around = {"activation": self.activation, "pre_activation": self.pre_activation}
        said: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return said + "".join(f", {k}={v!r}" for k, v in around.items() if v is not None)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """input, and residual if the module has an activation: (N, C, *); returns the same shape, dtype and layout."""
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        buffers, training, momentum = step(self)
        return batch_norm(
            input,
            *buffers,
            self.weight,
            self.bias,
            training,
            momentum,
            self.eps,
            activation=self.activation,
            residual=residual,
            pre_activation=self.pre_activation,
        )


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` on the Triton kernels: same arguments, parameters, buffers and state_dict.

    `activation` and `pre_activation`, and a residual in the call, are those of `functional.batch_norm`.
    """


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` on the Triton kernels: same arguments, parameters, buffers and state_dict.

    `activation` and `pre_activation`, and a residual in the call, are those of `functional.batch_norm`.
    """


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` on the Triton kernels: same arguments, parameters, buffers and state_dict.

    `activation` and `pre_activation`, and a residual in the call, are those of `functional.batch_norm`.
    """
