"""A run's files -> frames: one row a cell, one row a tensor, one row a case of the subject beside its best peer."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.cases.case import DTYPES, MODES
from bench.page.formatting import figure, present, short
from bench.results.records import CUDA_EVENT, RECORDS, Record, TensorError, of_run
from bench.results.thresholds import SUBJECT

ITEMSIZE = {"fp32": 4, "fp16": 2, "bf16": 2}
SPEED = ("gbps", "roofline_fraction", "speedup", "speedup_low", "speedup_high")
# A record's fields that are one value each.
SCALARS = tuple(f.name for f in fields(Record) if f.name not in ("shape", "axes", "errors"))
INTERVAL = ("latency_us_low", "latency_us_high")
TIMES = ("latency_us", "latency_us_p10", "latency_us_p90", *INTERVAL)
# What the report reads of the environment; an old or cut-short run may lack some.
KEYS = (
    *("started", "finished", "command", "interpreted", "device", "device_name", "gpu", "torch", "triton", "cuda"),
    *("cudnn", "git_commit", "git_dirty", "baseline", "providers", "copy_gbps", "complete", "stopped_by"),
    *("cells_planned", "notes", "conditions", "run", "arguments"),
)


class UnreadableRun(ValueError):
    """The folder holds no run that can be read; the text says what is wrong, in one line."""


@dataclass(frozen=True)
class Run:
    """Everything the report is made from.

    `cells` has one row a record: the record's fields, `label`, `case` (the cell without its provider), `size` (bytes
    of x), `timed` and `spread`; gbps, roofline_fraction and speedup are empty wherever no claim of speed is supported.
    `errors` has one row a tensor of a cell; `duels` one row a timed case of the subject with its fastest peer, and
    `against` the same with the baseline. Both have `ratio`, the other's median over the subject's, and `log_variance`,
    that of the ratio's logarithm.
    """

    folder: Path
    environment: dict[str, Any]
    records: list[Record]
    cells: pd.DataFrame
    errors: pd.DataFrame
    duels: pd.DataFrame
    against: pd.DataFrame

    @property
    def interpreted(self) -> bool:
        """Whether the kernels ran in Triton's interpreter."""
        return bool(self.environment["interpreted"])

    @property
    def has_speed(self) -> bool:
        """Whether any cell supports a claim of speed."""
        return bool(self.cells["timed"].any())

    @property
    def baseline(self) -> str:
        """The provider that speedups are taken against."""
        return str(self.environment["baseline"] or "the baseline")

    @property
    def providers(self) -> list[str]:
        """Providers that have a record: the subject, the baseline, then the others by name."""
        first = [SUBJECT, self.baseline]
        found = set(self.cells["provider"])
        return [name for name in first if name in found] + sorted(found.difference(first))


def load(run_dir: Path) -> Run:
    """Reads records.jsonl and environment.json; raises UnreadableRun where one is missing or broken."""
    if not run_dir.is_dir():
        raise UnreadableRun(f"{run_dir}: no such folder; give the folder of a run, which holds records.jsonl")
    environment = read_environment(run_dir)
    records = _records(run_dir)
    cells = _cells(records, bool(environment["interpreted"]))
    timed = cells[cells["timed"]]
    peers = timed[timed["provider"] != SUBJECT].sort_values(["latency_us", "provider"])
    baseline = cells[(cells["provider"] == environment["baseline"]) & (cells["provider"] != SUBJECT)]
    return Run(
        folder=run_dir,
        environment=environment,
        records=records,
        cells=cells,
        errors=_errors(records, cells),
        duels=_beside(timed, peers.drop_duplicates("case")),
        against=_beside(timed[timed["speedup"].notna()], baseline),
    )


def read_environment(run_dir: Path) -> dict[str, Any]:
    """What stands in environment.json, None for what is not there; raises UnreadableRun where it cannot be read."""
    path = run_dir / "environment.json"
    try:
        environment = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnreadableRun(f"{path}: no such file; a run writes it beside its records") from None
    except (OSError, ValueError) as error:
        raise UnreadableRun(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(environment, dict):
        raise UnreadableRun(f"{path}: must hold one JSON object")
    return dict.fromkeys(KEYS) | environment


def _records(run_dir: Path) -> list[Record]:
    """The records in order, the last one of a cell that was run again."""
    path = run_dir / RECORDS
    try:
        kept = {record.key: record for record in of_run(run_dir)}
    except FileNotFoundError:
        raise UnreadableRun(f"{path}: no such file; a run writes one line a cell there") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UnreadableRun(f"{path}: a line is not a record ({error})") from None
    return list(kept.values())


def _cells(records: list[Record], interpreted: bool) -> pd.DataFrame:
    # Column by column: a hundred thousand rows as dicts, with a key a tensor and figure, would fill the memory.
    frame = pd.DataFrame({name: [getattr(record, name) for record in records] for name in SCALARS})
    frame["shape"] = ["x".join(map(str, record.shape)) for record in records]
    for axis in dict.fromkeys(axis for record in records for axis in record.axes):
        frame[axis] = [record.axes.get(axis) for record in records]
    frame["cell"] = cells = [record.cell for record in records]
    by_cell = Counter(cells)
    frame["label"] = [_label(record, by_cell[cell] > 1) for record, cell in zip(records, cells, strict=True)]
    frame["case"] = [f"{cell.rpartition('/')[0]}/{record.eps:g}" for record, cell in zip(records, cells, strict=True)]
    frame["size"] = [math.prod(record.shape) * ITEMSIZE.get(record.dtype, 4) for record in records]
    for column in (*TIMES, *SPEED):
        frame[column] = pd.to_numeric(frame[column]).astype(float).replace([np.inf, -np.inf], np.nan)
    frame["timed"] = (
        (frame["clock"] == CUDA_EVENT) & (frame["status"] == "ok") & (frame["latency_us"] > 0) & (not interpreted)
    ).astype(bool)
    for column in SPEED:
        frame[column] = frame[column].where(frame["timed"])
    frame["spread"] = (frame["latency_us_p90"] - frame["latency_us_p10"]) / frame["latency_us"].where(frame["timed"])
    return frame


def _label(record: Record, several_eps: bool) -> str:
    eps = f" eps {short(record.eps)}" if several_eps else ""
    return f"{record.case.label}{eps}"


def pressure(error: TensorError) -> float:
    """How near a tensor is to its bound: 1 is at the bound, infinite where NaN or Inf stand in the wrong places."""
    value = getattr(error, error.decided_by, None)
    if not error.masks_match:
        return math.inf
    if present(value) and present(error.bound) and error.bound > 0:
        return value / error.bound
    return 0.0 if error.ok else math.inf


def describe(error: TensorError) -> str:
    """A tensor's deciding figure in words: `dw floor_ratio 1.003 (bound 1.05)`."""
    if error.decided_by == "masks_match":
        return f"{error.tensor}: NaN or Inf in other places than the reference"
    if error.bound is None:
        return f"{error.tensor}: {error.decided_by}"
    value = getattr(error, error.decided_by, None)
    text = f"{error.tensor} {error.decided_by}"
    if isinstance(value, int | float):
        text += f" {figure(error.decided_by, value)}"
    return f"{text} (bound {short(error.bound)})"


def _errors(records: list[Record], cells: pd.DataFrame) -> pd.DataFrame:
    kept = ["op", "provider", "status", "mode", "inputs", "offset", "size", "cell", "case", "label"]
    errors = [error for record in records for error in record.errors]
    frame = pd.DataFrame({f.name: [getattr(error, f.name) for error in errors] for f in fields(TensorError)})
    of_cell = np.repeat(np.arange(len(records)), [len(record.errors) for record in records])
    for name in kept:
        frame[name] = cells[name].to_numpy()[of_cell]
    frame["pressure"] = [pressure(error) for error in errors]
    frame["text"] = [describe(error) for error in errors]
    numeric = ["rel_l2_error", "floor_ratio", "error_vs_torch", "scale_error", "pressure", "bound"]
    frame[numeric] = frame[numeric].astype(float)
    return frame


def _beside(timed: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """The subject's timed rows, each with the other's row of its case, whose columns end in `_peer`."""
    pairs = timed[timed["provider"] == SUBJECT].merge(
        others[["case", "provider", *TIMES]], on="case", suffixes=("", "_peer")
    )
    pairs["ratio"] = pairs["latency_us_peer"] / pairs["latency_us"]
    pairs["clear"] = pairs["latency_us_p90_peer"] < pairs["latency_us_p10"]
    pairs["log_variance"] = _log_variance(pairs, "") + _log_variance(pairs, "_peer")
    return pairs


def _log_variance(pairs: pd.DataFrame, suffix: str) -> pd.Series:
    """The variance of a median's logarithm, from its 95% interval, which is 3.92 standard errors wide."""
    low, high = (pairs[name + suffix] for name in INTERVAL)
    return (np.log(high / low) / 3.92) ** 2


def ordered(values: Any, known: tuple[str, ...] = (*MODES, *DTYPES)) -> list[str]:
    """Distinct names in the project's order: modes and dtypes as declared, others by name."""
    rank = {name: place for place, name in enumerate(known)}
    return sorted(set(values), key=lambda name: (rank.get(name, len(rank)), name))
