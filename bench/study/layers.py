"""What stands where a network has its normalization: normlib's layers by name, and two that are only for study."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import normlib

# Gives the layer for so many features.
Norm = Callable[[int], nn.Module]


class Noise(nn.Module):
    """The noise of noisy batch norm without the norm: y = s x + m in training, x in evaluation.

    Every step draws mu ~ U(-.5, .5) and sigma ~ U(1, 1.25), then for each element m ~ U(mu - .1, mu + .1) and
    s ~ N(sigma, .1). Santurkar et al. (2018), section 2.1 and appendix.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape, which the result has too."""
        if not self.training:
            return x
        mu, sigma = torch.rand(2, device=x.device).unbind()
        shift = mu - 0.5 + 0.2 * (torch.rand_like(x) - 0.5)
        scale = 1 + 0.25 * sigma + 0.1 * torch.randn_like(x)
        return scale * x + shift


class MovingAverages(normlib.BatchNorm1d):
    """Normalizes by moving averages in training too, through which no gradient passes: what is known to blow up.

    A batch moves the averages first and is then normalized by them. Ioffe (2017), section 2.
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """input: (N, C), which the result has too."""
        if self.training:
            with torch.no_grad():
                super().forward(input)
        statistics = self.running_mean, self.running_var
        return normlib.functional.batch_norm(input, *statistics, self.weight, self.bias, eps=self.eps)


# Over the batch: a class for (N, C) and one for (N, C, H, W), so that the name lacks its ending.
_OVER_BATCH: dict[str, tuple[str, dict[str, Any]]] = {
    "BN": ("BatchNorm", {}),
    "noisy BN": ("NoisyBatchNorm", {}),
    "batch renorm": ("BatchRenorm", {}),
    "l1": ("LpNorm", {"p": 1}),
    "l2": ("LpNorm", {"p": 2}),
    "linf": ("LpNorm", {"p": float("inf")}),
}
_OTHERS: dict[str, Norm] = {
    "layer norm": normlib.LayerNorm,
    "RMS norm": normlib.RMSNorm,
    "noise": lambda features: Noise(),
    "moving averages": MovingAverages,
}


def norm(name: str, dims: int = 1, **options: Any) -> Norm | None:
    """The layer that a condition names, for (N, C) or with dims=2 for (N, C, H, W); None for `plain`.

    `options` go to the layer's constructor.
    """
    if name == "plain":
        return None
    if name in _OTHERS:
        return _OTHERS[name]
    layer, arguments = _OVER_BATCH[name]
    return partial(getattr(normlib, f"{layer}{dims}d"), **arguments, **options)
