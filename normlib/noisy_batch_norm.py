"""Batch norm followed by noise that shifts each channel's mean and variance (Santurkar et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from normlib import composed, reference
from normlib.batch_norm import BUFFERS, batch_norm, fake_train, fits, step
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
)
from normlib.philox import noise_of
from normlib.statistics_norm import StatisticsNorm

batch_norm_kernels = LazyModule("normlib.kernels.batch_norm.launch")
kernels = LazyModule("normlib.kernels.batch_norm.noisy")

# The noise's mean and deviation are drawn once for the layer or for each channel (the paper's unit).
PER = ("layer", "unit")


def _train(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    seed: Tensor,
    per_unit: bool,
    ranges: list[float],
) -> Quadruple:
    vectors = (contiguous(weight), contiguous(bias), running_mean, running_var)
    return kernels.noisy_batch_norm_forward(x, *vectors, momentum, eps, seed, per_unit, ranges)


def _fake_noisy_train(x: Tensor, *_: Any) -> Quadruple:
    y, mean, rstd = fake_train(x)
    return y, mean, rstd, mean.new_empty((4, x.shape[1]))


def _backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    noise: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    seed: Tensor,
    per_unit: bool,
    ranges: list[float],
    output_mask: list[bool],
) -> Triple:
    found = batch_norm_kernels.batch_norm_backward(
        *(dy, x, mean.contiguous(), rstd.contiguous(), contiguous(weight), 0.0, False),
        need_dx=output_mask[0],
        need_sums=any(output_mask[1:]),
        noise=noise.contiguous(),
        seed=seed,
    )
    return cast(Triple, by_mask(found, (x, weight, bias), output_mask))


def _formula(
    dy: Tensor, x: Tensor, weight: Tensor | None, eps: float, seed: Tensor, per_unit: bool, ranges: list[float]
) -> dict[str, Tensor]:
    s, _ = noise_of(x, seed, per_unit, ranges, torch.float64)
    return reference.batch_norm(x, weight, None, eps, s * dy)


_noisy_train = CustomOperator("noisy_batch_norm_train", _train, _fake_noisy_train, mutates=BUFFERS)
_noisy_backward = backward_operator("noisy_batch_norm_backward", _backward)
derive_by(_noisy_train, _noisy_backward, results=("y", "mean", "rstd", "noise"))
derive_again(_noisy_backward, _formula)


def noisy_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    seed: int | Tensor | None = None,
    per: str = "layer",
    mean_limit: float = 0.5,
    std_limit: float = 1.25,
    mean_spread: float = 0.1,
    std_spread: float = 0.1,
) -> Tensor:
    """`batch_norm`, in training followed by noise whose moments are drawn anew in every step.

    The result y of batch norm becomes s y + m, where for every element m is uniform within mean_spread of mu and s is
    normal about sigma with deviation std_spread; mu is uniform within mean_limit of 0 and sigma between 1 and
    std_limit, one of each for the whole layer (`per="layer"`) or for each channel ("unit"). Evaluation has no noise.

    Other arguments, result and errors are those of batch norm. The noise follows from `seed`, a number or a tensor of
    one int64, and an element's index: it is the same in every layout and on every device, to rounding. Without a seed
    one is drawn from the default generator of input's device, so that torch.manual_seed repeats it; the host does not
    read it. Negative ranges, a std_limit below 1 and another `per` raise ValueError.

    Santurkar, Tsipras, Ilyas and Madry, "How does batch normalization help optimization?" (2018), section 2.1 and
    appendix A.
    """
    ranges: dict[str, Any] = _named(mean_limit, std_limit, mean_spread, std_spread)
    _check(seed, per, ranges)
    vectors = (weight, bias, running_mean, running_var)
    if not training:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if not fits(input, vectors, training, momentum, eps):
        buffers = (running_mean, running_var)
        arguments = (*buffers, weight, bias, training, momentum, eps)
        return composed.noisy_batch_norm(input, *arguments, seed=seed, per=per, **ranges)
    seed = composed.seed_on(input.device, seed)
    drawn = (seed, per == "unit", [float(v) for v in ranges.values()])
    return cast(Tensor, _noisy_train(input, *vectors, momentum, eps, *drawn)[0])


def _named(mean_limit: float, std_limit: float, mean_spread: float, std_spread: float) -> dict[str, float]:
    """Returns the ranges by name, in the order of the operators."""
    return {"mean_limit": mean_limit, "std_limit": std_limit, "mean_spread": mean_spread, "std_spread": std_spread}


def _check(seed: int | Tensor | None, per: str, ranges: dict[str, float]) -> None:
    if per not in PER:
        raise ValueError(f"per must be 'layer' or 'unit', not {per!r}")
    if isinstance(seed, Tensor) and (seed.numel() != 1 or seed.dtype.is_floating_point):
        raise ValueError(f"seed must be a number or a tensor of one integer, not {tuple(seed.shape)} {seed.dtype}")
    for name, value in ranges.items():
        least = 1.0 if name == "std_limit" else 0.0
        if not value >= least:
            raise ValueError(f"{name} must be at least {least:g}, not {value}")


class _NoisyBatchNorm(StatisticsNorm):
    per: str
    ranges: dict[str, Any]
    beyond = "noise"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        per: str = "layer",
        mean_limit: float = 0.5,
        std_limit: float = 1.25,
        mean_spread: float = 0.1,
        std_spread: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias)
        self.per = per
        self.ranges = _named(mean_limit, std_limit, mean_spread, std_spread)
        _check(None, per, self.ranges)

    def extra_repr(self) -> str:
        said: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return said + "".join(f", {k}={v!r}" for k, v in {"per": self.per, **self.ranges}.items())

    def forward(self, input: Tensor, seed: int | Tensor | None = None) -> Tensor:
        """input: (N, C, *); returns the same shape, dtype and layout. A seed repeats a step's noise."""
        self._check_input_dim(input)
        buffers, _, momentum = step(self)
        # Without running statistics evaluation uses the batch's, still without noise.
        if not self.training:
            training = buffers[0] is None and buffers[1] is None
            return batch_norm(input, *buffers, self.weight, self.bias, training, momentum, self.eps)
        arguments = (*buffers, self.weight, self.bias, True, momentum, self.eps)
        return noisy_batch_norm(input, *arguments, seed=seed, per=self.per, **self.ranges)

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, seed: int | Tensor | None = None) -> Tensor: ...


class NoisyBatchNorm1d(_NoisyBatchNorm):
    """`torch.nn.BatchNorm1d` with noise in training, by `functional.noisy_batch_norm`'s `per` and ranges."""

    _check_input_dim = torch.nn.BatchNorm1d._check_input_dim


class NoisyBatchNorm2d(_NoisyBatchNorm):
    """`torch.nn.BatchNorm2d` with noise in training, by `functional.noisy_batch_norm`'s `per` and ranges."""

    _check_input_dim = torch.nn.BatchNorm2d._check_input_dim


class NoisyBatchNorm3d(_NoisyBatchNorm):
    """`torch.nn.BatchNorm3d` with noise in training, by `functional.noisy_batch_norm`'s `per` and ranges."""

    _check_input_dim = torch.nn.BatchNorm3d._check_input_dim
