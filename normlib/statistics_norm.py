"""Layers with running statistics that are more than batch norm, and what tools for batch norms see of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _NormBase


class StatisticsNorm(_NormBase):
    """Base class of the layers that have running statistics and are more than batch norm.

    They are no batch norm to tools that replace one by its class, such as PyTorch's SyncBatchNorm conversion, for that
    would drop what they add. `modules()` also yields a `Statistics`, which is one, to the tools that look for a batch
    norm to handle its statistics, such as `torch.optim.swa_utils.update_bn`.
    """

    _spread = "running_var"  # the name of the buffer that holds the batch's spread
    beyond: str  # a word for what the layer adds to batch norm

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        bias: bool = True,
    ) -> None:
        later = {} if bias else {"bias": False}  # PyTorch 2.13 has it
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **later)
        spread = self._spread
        self._buffers = {spread if name == "running_var" else name: t for name, t in self._buffers.items()}

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        for name, module in super().named_modules(memo, prefix, remove_duplicate):
            yield name, module
            if module is self:
                yield f"{prefix}.statistics".removeprefix("."), Statistics(self)

    def _check_input_dim(self, input: Tensor) -> None:
        raise NotImplementedError

    def reset_running_stats(self) -> None:
        """Sets the running mean to 0, the running variance (norm, deviation) to 1 and the number of batches to 0."""
        buffers = self._buffers  # while PyTorch initializes it, the spread is still called running_var
        for name, value in (("running_mean", 0), (self._spread, 1), ("running_var", 1), ("num_batches_tracked", 0)):
            buffer = buffers.get(name)
            if buffer is not None:
                buffer.fill_(value)


class Statistics(torch.nn.modules.batchnorm._BatchNorm):
    """The running statistics of a layer that is more than batch norm, and all of its attributes.

    It has neither parameters nor buffers of its own, and is in no state_dict. `eps` raises TypeError, so that no tool
    makes another batch norm of it, or fuses it with a convolution.
    """

    def __init__(self, layer: StatisticsNorm) -> None:
        Module.__init__(self)
        del self.training
        vars(self)["layer"] = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["layer"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["layer"], name, value)

    @property
    def eps(self) -> float:  # type: ignore[override]
        layer = vars(self)["layer"]
        raise replaced(layer, layer.beyond)

    def train(self, mode: bool = True) -> Self:
        """Sets the layer's mode."""
        vars(self)["layer"].train(mode)
        return self

    def reset_running_stats(self) -> None:
        """Resets the layer's running statistics."""
        vars(self)["layer"].reset_running_stats()


def replaced(layer: Module, dropped: str) -> TypeError:
    """Returns the error for a tool that would drop what the layer adds to batch norm."""
    return TypeError(
        f"{type(layer).__name__} has no eps for tools that replace or fuse a batch norm by its class: they would drop "
        f"its {dropped}"
    )
