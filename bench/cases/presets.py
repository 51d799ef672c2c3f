"""Named sets of cases: sweeps, which are declared beside operators, and models, which come from model_shapes.csv."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.cases import models
from bench.cases.case import DTYPES
from bench.cases.models import INFERENCE, TRAINING

# Every axis of the operator, "dtype" and "layout" -> values; "eps" too where it is not the operator's default.
Grid = Mapping[str, tuple[int | str | float, ...]]

# An image norm has a mode of its own for inference. A row norm computes the same in both, and is measured forward.
_TRAINING_MODES = ("fwd", "bwd", "fwd_bwd")
_MODES = {
    (TRAINING, "batch"): _TRAINING_MODES,
    (TRAINING, "tokens"): _TRAINING_MODES,
    (INFERENCE, "batch"): ("eval",),
    (INFERENCE, "tokens"): ("fwd",),
}


@dataclass(frozen=True)
class Preset:
    """A named set of cases: its grids one after another, each the cross product of its values.

    A sweep has a few grids; a model, whose shapes are a list and not a product, has one grid for each layer shape.
    """

    about: str  # one line for --list
    grids: tuple[Grid, ...]
    modes: tuple[str, ...] | None = None  # of the operator's, unless --mode says otherwise; None for all of them


def preset(about: str, *grids: Grid, modes: tuple[str, ...] | None = None) -> Preset:
    """Returns a preset of these grids."""
    return Preset(about, grids, modes)


def grid(
    layouts: tuple[str, ...], dtypes: tuple[str, ...] = DTYPES, **axes: int | str | tuple[int, ...] | tuple[str, ...]
) -> Grid:
    """Returns a grid; an axis is given as one value or as several."""
    values: dict[str, tuple[int | str, ...]] = {n: v if isinstance(v, tuple) else (v,) for n, v in axes.items()}
    return {**values, "dtype": dtypes, "layout": layouts}


def model_presets(op: str, layouts: tuple[str, ...]) -> dict[str, Preset]:
    """Returns two presets, training and inference, for every model with norms that this operator serves."""
    found: dict[str, Preset] = {}
    for model in models.names():
        norms = models.norms(model, op)
        for use in (TRAINING, INFERENCE) if norms else ():
            one = min(norms, key=lambda norm: norm.each)  # a norm with one row for each token
            batches = ", ".join(map(str, one.batches[use]))
            at = f"batch {batches}" if one.axis == "batch" else f"{batches} tokens"
            grids = tuple(
                {
                    norm.axis: tuple(norm.each * batch for batch in norm.batches[use]),
                    **{axis: (value,) for axis, value in norm.size.items()},
                    "dtype": (norm.dtype,),
                    "layout": layouts,
                    "eps": (norm.eps,),
                }
                for norm in norms
            )
            about = f"the norms of {model} in {use}, at {at}"
            found[models.preset(model, use)] = Preset(about, grids, _MODES[use, one.axis])
    return found
