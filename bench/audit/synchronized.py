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
        ranks, channels = int(dict(case.options).get("ranks", RANKS[0])), case.shape[1]
        messages = {"fwd": (ranks + 1) * (3 * channels + 2), "bwd": ranks * 2 * channels}
        return super().bytes_moved(case) + 4 * messages[case.mode]

    def forward(self, case: Case) -> Callable[..., Tensor]:
        """Returns the call of one rank, whose gathered messages are all its own."""
        from normlib.sync_batch_norm import sync_batch_norm

        ranks = int(dict(case.options).get("ranks", RANKS[0]))
        group = SimpleNamespace(group_name=str(ranks))

        def forward(x: Tensor, **vectors: Tensor) -> Tensor:
            names = ("running_mean", "running_var", "weight", "bias")
            given: tuple[Any, ...] = (*(vectors[name] for name in names), MOMENTUM, case.eps, group)
            return sync_batch_norm(x, *given)

        return forward


def gather_copies(message: Tensor, group: str) -> Tensor:
    """Takes the place of normlib's collective."""
    return message.expand(int(group), *message.shape).contiguous()


OPERATOR = SyncBatchNormOperator()
