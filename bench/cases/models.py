"""The norms of real models: their shapes, how many of each there are, and the batch sizes that they are measured at.

model_shapes.csv has a line for every distinct shape. `count` is how many norms of the model have it; `relu` how many of
those have only a ReLU after them, `residual` how many are next to an addition to the residual stream (before the ReLU
that follows a batch norm; before a layer or RMS norm). Empty is unknown: what is published on Deep Speech 2 gives the
widths and the time steps, and not how many layers of each there are, so no sum over that model is ever formed.

Training takes the `batch` of the file: 32 images, utterances or sentences, and of language models as many sequences as
make some 8192 tokens, or one where that is longer. Inference takes a single request and 32 of them together: of images,
of sentences, or, where a model writes a token at a time, of tokens, besides one whole sequence, which is the prompt.
Weighed by the counts, the times at one batch size add up to the model's (bench/results/headline.py).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TRAINING, INFERENCE = "training", "inference"
_SUFFIX = f"-{INFERENCE}"
_SHAPES = Path(__file__).with_name("model_shapes.csv")
# One request, and as many as one GPU serves at once without a latency that people notice.
_REQUESTS = (1, 32)
# Of the models of rows, those that take in a whole sample at a time; the others write a token at a time.
_ENCODERS = ("vit_b_16", "vit_l_16", "bert-base")
# A fused operator has a share of its norm's layers: the norm, and the column that counts them.
FUSED = {
    "batch_norm_relu": ("batch_norm", "relu"),
    "batch_norm_add_relu": ("batch_norm", "residual"),
    "layer_norm_add": ("layer_norm", "residual"),
    "rms_norm_add": ("rms_norm", "residual"),
}


@dataclass(frozen=True)
class Norm:
    """The norms of one shape in a model.

    `size` has the axes that stay whatever the batch is; `axis` is the one that follows it, `each` times the batch:
    "batch" counts samples; "tokens" counts rows: one per token, or one per token and head.
    """

    op: str
    dtype: str
    eps: float
    count: int | None  # None where it is unknown
    size: Mapping[str, int | str]
    axis: str
    each: int
    batches: Mapping[str, tuple[int, ...]]  # in training and in inference: samples, or tokens


@cache
def norms(model: str, op: str) -> tuple[Norm, ...]:
    """The norms of a model that this operator serves, in the file's order; none where there are none."""
    norm, column = FUSED.get(op, (op, "count"))
    found = []
    for line in _lines():
        count = int(line[column]) if line[column] else None
        if (line["model"], line["op"]) != (model, norm) or (op != norm and not count):
            continue
        if line["channels"]:
            axis, each, tokens = "batch", 1, 1
            size: dict[str, int | str] = {"channels": int(line["channels"]), "spatial": line["spatial"]}
        else:
            axis, each, tokens = "tokens", int(line["heads"]), int(line["tokens"])
            size = {"hidden": int(line["hidden"])}
        whole = axis == "batch" or model in _ENCODERS
        requests = tuple(tokens * n for n in _REQUESTS) if whole else (*_REQUESTS, tokens)
        batches = {TRAINING: (int(line["batch"]) * tokens,), INFERENCE: requests}
        found.append(Norm(op, line["dtype"], float(line["eps"]), count, size, axis, each, batches))
    return tuple(found)


def names() -> tuple[str, ...]:
    """Every model, in the file's order."""
    return tuple(dict.fromkeys(line["model"] for line in _lines()))


def preset(model: str, use: str) -> str:
    """The preset of a model in training or inference: `resnet50`, `resnet50-inference`."""
    return model + (_SUFFIX if use == INFERENCE else "")


def of_preset(name: str) -> tuple[str, str] | None:
    """(model, training or inference) of a preset; None for one that is no model's."""
    model = name.removesuffix(_SUFFIX)
    return (model, TRAINING if model == name else INFERENCE) if model in names() else None


def widths_of_tokens() -> tuple[int, ...]:
    """The widths that language models normalize once for each token, in ascending order."""
    writing = (line for line in _lines() if line["heads"] == "1" and line["model"] not in _ENCODERS)
    return tuple(sorted({int(line["hidden"]) for line in writing}))


@cache
def _lines() -> tuple[dict[str, str], ...]:
    with _SHAPES.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))
