"""The accuracy gate that mutants are run through: a few small cells of bench/measure/cell.py."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.cases.case import Case
from bench.cases.operators import operators
from bench.measure import cell
from bench.measure.providers import providers
from bench.mutants import shares
from bench.mutants.planting import Mutant, planted
from bench.results.records import Record


def _case(
    op: str, sizes: tuple[int | str, ...], dtype: str, layout: str, mode: str = "fwd_bwd", offset: float = 0.0
) -> Case:
    """`sizes` are the axes', and behind batch norm's may be how many ranks share the batch."""
    operator = operators()[op]
    axes = tuple(zip((*operator.axes, "ranks"), sizes, strict=False))
    inputs = "offset" if offset else "normal"
    return Case(op, operator.shape(dict(axes)), axes, dtype, layout, mode, operator.eps, inputs, offset)


# Cheap ones first. A mean/std of 1e4 needs every digit of a float32 mean, and at 1e6 the square of what such a mean
# has lost shows in the variance.
#
# 40x99: several rows a program, a last program that is not full, three programs backward. 5x1601: three chunks a row,
# the last one ragged, and a program that takes two tiles of rows.
_ROWS = (
    ("layer_norm", (40, 99), "fp32"),
    ("layer_norm", (40, 99), "bf16"),
    ("layer_norm", (40, 99), "fp16"),
    ("rms_norm", (40, 99), "fp32"),
    ("rms_norm", (40, 99), "bf16"),
    ("layer_norm", (40, 99), "fp32", 1e4),
    ("layer_norm", (40, 99), "fp32", 1e6),
    ("layer_norm", (5, 1601), "fp32"),
    ("layer_norm", (5, 1601), "bf16"),
    ("layer_norm", (5, 1601), "fp32", 1e4),
)
# The loop over columns: three steps, the last one ragged; 9 rows are two tiles of dw.
_WIDE = (
    ("layer_norm", (9, 2100), "fp32"),
    ("rms_norm", (9, 2100), "fp32"),
    ("layer_norm", (9, 2100), "fp32", 1e4),
    ("layer_norm", (9, 2100), "bf16"),
)
# The same two kinds of rows with a residual.
_FUSED = (
    ("layer_norm_add", (40, 99), "fp32"),
    ("layer_norm_add", (40, 99), "bf16"),
    ("rms_norm_add", (40, 99), "bf16"),
)
_WIDE_FUSED = (("layer_norm_add", (9, 2100), "fp32"), ("rms_norm_add", (9, 2100), "bf16"))
# 4x3x16x16: few channels, whose sums the gate allows most; one tile (nhwc), or four splits of one. 7x37x7x7: tiles
# ragged in channels and positions, splits of one tile and of two. 6x70x7x7: several groups of channels. 1x5x20x30: an
# image in several tiles, the last one ragged.
_BATCH = (
    ((4, 3, "16x16"), "fp32", "nhwc"),
    ((4, 3, "16x16"), "fp32", "nhwc", "eval"),
    ((4, 3, "16x16"), "fp32", "nhwc", "fwd_bwd", 1e4),
    ((4, 3, "16x16"), "fp32", "nhwc", "fwd_bwd", 1e6),
    ((7, 37, "7x7"), "fp32", "nchw"),
    ((7, 37, "7x7"), "bf16", "nhwc"),
    ((7, 37, "7x7"), "fp32", "nchw", "fwd_bwd", 1e4),
    ((4, 3, "16x16"), "fp32", "nchw"),
    ((1, 5, "20x30"), "fp32", "nchw"),
    ((6, 70, "7x7"), "fp32", "nchw"),
    ((6, 70, "7x7"), "fp32", "nhwc"),
    ((7, 37, "7x7"), "fp16", "nchw"),
    ((7, 37, "7x7"), "bf16", "nchw", "eval"),
)
# With a ReLU, and a residual before it, whose signs are kept in bytes: one split and several, several groups of
# channels, tiles ragged in both ways.
_BATCH_FUSED = (
    ("batch_norm_relu", (7, 37, "7x7"), "fp32", "nchw"),
    ("batch_norm_add_relu", (7, 37, "7x7"), "fp32", "nhwc"),
    ("batch_norm_add_relu", (6, 70, "7x7"), "fp32", "nchw"),
    ("batch_norm_add_relu", (7, 37, "7x7"), "bf16", "nchw"),
)

_WEIGHTS = (
    ("weight_norm", (40, 99), "fp32"),
    ("weight_norm", (40, 99), "bf16"),
    ("weight_norm", (5, 1601), "fp32"),
)
_WIDE_WEIGHTS = (("weight_norm", (9, 2100), "fp32"),)

# The statistic of 7 columns of 99.
_PARTIAL = (("partial_rms_norm", (40, 99), "fp32"), ("partial_rms_norm", (40, 99), "bf16"))
# Several splits of several tiles, ragged; and values that few elements have, of which some tie for the maximum.
_NORMS = (
    ((7, 37, "7x7", "1"), "fp32", "nchw"),
    ((7, 37, "7x7", "2"), "fp32", "nhwc"),
    ((7, 37, "7x7", "inf"), "fp32", "nchw"),
    ((4, 3, "16x16", "inf"), "bf16", "nchw"),
)

# Of eight images the ranks have one, none, three and four (shares.py); three ranks leave a lane of four empty.
_SYNC = (
    ((8, 37, "5x5", 4), "fp32", "nchw"),
    ((8, 37, "5x5", 3), "fp32", "nhwc", "fwd_bwd", 1e4),
    ((5, 70, "3x3", 3), "bf16", "nchw"),
)
# One launch: groups of five channels in eight rows; several groups a tile. Streaming: one split; four, the last tile
# ragged; groups that begin and end inside a block of channels.
_GROUPS = (
    ((3, 10, "7x7", 2), "fp32", "nchw"),
    ((3, 10, "7x7", 2), "fp32", "nhwc"),
    ((2, 8, "7x7", 4), "fp32", "nhwc"),
    ((2, 10, "24x30", 2), "fp32", "nhwc"),
    ((1, 6, "20x30", 2), "fp32", "nchw"),
    ((1, 80, "9x9", 2), "fp32", "nhwc"),
    ((3, 10, "7x7", 2), "fp32", "nchw", "fwd_bwd", 1e4),
)
_INSTANCES = (((3, 37, "7x7"), "fp32", "nchw"), ((1, 3, "30x41"), "fp32", "nchw"))

_OF_ROWS = {
    "rows": _ROWS,
    "wide": _WIDE,
    "fused": _FUSED,
    "wide fused": _WIDE_FUSED,
    "partial": _PARTIAL,
    "weights": _WEIGHTS,
    "wide weights": _WIDE_WEIGHTS,
}
CELLS = {
    **{
        group: tuple(_case(op, sizes, dtype, "rows", "fwd_bwd", *offset) for op, sizes, dtype, *offset in cases)
        for group, cases in _OF_ROWS.items()
    },
    "batch": tuple(_case("batch_norm", *case) for case in _BATCH),
    "norms": tuple(_case("lp_norm", *case) for case in _NORMS),
    "renorm": (_case("batch_renorm", (7, 37, "7x7"), "fp32", "nchw"),),
    "noisy": (_case("noisy_batch_norm", (7, 37, "7x7"), "fp32", "nchw"),),
    "batch fused": tuple(_case(*case) for case in _BATCH_FUSED),
    "sync": tuple(_case("batch_norm", *case) for case in _SYNC),
    "groups": tuple(_case("group_norm", *case) for case in _GROUPS),
    "instances": tuple(_case("instance_norm", *case) for case in _INSTANCES),
}
# What all kernels share is seen in any of them.
_OF_FILE = {
    "row_norm.narrow": ("rows",),
    "row_norm.values": ("rows",),
    **dict.fromkeys(
        (
            "batch_norm.launch",
            "batch_norm.activation",
            "batch_norm.gradients",
            "batch_norm.output",
            "batch_norm.statistics",
            "batch_norm.streaming",
            "batch_norm.tiles",
        ),
        ("batch",),
    ),
    "batch_norm.lp": ("norms",),
}


@dataclass(frozen=True)
class Outcome:
    """How a mutant fared: the record of the cell that caught it, or None, and how many cells it was run through."""

    mutant: Mutant
    record: Record | None
    cells: int

    @property
    def figure(self) -> str:
        """The figure that caught it, with its bound; or why there is none."""
        if self.record is None:
            return ""
        worst = max(self.record.errors, key=lambda error: error.pressure, default=None)
        return self.record.reason if worst is None or all(e.ok for e in self.record.errors) else worst.words


class Gate:
    """The cells, with inputs, references and PyTorch's errors that all mutants share."""

    def __init__(self, device: torch.device) -> None:
        self._settings = cell.RunSettings(device, 0, "torch", providers()["torch"], operators())
        self._problems: dict[Case, cell.Problem] = {}

    def measure(self, case: Case) -> Record:
        """The record of one cell, of the kernels that are planted now."""
        if case.problem not in self._problems:
            self._problems[case.problem] = cell.Problem(case.problem, self._settings)
        provider = shares.PROVIDER if "ranks" in dict(case.axes) else providers()["normlib"]
        return self._problems[case.problem].judge(case, provider)

    def hunt(self, mutant: Mutant) -> Outcome:
        """Runs a mutant through its cells until one catches it."""
        cases = cases_of([mutant])
        with planted(mutant), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of numpy, about the NaNs that a bug makes
            for number, case in enumerate(cases, 1):
                record = self.measure(case)
                if record.status != "ok":
                    return Outcome(mutant, record, number)
        return Outcome(mutant, None, len(cases))


def cases_of(mutants: Sequence[Mutant]) -> tuple[Case, ...]:
    """Every cell that one of these mutants may be run through, each once."""
    groups = dict.fromkeys(g for m in mutants for g in m.cells or _OF_FILE.get(m.file, tuple(CELLS)))
    return tuple(case for group in groups for case in CELLS[group])
