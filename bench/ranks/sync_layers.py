"""The synchronized batch norms that can be measured: ours, PyTorch's, Apex's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.distributed as dist
from torch import nn

import normlib
from bench.cases.operators.batch_norm import MOMENTUM

# (channels, eps, whether channels are innermost, group, device) -> the layer
Make = Callable[[int, float, bool, dist.ProcessGroup, torch.device], nn.Module]


@dataclass(frozen=True)
class Layer:
    """A layer class by the provider's name, and why it cannot run on a device of this type, if it cannot."""

    name: str
    make: Make
    unavailable: Callable[[torch.device], str | None]


def _normlib(channels: int, eps: float, last: bool, group: dist.ProcessGroup, device: torch.device) -> nn.Module:
    return normlib.SyncBatchNorm(channels, eps, MOMENTUM, process_group=group, device=device)


def _torch(channels: int, eps: float, last: bool, group: dist.ProcessGroup, device: torch.device) -> nn.Module:
    return nn.SyncBatchNorm(channels, eps, MOMENTUM, process_group=group, device=device)


def _apex(channels: int, eps: float, last: bool, group: dist.ProcessGroup, device: torch.device) -> nn.Module:
    made = importlib.import_module("apex.parallel").SyncBatchNorm
    layer: nn.Module = made(channels, eps, MOMENTUM, process_group=group, channel_last=last).to(device)
    return layer


def _no_gpu(name: str) -> Callable[[torch.device], str | None]:
    return lambda device: None if device.type == "cuda" else f"{name} runs on GPUs alone"


def _no_apex(device: torch.device) -> str | None:
    # The module falls back to Python where its extension is missing; that is not what is asked for here.
    missing = [module for module in ("apex", "syncbn") if find_spec(module) is None]
    return f"not installed: {', '.join(missing)}" if missing else _no_gpu("Apex's SyncBatchNorm")(device)


LAYERS = {
    layer.name: layer
    for layer in (
        Layer("torch", _torch, _no_gpu("PyTorch's SyncBatchNorm")),
        Layer("normlib", _normlib, lambda device: None),
        Layer("apex", _apex, _no_apex),
    )
}
