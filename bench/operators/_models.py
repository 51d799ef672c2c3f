"""Presets of real models' normalization shapes, from model_shapes.csv.

The file has one line a distinct shape. Batch sizes are ours: 32 images, utterances or sequences of the smaller
models, and about 8192 tokens of the language models.
"""

from __future__ import annotations

import csv
from pathlib import Path

from bench.operators import Grid, Preset

_SHAPES = Path(__file__).with_name("model_shapes.csv")


def model_presets(op: str, axes: tuple[str, ...], layouts: tuple[str, ...]) -> dict[str, Preset]:
    """Model name -> its shapes of this operator, in every layout; models without the operator are left out."""
    with _SHAPES.open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["op"] == op]
    grids: dict[str, list[Grid]] = {}
    for line in lines:
        shape = {axis: (line[axis] if axis == "spatial" else int(line[axis]),) for axis in axes}
        grid: Grid = {**shape, "dtype": (line["dtype"],), "layout": layouts, "eps": (float(line["eps"]),)}
        grids.setdefault(line["model"], []).append(grid)
    return {model: Preset(f"the {len(found)} {op} shapes of {model}", tuple(found)) for model, found in grids.items()}
