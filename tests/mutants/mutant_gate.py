"""The accuracy gate that mutants are run through: a few small cells of bench/measure/cell.py."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import rank_shares
import torch
from interleaving import interleaved
from mutant_catalogue import Mutant
from mutant_planting import planted

from bench.cases.case import Case
from bench.cases.operators import operators
from bench.measure import cell
from bench.measure.providers import providers
from bench.results.records import Record


def _case(
    op: str, *sizes: int | str, dtype: str = "fp32", layout: str = "rows", mode: str = "fwd_bwd", offset: float = 0.0
) -> Case:
    """`sizes` are the axes'; batch norm's may be followed by how many ranks share the batch. `offset` is mean / std."""
    operator = operators()[op]
    axes = tuple(zip((*operator.axes, "ranks"), sizes, strict=False))
    inputs = "offset" if offset else "normal"
    return Case(op, operator.shape(dict(axes)), axes, dtype, layout, mode, operator.eps, inputs, offset)


# By group; cheap cells first. An offset of 1e4 needs every digit of a float32 mean, and at 1e6 the square of the digits
# that such a mean has lost shows in the variance.
CELLS = {
    # 70x95: several rows a program, a last program that is not full, three programs backward. 5x1601: several chunks a
    # row, the last one ragged, and a program that takes two tiles of rows.
    "rows": (
        _case("layer_norm", 70, 95),
        _case("layer_norm", 70, 95, dtype="bf16"),
        _case("layer_norm", 70, 95, dtype="fp16"),
        _case("rms_norm", 70, 95),
        _case("rms_norm", 70, 95, dtype="bf16"),
        _case("layer_norm", 70, 95, offset=1e4),
        _case("layer_norm", 70, 95, offset=1e6),
        _case("layer_norm", 5, 1601),
        _case("layer_norm", 5, 1601, dtype="bf16"),
        _case("layer_norm", 5, 1601, offset=1e4),
    ),
    # The loop over columns: three steps, the last one ragged; 9 rows are two tiles of dw.
    "wide": (
        _case("layer_norm", 9, 2100),
        _case("rms_norm", 9, 2100),
        _case("layer_norm", 9, 2100, offset=1e4),
        _case("layer_norm", 9, 2100, dtype="bf16"),
    ),
    # Three slices forward, the last one ragged, and two groups of rows that take two each; backward five slices.
    "slices": (
        _case("layer_norm", 4, 16400),
        _case("rms_norm", 4, 16400, dtype="bf16"),
        _case("layer_norm", 4, 16400, offset=1e4),
    ),
    # The same two kinds of rows with a residual.
    "fused": (
        _case("layer_norm_add", 40, 99),
        _case("layer_norm_add", 40, 99, dtype="bf16"),
        _case("rms_norm_add", 40, 99, dtype="bf16"),
    ),
    "wide fused": (_case("layer_norm_add", 9, 2100), _case("rms_norm_add", 9, 2100, dtype="bf16")),
    # The statistic of 7 columns of 99.
    "partial": (_case("partial_rms_norm", 40, 99), _case("partial_rms_norm", 40, 99, dtype="bf16")),
    "weights": (
        _case("weight_norm", 40, 99),
        _case("weight_norm", 40, 99, dtype="bf16"),
        _case("weight_norm", 5, 1601),
    ),
    "wide weights": (_case("weight_norm", 9, 2100),),
    # 4x3x16x16: few channels, whose sums the gate allows most, and one tile. 7x37x7x7: tiles ragged in channels and
    # positions, splits of one tile and of two. 4x3x15x17: four splits of one tile, each ragged. 1x5x23x41: an image in
    # splits of several tiles, the last one ragged. 6x70x7x7: several groups of channels.
    "batch": (
        _case("batch_norm", 4, 3, "16x16", layout="nhwc"),
        _case("batch_norm", 4, 3, "16x16", layout="nhwc", mode="eval"),
        _case("batch_norm", 4, 3, "16x16", layout="nhwc", offset=1e4),
        _case("batch_norm", 4, 3, "16x16", layout="nhwc", offset=1e6),
        _case("batch_norm", 7, 37, "7x7", layout="nchw"),
        _case("batch_norm", 7, 37, "7x7", layout="nhwc", dtype="bf16"),
        _case("batch_norm", 7, 37, "7x7", layout="nchw", offset=1e4),
        _case("batch_norm", 4, 3, "15x17", layout="nchw"),
        _case("batch_norm", 1, 5, "23x41", layout="nchw"),
        _case("batch_norm", 6, 70, "7x7", layout="nchw"),
        _case("batch_norm", 6, 70, "7x7", layout="nhwc"),
        _case("batch_norm", 7, 37, "7x7", layout="nchw", dtype="fp16"),
        _case("batch_norm", 7, 37, "7x7", layout="nchw", dtype="bf16", mode="eval"),
    ),
    # A program holds a channel, and has lanes past its runs and past its last image.
    "resident": (
        _case("batch_norm", 3, 37, "7x7", layout="nchw"),
        _case("batch_norm", 3, 37, "7x7", layout="nchw", dtype="bf16"),
        _case("batch_norm", 3, 37, "7x7", layout="nchw", offset=1e6),
    ),
    # Several splits of several tiles, ragged; and values that few elements have, of which some tie for the maximum.
    "norms": (
        _case("lp_norm", 7, 37, "7x7", "1", layout="nchw"),
        _case("lp_norm", 7, 37, "7x7", "2", layout="nhwc"),
        _case("lp_norm", 7, 37, "7x7", "inf", layout="nchw"),
        _case("lp_norm", 4, 3, "16x16", "inf", layout="nchw", dtype="bf16"),
    ),
    "renorm": (_case("batch_renorm", 7, 37, "7x7", layout="nchw"),),
    "noisy": (_case("noisy_batch_norm", 7, 37, "7x7", layout="nchw"),),
    # With a ReLU, and a residual before it, whose signs are kept in bytes: one split and several, several groups of
    # channels, tiles ragged in both ways.
    "batch fused": (
        _case("batch_norm_relu", 7, 37, "7x7", layout="nchw"),
        _case("batch_norm_add_relu", 7, 37, "7x7", layout="nhwc"),
        _case("batch_norm_add_relu", 6, 70, "7x7", layout="nchw"),
        _case("batch_norm_add_relu", 7, 37, "7x7", layout="nchw", dtype="bf16"),
    ),
    # Of eight images the ranks have one, none, three and four (rank_shares.py); three ranks leave a lane of four empty.
    "sync": (
        _case("batch_norm", 8, 37, "5x5", 4, layout="nchw"),
        _case("batch_norm", 8, 37, "5x5", 3, layout="nhwc", offset=1e4),
        _case("batch_norm", 5, 70, "3x3", 3, layout="nchw", dtype="bf16"),
    ),
    # One launch: groups of five channels in eight rows; several groups a tile. Streaming: one split; four, the last
    # tile ragged; groups that begin and end inside a block of channels.
    "groups": (
        _case("group_norm", 3, 10, "7x7", 2, layout="nchw"),
        _case("group_norm", 3, 10, "7x7", 2, layout="nhwc"),
        _case("group_norm", 2, 8, "7x7", 4, layout="nhwc"),
        _case("group_norm", 2, 10, "24x30", 2, layout="nhwc"),
        _case("group_norm", 1, 6, "20x31", 2, layout="nchw"),
        _case("group_norm", 1, 80, "9x9", 2, layout="nhwc"),
        _case("group_norm", 3, 10, "7x7", 2, layout="nchw", offset=1e4),
    ),
    "instances": (
        _case("instance_norm", 3, 37, "7x7", layout="nchw"),
        _case("instance_norm", 1, 3, "30x41", layout="nchw"),
    ),
}


def cases_of(mutant: Mutant) -> tuple[Case, ...]:
    """Returns the cells that a mutant is run through: those of its groups, or all."""
    return tuple(case for group in mutant.cells or CELLS for case in CELLS[group])


@contextmanager
def _waiting() -> Iterator[None]:
    """Within, programs may wait for each other, as those of a GPU do."""
    plan = importlib.import_module("normlib.kernels.plan")
    interpreter, plan.INTERPRETER = plan.INTERPRETER, replace(plan.INTERPRETER, multiprocessors=3, cooperative=True)
    try:
        with interleaved(0):
            yield
    finally:
        plan.INTERPRETER = interpreter


class AccuracyGate:
    """The cells, with inputs, references and PyTorch's errors that all mutants share."""

    def __init__(self, device: torch.device) -> None:
        self._settings = cell.RunSettings(device, 0, "torch", providers()["torch"], operators())
        self._problems: dict[Case, cell.Problem] = {}

    def measure(self, case: Case) -> Record:
        """Returns the record of one cell, of the kernels that are planted now."""
        if case.problem not in self._problems:
            self._problems[case.problem] = cell.Problem(case.problem, self._settings)
        provider = rank_shares.PROVIDER if "ranks" in dict(case.axes) else providers()["normlib"]
        with _waiting() if case in CELLS["slices"] else nullcontext():
            return self._problems[case.problem].judge(case, provider)

    def hunt(self, mutant: Mutant) -> list[Record]:
        """Runs a mutant through its cells until one is not "ok"; returns their records, of which that is the last."""
        records: list[Record] = []
        with planted(mutant), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of numpy, about the NaNs that a bug makes
            for case in cases_of(mutant):
                records.append(self.measure(case))
                if records[-1].status != "ok":
                    break
        return records
