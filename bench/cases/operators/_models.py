"""Two presets a model: its training, and its inference."""

from __future__ import annotations

from bench.cases import models
from bench.cases.models import INFERENCE, TRAINING, Norm
from bench.cases.operators import Grid, Preset

# By what the batch counts: batch norm has a mode of its own for inference, a norm of rows computes there what it always
# does, and its forward pass stands for both.
_TRAINED = ("fwd", "bwd", "fwd_bwd")
_MODES: dict[str, dict[str, tuple[str, ...]]] = {
    TRAINING: {"batch": _TRAINED, "tokens": _TRAINED},
    INFERENCE: {"batch": ("eval",), "tokens": ("fwd",)},
}


def model_presets(op: str, layouts: tuple[str, ...]) -> dict[str, Preset]:
    """By name, for every model with norms that this operator serves, in every layout."""
    found: dict[str, Preset] = {}
    for model in models.names():
        norms = models.norms(model, op)
        for use in (TRAINING, INFERENCE) if norms else ():
            once = min(norms, key=lambda norm: norm.each)
            batches = ", ".join(map(str, once.batches[use]))
            at = f"batch {batches}" if once.axis == "batch" else f"{batches} tokens"
            grids = tuple(_grid(norm, use, layouts) for norm in norms)
            preset = Preset(f"the norms of {model} in {use}, at {at}", grids, _MODES[use][once.axis])
            found[models.preset(model, use)] = preset
    return found


def _grid(norm: Norm, use: str, layouts: tuple[str, ...]) -> Grid:
    rows = tuple(norm.each * batch for batch in norm.batches[use])
    size = {axis: (value,) for axis, value in norm.size.items()}
    return {norm.axis: rows, **size, "dtype": (norm.dtype,), "layout": layouts, "eps": (norm.eps,)}
