"""A run's folder -> its records, and frames of them: one row a cell, a tensor, or a timed case of the subject."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from bench.cases.case import DTYPES, MODES, exactly
from bench.results import samples
from bench.results.intervals import LEAST, Array
from bench.results.records import CUDA_EVENT, RECORDS, Record, TensorError, of_ranks, of_run
from bench.results.thresholds import SUBJECT

INTERVAL = ("latency_us_low", "latency_us_high")
TIMES = ("latency_us", "latency_us_p10", "latency_us_p90", *INTERVAL)
# Figures that only a time by a GPU's clock supports.
SPEED = ("gbps", "roofline_fraction", "speedup", "speedup_low", "speedup_high", "gap_closed")
# What pages read of the environment; an old or cut-short run may lack some.
KEYS = (
    *("started", "finished", "command", "interpreted", "device", "device_name", "gpu", "torch", "triton", "cuda"),
    *("cudnn", "git_commit", "git_dirty", "baseline", "providers", "copy_gbps", "complete", "stopped_by"),
    *("cells_planned", "notes", "conditions", "run", "arguments", "subject"),
)


class UnreadableRun(ValueError):
    """The folder holds no run that can be read; the text says what is wrong, in one line."""


@dataclass(frozen=True)
class LoadedRun:
    """A run that has been read; `records` has the last record of a cell that was measured again."""

    folder: Path
    environment: dict[str, Any]
    records: list[Record]
    subject: str = SUBJECT  # the provider that the verdicts are about

    @property
    def interpreted(self) -> bool:
        """True if the kernels ran in Triton's interpreter."""
        return bool(self.environment.get("interpreted"))

    @cached_property
    def has_gpu_clock(self) -> bool:
        """True if a GPU's clock timed any cell, even one that is not ok."""
        return not self.interpreted and any(record.clock == CUDA_EVENT for record in self.records)

    def is_timed(self, record: Record) -> bool:
        """Returns whether the time of a record supports a claim of speed."""
        ok = record.status == "ok" and record.clock == CUDA_EVENT and not self.interpreted
        return ok and record.latency_us is not None and 0 < record.latency_us < math.inf

    @cached_property
    def has_speed(self) -> bool:
        """True if any cell supports a claim of speed."""
        return any(map(self.is_timed, self.records))

    @property
    def baseline(self) -> str:
        """The provider that speedups are taken against."""
        return str(self.environment.get("baseline") or "the baseline")

    @cached_property
    def providers(self) -> list[str]:
        """Providers that have a record: the subject, the baseline, then the others by name."""
        found, first = {record.provider for record in self.records}, [self.subject, self.baseline]
        return [name for name in dict.fromkeys(first) if name in found] + sorted(found.difference(first))

    @cached_property
    def by_key(self) -> dict[str, Record]:
        """The records by `Record.key`, which takes a while to put together."""
        return {record.key: record for record in self.records}

    @cached_property
    def samples(self) -> dict[str, Array]:
        """Cold samples by `Record.key`, those that are times; raises UnreadableRun where they cannot be read."""
        found = {}
        for path in (self.folder / samples.FILE, *of_ranks(self.folder, samples.FILE)):
            try:
                for taken in samples.read(path) if path.exists() else ():
                    if taken.key in self.by_key:
                        cold = np.asarray(taken.series.get("cold_us", ()), dtype=float)
                        found[taken.key] = cold[np.isfinite(cold) & (cold > 0)]
            except (OSError, ValueError) as error:
                raise UnreadableRun(str(error)) from None
        return found

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row a record: its fields, its axes, and what follows from them.

        `label` and `case` name the cell and its case, `size` is the bytes of x, `spread` is p90 less p10 over the
        median. Figures of speed are empty where a row is not `timed`.
        """
        # Column by column: a hundred thousand rows as dicts, with a key a tensor and figure, would fill the memory.
        records = self.records
        scalars = [f.name for f in fields(Record) if f.name not in ("shape", "axes", "errors")]
        frame = pd.DataFrame({name: [getattr(record, name) for record in records] for name in scalars})
        frame["shape"] = ["x".join(map(str, record.shape)) for record in records]
        for axis in dict.fromkeys(axis for record in records for axis in record.axes):
            frame[axis] = [record.axes.get(axis) for record in records]
        cells = [record.cell for record in records]  # once: putting a name together takes as long as reading a record
        frame["cell"] = cells
        frame["label"] = labels(records, cells)
        eps = [exactly(record.eps, "g") for record in records]
        frame["key"] = [f"{cell}/{one}" for cell, one in zip(cells, eps, strict=True)]  # as Record.key and case_key
        frame["case"] = [f"{cell.rpartition('/')[0]}/{one}" for cell, one in zip(cells, eps, strict=True)]
        frame["size"] = [math.prod(record.shape) * (2 if record.dtype in ("fp16", "bf16") else 4) for record in records]
        frame["timed"] = np.array([self.is_timed(record) for record in records], dtype=bool)
        for column in (*TIMES, *SPEED):
            frame[column] = pd.to_numeric(frame[column]).astype(float).replace([np.inf, -np.inf], np.nan)
        for column in SPEED:
            frame[column] = frame[column].where(frame["timed"])
        spread = frame["latency_us_p90"] - frame["latency_us_p10"]
        frame["spread"] = spread / frame["latency_us"].where(frame["timed"])
        return frame

    @cached_property
    def ours(self) -> pd.DataFrame:
        """The subject's rows of `cells`."""
        return self.cells[self.cells["provider"] == self.subject]

    @cached_property
    def timed(self) -> pd.DataFrame:
        """The rows of `cells` whose time supports a claim of speed."""
        return self.cells[self.cells["timed"]]

    @cached_property
    def errors(self) -> pd.DataFrame:
        """One row a tensor of a cell: its error, and the cell's name and case."""
        found = [error for record in self.records for error in record.errors]
        names = [*(f.name for f in fields(TensorError)), "pressure", "words"]
        frame = pd.DataFrame({name: [getattr(error, name) for error in found] for name in names})
        of_cell = np.repeat(np.arange(len(self.records)), [len(record.errors) for record in self.records])
        for name in ("op", "provider", "status", "mode", "inputs", "offset", "size", "cell", "case", "label"):
            frame[name] = self.cells[name].to_numpy()[of_cell]
        frame["place"] = of_cell  # among the records
        numeric = ["rel_l2_error", "floor_ratio", "error_vs_torch", "scale_error", "pressure", "bound"]
        return frame.astype(dict.fromkeys(numeric, float))

    @cached_property
    def duels(self) -> pd.DataFrame:
        """One row a timed case of the subject with its fastest peer (see `_beside`)."""
        peers = self.timed[self.timed["provider"] != self.subject].sort_values(["latency_us", "provider"])
        return self._beside(self.timed, peers.drop_duplicates("case"))

    @cached_property
    def against(self) -> pd.DataFrame:
        """One row a timed case of the subject with the baseline (see `_beside`)."""
        baseline = (self.cells["provider"] == self.environment["baseline"]) & (self.cells["provider"] != self.subject)
        return self._beside(self.timed[self.timed["speedup"].notna()], self.cells[baseline])

    def _beside(self, timed: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
        """The subject's timed rows, each with the other's row of its case, whose columns end in `_peer`.

        `ratio` is the other's median over the subject's, `log_variance` that of its logarithm. `outcome` is won or lost
        where the 95% interval of the ratio, that of Record.speedup_low and _high, does not reach 1, else tied. Where a
        median has no interval, the ranges from p10 to p90 decide.
        """
        ours, others = timed[timed["provider"] == self.subject], others[["case", "provider", "samples", *TIMES]]
        pairs = ours.merge(others, on="case", suffixes=("", "_peer"))
        pairs["ratio"] = pairs["latency_us_peer"] / pairs["latency_us"]
        pairs = pairs[pairs["ratio"].notna()].reset_index(drop=True)
        # Of each median, from its 95% interval, which is 3.92 standard errors wide.
        widths = [np.log(pairs[INTERVAL[1] + whose] / pairs[INTERVAL[0] + whose]) for whose in ("", "_peer")]
        pairs["log_variance"] = (widths[0] / 3.92) ** 2 + (widths[1] / 3.92) ** 2
        counts = [pd.to_numeric(pairs["samples" + whose]).fillna(LEAST) for whose in ("", "_peer")]
        reach = np.exp(-stdtrit(sum(map(np.sqrt, counts)), 0.025) * np.sqrt(pairs["log_variance"]))
        low = (pairs["ratio"] / reach).fillna(pairs["latency_us_p10_peer"] / pairs["latency_us_p90"])
        high = (pairs["ratio"] * reach).fillna(pairs["latency_us_p90_peer"] / pairs["latency_us_p10"])
        pairs["outcome"] = np.select([low > 1, high < 1], ["won", "lost"], "tied")
        return pairs


def load(folder: Path | str, needs_environment: bool = True, subject: str | None = None) -> LoadedRun:
    """Reads the records and the environment of a run; raises UnreadableRun where one is missing or broken.

    `subject` is the provider that the verdicts are about; by default the one that the run was started with.
    Raises UnreadableRun too where it is given and has no record.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        raise UnreadableRun(f"{folder}: {what}; give the folder of a run, which holds {RECORDS}")
    try:
        environment = read_environment(folder)
    except UnreadableRun:
        if needs_environment:
            raise
        environment = {}
    try:
        records = {record.key: record for record in of_run(folder)}
    except FileNotFoundError:
        raise UnreadableRun(f"{folder}: holds no {RECORDS}, so it is no run") from None
    except (OSError, ValueError) as error:
        raise UnreadableRun(str(error)) from None
    run = LoadedRun(folder, environment, list(records.values()), subject or environment.get("subject") or SUBJECT)
    if subject and records and subject not in run.providers:
        raise UnreadableRun(f"{folder}: has no record of {subject}, only of {', '.join(run.providers)}")
    return run


def read_environment(run_dir: Path) -> dict[str, Any]:
    """Returns what stands in environment.json, with None for what is not there; raises UnreadableRun."""
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


def labels(records: Sequence[Record], cells: Sequence[str]) -> list[str]:
    """Returns the records' cases in words, with eps where a cell was measured at several; `cells` are their names."""
    several = {cell for cell, count in Counter(cells).items() if count > 1}
    eps = [
        f" eps {exactly(one.eps, '.4g')}" if cell in several else "" for one, cell in zip(records, cells, strict=True)
    ]
    return [record.case.label + extra for record, extra in zip(records, eps, strict=True)]


def ordered(values: Any) -> list[str]:
    """Returns distinct names in the project's order: modes and dtypes as declared, others by name."""
    rank = {name: place for place, name in enumerate((*MODES, *DTYPES))}
    return sorted(set(values), key=lambda name: (rank.get(name, len(rank)), name))
