"""Synchronized batch norm as it is audited: the launches of one rank, on its share of the batch.

What is measured of it, bench/together measures on all ranks at once. What is declared, counted and compiled wants this
one alone: the others' messages are tensors like any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bench.cases.case import Case
from bench.cases.operators.batch_norm import BATCH_NORM, BatchNorm

# The GPUs of one machine; and as `extra` also more, so that the merge has tiles of 1, 2 and 8 warps.
RANKS = (8, 64, 1024)


class SyncBatchNorm(BatchNorm):
    """Batch norm's training with so many `ranks`; a shape is that of one rank's share."""

    name = "sync_batch_norm"
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
        """Batch norm's, and every rank's message: forward this one's own is written too, backward it is dw and db."""
        ranks, channels = int(dict(case.options).get("ranks", RANKS[0])), case.shape[1]
        messages = {"fwd": (ranks + 1) * (3 * channels + 2), "bwd": ranks * 2 * channels}
        return super().bytes_moved(case) + 4 * messages[case.mode]


OPERATOR = SyncBatchNorm()
