"""Weight normalization: w = g v / ||v|| (Salimans and Kingma 2016): function, parametrization and initialization."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrizations, parametrize

from normlib import composed, reference
from normlib.dispatch import CustomOperator, LazyModule, backward_operator, by_mask, derive_again, derive_by, serves
from normlib.kernels.host import statistics_dtype

kernels = LazyModule("normlib.kernels.weight_norm.launch")

Pair = tuple[Tensor, Tensor]
Module = TypeVar("Module", bound=torch.nn.Module)


# The operators take rows: x (M, *) is v, weight, of M elements, is g, and y is w.
def _forward(x: Tensor, weight: Tensor) -> Pair:
    return kernels.forward(x, weight.contiguous())


def _fake_forward(x: Tensor, weight: Tensor) -> Pair:
    return x.new_empty(x.shape), x.new_empty((2, x.shape[0]), dtype=statistics_dtype(x))


def _backward(dy: Tensor, x: Tensor, norm: Tensor, weight: Tensor, output_mask: list[bool]) -> Pair:
    found = kernels.backward(dy, x, norm, weight.contiguous(), need_dx=output_mask[0], need_dw=output_mask[1])
    return cast(Pair, by_mask(found, (x, weight), output_mask))


def _formula(dy: Tensor, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    return reference.weight_norm(x, weight, dy)


_weight_norm = CustomOperator("weight_norm", _forward, _fake_forward)
_weight_norm_backward = backward_operator(
    "weight_norm_backward", _backward, of=("x", "weight"), empty=lambda x: x.new_empty(x.shape)
)
derive_by(_weight_norm, _weight_norm_backward, results=("y", "norm"), of=("x", "weight"))
derive_again(_weight_norm_backward, _formula, results=("dx", "dw"))


def weight_norm(v: Tensor, g: Tensor, dim: int | None = 0) -> Tensor:
    """g v / ||v||: v's direction with the length g, the norm taken over all dimensions but `dim`.

    v: any shape of one dimension at least, in float32, float16, bfloat16 or float64; g: v's shape with ones in place of
    all sizes but `dim`'s, in v's dtype, or float32 beside a 16-bit v. With dim=None, which PyTorch also writes -1, the
    norm is that of all of v and g has the shape (). Returns v's shape and dtype, contiguous. Another shape of g and a
    dim that v has not raise ValueError; where v is zero throughout, its direction and so the result are NaN.

    In the kernels neither a square nor the norm overflows or underflows: rows of size 1e30 or 1e-30 are as exact as
    those of size 1. A norm of all of v is left to PyTorch's operators: in the kernels one program computes a row.

    Salimans and Kingma, "Weight normalization" (2016), equations 2 and 3.
    """
    _check(v, g, dim)
    if dim is None or dim == -1 or not serves(v, g):
        return composed.weight_norm(v, g, dim)
    y, _ = _weight_norm(v.movedim(dim, 0), g.movedim(dim, 0))
    return cast(Tensor, y.movedim(0, dim).contiguous())


def _check(v: Tensor, g: Tensor, dim: int | None) -> None:
    whole = dim is None or dim == -1
    if not whole and not 0 <= cast(int, dim) < v.dim():
        raise ValueError(f"dim must be None or from 0 to {v.dim() - 1} for a v of {v.dim()} dimensions, not {dim!r}")
    wanted = () if whole else tuple(size if d == dim else 1 for d, size in enumerate(v.shape))
    if tuple(g.shape) != wanted:
        raise ValueError(
            f"g must have the shape {wanted} for a v of {tuple(v.shape)} and dim={dim}, not {tuple(g.shape)}"
        )


class WeightNorm(torch.nn.Module):
    """The parametrization g, v -> g v / ||v||, for `torch.nn.utils.parametrize.register_parametrization`.

    dim: as in `functional.weight_norm`. A parameter that it is registered on is kept as `original0`, g, and
    `original1`, v; to assign to it sets v to the value and g to its norm.
    """

    def __init__(self, dim: int | None = 0) -> None:
        super().__init__()
        self.dim = dim

    def extra_repr(self) -> str:
        return f"dim={self.dim}"

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        """The weight: v's shape and dtype."""
        return weight_norm(v, g, self.dim)

    def right_inverse(self, weight: Tensor) -> Pair:
        """Returns (g, v) that give the weight: its norm and itself."""
        return torch.norm_except_dim(weight, 2, -1 if self.dim is None else self.dim), weight


def parametrize_weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """`torch.nn.utils.parametrizations.weight_norm` on the Triton kernels: same arguments, parameters and state_dict.

    Returns the module, whose parameter `name` is from then on computed from g (`parametrizations.<name>.original0`) and
    v (`original1`). `torch.nn.utils.parametrize.remove_parametrizations` undoes it.
    """
    # PyTorch's function also loads checkpoints of its older weight_norm; only the formula is exchanged.
    parametrizations.weight_norm(module, name, dim)  # type: ignore[arg-type]
    registered = cast(torch.nn.ModuleDict, module.parametrizations)
    cast(torch.nn.ModuleList, registered[name])[-1] = WeightNorm(dim)
    return module


class _WeightNormed(NamedTuple):
    name: str
    module: torch.nn.Module
    g: Tensor
    bias: Tensor
    units: int  # the dimension of its output that has a unit an index, from the end


@torch.no_grad()
def initialize_weight_norm(model: torch.nn.Module, *batch: Any) -> list[str]:
    """Initializes layers with weight norm from one batch, by the data-dependent initialization of the paper.

    Runs model(*batch) once. Layers are linear or convolutional, with weight norm over their output units (normlib's or
    PyTorch's own) and a bias. When a layer first runs, its pre-activations are t = v x / ||v||, where x comes from
    layers that are initialized already; for every unit, mu and sigma are the mean and (biased) deviation of t over the
    batch and all positions, and g = 1 / sigma, b = -mu / sigma, which gives mean 0 and variance 1. v does not change.
    Returns the names of these layers in the order in which they ran; layers that did not run are not changed.

    Raises ValueError, with g and b as before, for a layer with weight norm of another kind, a model without such
    layers, and a unit that does not vary over the batch. Other effects of the forward pass, such as on the buffers of
    batch norm, remain.

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


def _layers(model: torch.nn.Module) -> Iterator[_WeightNormed]:
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
        yield _WeightNormed(name, module, weight.original0, module.bias, units)


def _hooks(layer: _WeightNormed, order: list[str]) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Registers hooks that initialize the layer when it first runs."""

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
