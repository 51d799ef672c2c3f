"""Gives a module another class in place, and its own class back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from normlib.layer_norm import LayerNorm
from normlib.rms_norm import RMSNorm

_RECORD = "_normlib_original"  # in a converted module's __dict__, so that copies and pickles of it can be reverted too


@dataclass(frozen=True)
class Swap:
    """The class that a module gets, and the attributes that it needs for it."""

    kind: type[nn.Module]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Original:
    """The class and attributes that a swap replaced."""

    kind: type[nn.Module]
    replaced: dict[str, Any]  # attributes that had another value
    added: tuple[str, ...]
    added_bias: bool  # normlib's RMSNorm and LayerNorm have a parameter slot that the original may not have


def swap(module: nn.Module, to: Swap) -> None:
    """Swaps a module's class in place, and records what undoes that."""
    state = vars(module)
    replaced = {k: state[k] for k in to.attributes if k in state}
    added = tuple(k for k in to.attributes if k not in state)
    places = (state, module._parameters, module._buffers)
    bias = issubclass(to.kind, (RMSNorm, LayerNorm)) and not any("bias" in place for place in places)
    if bias:
        module._parameters["bias"] = None
    state.update(to.attributes)
    state[_RECORD] = _Original(type(module), replaced, added, bias)
    module.__class__ = to.kind


def revert(model: nn.Module) -> tuple[str, ...]:
    """Undoes `convert` and `convert_sync_batchnorm`, in place; returns the names of the modules that it changed back.

    Parameters and buffers keep their present values. It works on copies, and on loaded pickles, of a converted model
    as well. Raises TypeError for a model that is no module, and RuntimeError, before anything is changed, if a
    converted module has since been given another class (by a parametrization, say) or a bias.
    """
    check_module(model)
    converted = {name: module for name, module in model.named_modules() if _RECORD in vars(module)}
    for name, module in converted.items():
        original: _Original = vars(module)[_RECORD]
        if package_of(type(module)) != "normlib":
            raise RuntimeError(f"{name!r} became a {type(module).__name__} after its conversion: undo that first")
        if original.added_bias and module._parameters["bias"] is not None:
            raise RuntimeError(f"{name!r} was given a bias after its conversion: {original.kind.__name__} has none")
    for module in converted.values():
        state = vars(module)
        original = state.pop(_RECORD)
        state.update(original.replaced)
        for key in original.added:
            del state[key]
        if original.added_bias:
            del module._parameters["bias"]
        module.__class__ = original.kind
    return tuple(converted)


def check_module(model: object) -> None:
    """Raises TypeError unless it is a module."""
    if not isinstance(model, nn.Module):
        found = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(f"model must be a torch.nn.Module, not {found}")


def package_of(kind: type) -> str:
    """Returns the name of the package that defines a class."""
    return kind.__module__.partition(".")[0]
