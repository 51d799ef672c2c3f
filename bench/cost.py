"""How long a case is going to take: a rule of thumb for --list and time budgets, and no measurement.

On a GPU a cell takes its building and its samples, and moves its bytes as often as it is called and judged. On a CPU
Triton's interpreter runs the kernels, and what it costs follows elements and, where programs merge what they found,
columns; the other providers are quick beside it.
"""

from __future__ import annotations

from collections.abc import Collection
from math import prod
from typing import TYPE_CHECKING

from bench.case import Case
from bench.operators import operators

if TYPE_CHECKING:
    import torch

# What the interpreter runs.
_INTERPRETED = "normlib"

# On a GPU, chosen, not measured: half a second of cold samples, which is what they may take, and as much again for all
# other times and for building. A bandwidth between a laptop's and a data centre's. Calls, and passes in float64.
_CELL_S = 1.0
_NOMINAL_BYTES_S = 1e12
_PASSES = 200

# Processor time of one call in the interpreter, fitted by eye within a factor of two to some thirty shapes, batch norm
# of 64 to 2048 channels and rows of 128 to 131072. It supports no claim of speed.
_CALL_S, _ELEMENT_S, _COLUMN_S = 0.02, 3e-6, 3e-4
# From the first call to the judgement after timing, and what comes along: float64, copies, another provider.
_CALLS, _CPU_CELL_S = 6, 0.1


def expected_seconds(case: Case, providers: Collection[str], device: torch.device) -> float:
    """About how long these providers, by name, take for a case on a device of this kind, all of them together."""
    if device.type == "cuda":
        moved = operators()[case.op].bytes_moved(case) * _PASSES / _NOMINAL_BYTES_S
        return len(providers) * (_CELL_S + moved)
    interpreted = _CALLS * interpreter_seconds(case) if _INTERPRETED in providers else 0.0
    return len(providers) * _CPU_CELL_S + interpreted


def interpreter_seconds(case: Case) -> float:
    """About one call of the kernels in the interpreter: its passes over the elements, and its merges over columns."""
    passes = 2 if case.mode == "fwd_bwd" else 1
    # Batch norm merges statistics forward and gradients backward, a norm of rows only the latter; evaluation nothing.
    merging = {"fwd": ("fwd",), "bwd": ("bwd",), "fwd_bwd": ("fwd", "bwd")}.get(case.mode, ())
    merges = len(merging) if operators()[case.op].statistics_dim else merging.count("bwd")
    return passes * (_CALL_S + _ELEMENT_S * prod(case.shape)) + merges * _COLUMN_S * case.shape[1]
