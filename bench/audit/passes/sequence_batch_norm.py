"""Batch norm of sequences."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from bench.audit.passes import Pass, Passes, Tensors
from bench.audit.passes.batch_norm import PASSES as BATCH_NORM


def _of_steps(norm: Passes) -> Passes:
    """A norm of (steps, features) on (time, batch, features)."""

    def flat(t: Tensors) -> Tensors:
        return {name: each.flatten(0, -2) if name in norm.activations else each for name, each in t.items()}

    def flattened(each: Pass) -> Pass:
        return replace(
            each,
            run=lambda t, device: each.run(flat(t), device),
            declare=lambda t, device: each.declare(flat(t), device),
        )

    return replace(
        norm,
        vectors=lambda shape, dtype: norm.vectors((prod(shape[:-1]), shape[-1]), dtype),
        modes={mode: flattened(each) for mode, each in norm.modes.items()},
    )


PASSES = {"sequence_batch_norm": _of_steps(BATCH_NORM["batch_norm"])}
