"""Each fused operator beside the pair that it replaces: the plain norm, and PyTorch's own operators around it.

The norms' bytes are those that their plans declare. PyTorch's operators run forward and backward on tensors without
memory, the norm between them being an empty shell, while everything that PyTorch dispatches is noted: what it takes is
read once, what it gives is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.audit.calls import Call
from bench.audit.targets import TARGETS

Norm = Callable[[Tensor], Tensor]
# By fused operator: the plain norm, and what a net does of that norm, x and a residual without it.
UNFUSED: Mapping[str, tuple[str, Callable[[Norm, Tensor, Tensor], tuple[Tensor, ...]]]] = {
    "batch_norm_relu": ("batch_norm", lambda norm, x, _: (torch.relu(norm(x)),)),
    "batch_norm_add_relu": ("batch_norm", lambda norm, x, residual: (torch.relu(norm(x) + residual),)),
    "layer_norm_add": ("layer_norm", lambda norm, x, residual: _stream(norm, x + residual)),
    "rms_norm_add": ("rms_norm", lambda norm, x, residual: _stream(norm, x + residual)),
}
# Reads and writes nothing, though it gives a tensor.
_EMPTY = torch.ops.aten.empty_like


def _stream(norm: Norm, z: Tensor) -> tuple[Tensor, ...]:
    return norm(z), z


@dataclass(frozen=True)
class FusedPair:
    """One pass of one call of a fused operator on one target, beside the same unfused; bytes as in a `PassRecord`."""

    target: str
    op: str
    mode: str
    dtype: str
    layout: str
    shape: tuple[int, ...]
    plain: str  # the norm that the pair has
    plain_bytes: int
    around: dict[str, int]  # bytes of PyTorch's operators around it
    fused_bytes: int
    unit_bytes: int
    saved_beside: int = 0  # bytes that the pass in the other direction saves

    @property
    def unfused_bytes(self) -> int:
        return self.plain_bytes + sum(self.around.values())

    @property
    def problems(self) -> list[str]:
        """A line if the fused form saves nothing.

        Channels that plain batch norm holds in registers are swept twice in the fused forms: backward may then cost a
        little of what forward saves.
        """
        if self.fused_bytes < self.unfused_bytes + self.saved_beside:
            return []
        return [f"{self.op} {self.mode} moves {self.fused_bytes} bytes, unfused {self.unfused_bytes}"]

    def as_dict(self) -> dict[str, Any]:
        """Returns a line of records.jsonl."""
        return {"record": "pair", **asdict(self), "unfused_bytes": self.unfused_bytes, "problems": self.problems}


def pairs(target: str, calls: Iterable[Call]) -> Iterator[FusedPair]:
    """Yields every pass of those calls that are fused and have all their tensors, in order."""
    _, device = TARGETS[target]
    for call in calls:
        if call.op not in UNFUSED or call.without:
            continue
        plain, unit = replace(call, op=UNFUSED[call.op][0]), call.activation_bytes
        moved_by = [
            {one.mode: sum(moved.moved_bytes for moved in one.launches) for one in side.recorded(device)}
            for side in (call, plain)
        ]
        found = []
        for mode, fused_bytes in moved_by[0].items():
            around = {name: units * unit for name, units in units_around(call.op)["bwd" in mode].items()}
            pair = FusedPair(
                target=target,
                op=call.op,
                mode=mode,
                dtype=call.dtype,
                layout=call.layout,
                shape=call.shape,
                plain=plain.op,
                plain_bytes=moved_by[1][mode],
                around=around,
                fused_bytes=fused_bytes,
                unit_bytes=unit,
            )
            found.append(pair)
        saved = {pair.mode: pair.unfused_bytes - pair.fused_bytes for pair in found}
        for pair in found:
            yield replace(pair, saved_beside=max(saved["fwd"], 0)) if pair.mode == "bwd" and "fwd" in saved else pair


@cache
def units_around(op: str) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Returns (forward, backward) of the operators that PyTorch dispatches around the norm: units by name."""
    _, net = UNFUSED[op]
    x, residual = (torch.empty(16, device="meta", requires_grad=True) for _ in range(2))
    with _Noting(x.nbytes) as forward:
        outputs = net(_Shell.apply, x, residual)
    with _Noting(x.nbytes) as backward:
        torch.autograd.grad(outputs, (x, residual), [torch.empty_like(y) for y in outputs], allow_unused=True)
    return forward.units, backward.units


class _Shell(torch.autograd.Function):
    """Stands for the norm: returns tensors like its own, and moves nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> Tensor:
        return torch.empty_like(dy[0])


class _Noting(TorchDispatchMode):
    """Notes the units that each operator reads and writes, by its name."""

    def __init__(self, unit_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.units: dict[str, int] = {}
        self._unit_bytes = unit_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket is not _EMPTY:
            tensors = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, Tensor)]
            name = func.overloadpacket.__name__
            units = sum(tensor.nbytes for tensor in tensors) // self._unit_bytes
            self.units[name] = self.units.get(name, 0) + units
        return out
