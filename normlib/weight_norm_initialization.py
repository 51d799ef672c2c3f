"""The data-dependent initialization of weight normalization: one batch decides every layer's g and b."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrizations, parametrize

from normlib.weight_norm import WeightNorm


class _Layer(NamedTuple):
    name: str
    module: torch.nn.Module
    g: Tensor
    bias: Tensor
    units: int  # the dimension of its output that has a unit an index, from the end


@torch.no_grad()
def initialize_weight_norm(model: torch.nn.Module, *batch: Any) -> list[str]:
    """Runs model(*batch) once and has it give every layer with weight norm pre-activations of mean 0 and variance 1.

    Layers are linear or convolutional, with weight norm over their output units (normlib's or PyTorch's own) and a
    bias. Each, when it first runs, has t = v x / ||v|| from what the layers before it, already initialized, give; for
    every unit, mu and sigma are t's mean and (biased) deviation over the batch and all positions, and g = 1 / sigma,
    b = -mu / sigma. v stays as it is. Returns the names of these layers in the order in which they ran; those that did
    not run are left alone.

    ValueError, with the model as it was before, for a layer that is none of that, a model without such layers, and a
    unit that does not vary over the batch. What the forward pass changes besides, as batch norm's buffers, it changes.

    Salimans and Kingma, "Weight normalization" (2016), section 3.
    """
    layers = list(_layers(model))
    if not layers:
        raise ValueError("the model has no layer whose weight is parametrized by weight norm")
    before = [(t, t.clone()) for layer in layers for t in (layer.g, layer.bias)]
    order: list[str] = []
    handles = [handle for layer in layers for handle in _hooks(layer, order)]
    try:
        model(*batch)
    except BaseException:
        for parameter, value in before:
            parameter.copy_(value)
        raise
    finally:
        for handle in handles:
            handle.remove()
    return order


def _layers(model: torch.nn.Module) -> Iterator[_Layer]:
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module, "weight"):
            continue
        weight: Any = module.parametrizations["weight"]
        formula = weight[-1]
        if not isinstance(formula, (WeightNorm, parametrizations._WeightNorm)):
            continue
        if isinstance(module, torch.nn.Linear):
            units, dim = -1, 0
        elif isinstance(module, _ConvNd) and not (isinstance(module, _ConvTransposeNd) and module.groups > 1):
            units, dim = -1 - len(module.kernel_size), int(isinstance(module, _ConvTransposeNd))
        else:
            raise ValueError(f"{name} is a {type(module).__name__}, neither a linear layer nor a plain convolution")
        if formula.dim != dim:
            raise ValueError(f"{name} has weight norm with dim={formula.dim}; a g for every unit takes dim={dim}")
        if module.bias is None:
            raise ValueError(f"{name} has no bias, which the mean of its pre-activations is taken out by")
        yield _Layer(name, module, weight.original0, module.bias, units)


def _hooks(layer: _Layer, order: list[str]) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Those that initialize the layer when it first runs."""

    def begin(*_: Any) -> None:
        if layer.name not in order:
            layer.g.fill_(1.0)
            layer.bias.fill_(0.0)

    def end(module: torch.nn.Module, inputs: Any, t: Tensor) -> Tensor | None:
        if layer.name in order:
            return None
        order.append(layer.name)
        over = [d for d in range(t.dim()) if d != t.dim() + layer.units]
        wide = t.double()
        var, mu = torch.var_mean(wide, over, correction=0, keepdim=True)
        if not bool(((var > 0) & var.isfinite()).all()):
            raise ValueError(f"{layer.name} has units whose pre-activation does not vary over this batch")
        sigma = var.sqrt()
        layer.g.copy_((1 / sigma).reshape(layer.g.shape))
        layer.bias.copy_((-mu / sigma).flatten())
        return ((wide - mu) / sigma).to(t.dtype)

    yield layer.module.register_forward_pre_hook(begin)
    yield layer.module.register_forward_hook(end)
