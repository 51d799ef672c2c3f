"""Synchronized batch norm as it is audited: the launches of one rank, on its share of the batch.

bench/ranks measures it on all ranks at once. To record, count or compile its launches one rank is enough: copies of its
own message stand in for those of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bench.cases.case import Case
from bench.cases.operators import Inputs, Reference
from bench.cases.operators.batch_norm import BATCH_NORM, MOMENTUM, BatchNorm

if TYPE_CHECKING:
    from torch import Tensor

# The GPUs of one machine; and as `extra` also more, so that the merge has tiles of 1, 2 and 8 warps.
RANKS = (8, 64, 1024)


class SyncBatchNormOperator(BatchNorm):
    """Batch norm's training with so many `ranks`; a shape is that of one rank's share."""

    name = "sync_batch_norm"
    # Why no plan has its sweeps side by side.
    apart = "all of x is swept before the other ranks' messages come"
    short = "sync_bn"
    axes = (*BatchNorm.axes, "ranks")
    choices: Mapping[str, tuple[int | str, ...]] = {"ranks": RANKS}
    modes = ("fwd", "bwd")

    def __init__(self) -> None:
        self.presets = {
            name: replace(preset, grids=tuple({**grid, "ranks": RANKS[:1]} for grid in preset.grids))
            for name, preset in BATCH_NORM.presets.items()
        }

    def bytes_moved(self, case: Case) -> int:
        """Returns batch norm's bytes and every rank's message; forward this rank's is written too."""
        ranks, channels = _ranks(case), case.shape[1]
        messages = {"fwd": (ranks + 1) * (3 * channels + 2), "bwd": ranks * 2 * channels}
        return super().bytes_moved(case) + 4 * messages[case.mode]

    def truth(self, case: Case, inputs: Inputs) -> Reference:
        """Batch norm's of as many copies of this rank's share as there are ranks, less what is the other ranks'."""
        import torch

        ranks, share = _ranks(case), case.shape[0]
        found = super().truth(case, inputs | {name: torch.cat([inputs[name]] * ranks) for name in ("x", "dy")})
        own = {name: t[:share] for name, t in found.items() if t is not None and t.dim() > 1}
        return found | own | {name: found[name] / ranks for name in ("dw", "db")}

    def forward(self, case: Case) -> Callable[..., Tensor]:
        """Returns the call of one rank, whose gathered messages are all its own."""
        from normlib.sync_batch_norm import sync_batch_norm

        group = SimpleNamespace(group_name=str(_ranks(case)))

        def forward(x: Tensor, **vectors: Tensor) -> Tensor:
            names = ("running_mean", "running_var", "weight", "bias")
            given: tuple[Any, ...] = (*(vectors[name] for name in names), MOMENTUM, case.eps, group)
            return sync_batch_norm(x, *given)

        return forward


def _ranks(case: Case) -> int:
    return int(dict(case.options).get("ranks", RANKS[0]))


def gather_copies(message: Tensor, group: str) -> Tensor:
    """Takes the place of normlib's collective."""
    return message.expand(int(group), *message.shape).contiguous()


OPERATOR = SyncBatchNormOperator()
