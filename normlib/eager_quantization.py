"""Entries for normlib's layers in the tables where eager quantization of torch.ao looks a module up by its class."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from normlib.swap import revert


def register(swaps: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Makes `prepare`, `convert` and `fuse_modules` take each of normlib's layers as PyTorch's.

    swaps: PyTorch's classes, and normlib's for each. A batch norm with an activation raises TypeError there.
    """
    package = sys.modules.get("torch.ao.quantization")  # torch imports it
    if package is None:
        return
    modules: Any = package.quantization_mappings.DEFAULT_STATIC_QUANT_MODULE_MAPPINGS
    modules |= {swaps[theirs]: to for theirs, to in modules.items() if theirs in swaps}
    fusions: Any = package.fuser_method_mappings._DEFAULT_OP_LIST_TO_FUSER_METHOD
    pytorchs = {ours: theirs for theirs, ours in swaps.items()}
    fusions |= {
        tuple(swaps.get(kind, kind) for kind in kinds): _of_pytorchs(fuse, pytorchs)
        for kinds, fuse in fusions.items()
        if any(kind in swaps for kind in kinds)
    }


def _of_pytorchs(fuse: Callable[..., Any], pytorchs: Mapping[type[nn.Module], type[nn.Module]]) -> Callable[..., Any]:
    """Returns the fuser for modules of normlib's: those of torch.ao want PyTorch's own classes."""

    def fuse_pytorchs(is_qat: bool, *modules: nn.Module) -> Any:
        for module in modules:
            if type(module) in pytorchs:
                _ = module.eps  # raises if the layer is more than its PyTorch class
                revert(module)
            if type(module) in pytorchs:  # it was made as normlib's
                module.__class__ = pytorchs[type(module)]
        return fuse(is_qat, *modules)

    return fuse_pytorchs
