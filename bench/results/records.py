"""The record of one cell, and the append-only file of records. Imports no torch."""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from bench import writing
from bench.cases.case import Case, exactly, named
from bench.results import json_lines
from bench.results.numbers import error_figure, present, short

RECORDS = "records.jsonl"
# The whole trace of every exception that ended a cell. It names folders, and belongs to no report.
TRACES = "traces.txt"
# In a run's folder: what each rank of a sweep over many devices has written, until rank 0 or --resume merges it.
SHARDS = "shards"
# The clocks of a record. Only the first supports a claim of speed.
CUDA_EVENT, HOST_CPU, INTERPRETER = "cuda_event", "host_cpu", "interpreter"
# `impossible`: faster than the memory can be, so that what was timed is not the work.
STATUSES = ("ok", "wrong", "impossible", "oom", "crash", "timeout", "unsupported", "skipped")


@dataclass
class TensorError:
    """The errors of one output tensor against float64; bench/measure/accuracy.py explains every figure."""

    tensor: str
    dtype: str
    rel_l2_error: float | None
    floor_ratio: float | None  # None where the floor is not what this dtype is judged by
    error_vs_torch: float | None
    scale_error: float | None
    max_ulp: float | None
    max_ulp_index: list[int] | None
    masks_match: bool  # NaN and Inf exactly where the reference has them
    ok: bool
    decided_by: str  # the figure nearest to, or beyond, its bound
    bound: float | None  # that figure's bound

    @property
    def value(self) -> float | None:
        """The deciding figure; None where no number decided."""
        value = getattr(self, self.decided_by, None)
        return None if isinstance(value, bool) else value

    @property
    def pressure(self) -> float:
        """The deciding figure over its bound; infinite where NaN or Inf stand in the wrong places."""
        if self.masks_match and present(self.value) and present(self.bound) and self.bound > 0:
            return self.value / self.bound
        return 0.0 if self.ok and self.masks_match else math.inf

    @property
    def words(self) -> str:
        """The deciding figure in words: `dw floor_ratio 1.003 (bound 1.05)`."""
        if self.decided_by == "masks_match":
            return f"{self.tensor}: NaN or Inf in other places than the reference"
        if self.bound is None:
            return f"{self.tensor}: {self.decided_by}"
        written = "" if self.value is None else f" {error_figure(self.decided_by, self.value)}"
        return f"{self.tensor} {self.decided_by}{written} (bound {short(self.bound)})"


@dataclass
class Record:
    """One cell: what was run, how it ended, how wrong and how fast it was."""

    op: str
    shape: list[int]
    axes: dict[str, int | str]
    dtype: str
    layout: str
    mode: str
    eps: float
    inputs: str = field(default="normal", kw_only=True)  # the family of x
    offset: float = field(default=0.0, kw_only=True)  # mean/std of the family `offset`
    provider: str
    backend: str  # what ran: triton, interpreter, torch, inductor, cudnn, ...
    device: str
    status: str
    reason: str = ""
    plan: str = ""  # how it ran, where the provider tells: its kernels and their grids
    ran: str = ""  # what one call was seen to do: Triton's kernels, and operators of PyTorch or a library
    deviations: str = ""  # in what that differs from the contract of the mode, which all providers of a case share
    errors: list[TensorError] = field(default_factory=list)
    batch_invariant: bool | None = None  # the first rows have the same bits without the others; None: not tried
    bytes_moved: int | None = None
    clock: str = ""  # cuda_event, or host_cpu and interpreter, which support no claim of speed
    latency_us: float | None = None  # median of cold calls: nothing of theirs in the cache; see bench.measure.timing
    latency_us_low: float | None = None  # 95% interval of that median, by ranks
    latency_us_high: float | None = None
    latency_us_p10: float | None = None
    latency_us_p90: float | None = None
    latency_us_min: float | None = None
    samples: int | None = None
    noise: float | None = None  # standard error of the mean over the mean
    stopped: str = ""  # what ended the sampling: noise (low enough), steady (no longer falling) or budget
    retaken: int | None = None  # samples thrown away and taken again, because the GPU was throttled
    hot_us: float | None = None  # median of a call whose data the last one left in the cache
    call_us: float | None = None  # one of many calls in a row, the host's work included
    graph_us: float | None = None  # median of cold replays of a CUDA graph
    kernel_us: float | None = None  # only the kernels, added up
    launches: int | None = None  # kernels a call
    sm_clock_mhz: float | None = None  # this and what follows: the mean while the cell was timed
    mem_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttle: str = ""  # why the clocks were held down, reasons separated by commas; "" if they were not
    energy_mj: float | None = None  # of a call among many in a row, of the whole board; with --energy
    energy_mj_low: float | None = None  # in the least and in the greatest step of the counter
    energy_mj_high: float | None = None
    compile_ms: float | None = None
    peak_bytes: int | None = None
    gbps: float | None = None  # bytes_moved / latency; only with cuda_event
    roofline_fraction: float | None = None  # gbps over the copy bandwidth of the same run
    speedup: float | None = None  # baseline's median over this one; only with cuda_event, and if ok
    speedup_low: float | None = None  # 95% interval of it, from those of both medians
    speedup_high: float | None = None
    gap_closed: float | None = None  # of the baseline's time beyond that of a copy, the share that is gone; if ok
    baseline: str = ""
    seed: int = 0
    communication_us: float | None = None  # of only the collectives of a step of several ranks
    bytes_sent: int | None = None  # what a rank gives to them
    rank: int | None = None  # of a sweep over many devices: whose device it was; environment.json says which that is

    @property
    def case(self) -> Case:
        """The case that was measured, without the provider."""
        axes = tuple(self.axes.items())
        return Case(
            self.op, tuple(self.shape), axes, self.dtype, self.layout, self.mode, self.eps, self.inputs, self.offset
        )

    @property
    def cell(self) -> str:
        """One name for the cell, the same in every run."""
        shape = "x".join(map(str, self.shape))
        family = {"normal": (), "offset": (f"offset{exactly(self.offset, '.0e')}",)}.get(self.inputs, (self.inputs,))
        names = (self.op, shape, *named(self.case.options), self.dtype, self.layout, self.mode, *family, self.provider)
        return "/".join(names)

    @property
    def key(self) -> str:
        """The cell's name with eps, which no two cells of a run share."""
        return f"{self.cell}/{exactly(self.eps, 'g')}"

    @property
    def case_key(self) -> str:
        """The key without the provider, the same for all that are measured side by side."""
        return f"{self.cell.rpartition('/')[0]}/{exactly(self.eps, 'g')}"

    @property
    def median(self) -> tuple[float, float, float] | None:
        """The median time with its 95% interval around it, or None where a part is missing."""
        times = self.latency_us_low, self.latency_us, self.latency_us_high
        low, median, high = (time if present(time) and time > 0 else None for time in times)
        return (low, median, high) if low and median and high else None


def fill(record: Record, measured: object) -> None:
    """Copies the fields of `measured` that a record has too."""
    for name in (f.name for f in fields(Record)):
        if hasattr(measured, name):
            setattr(record, name, getattr(measured, name))


def append(path: Path, record: Record) -> None:
    """Appends one line and hands it to the operating system before returning."""
    writing.append(path, _line(record))


def rewrite(path: Path, records: Iterable[Record]) -> None:
    """Replaces the whole file, with which a continued run mends a last line that was cut short."""
    writing.write(path, "".join(map(_line, records)))


def read(path: Path) -> Iterator[Record]:
    """Yields the records of a file in order; drops a last line that was cut short, and unknown keys."""
    return json_lines.read(path, _record)


def _record(row: dict[str, Any]) -> Record:
    row["errors"] = [TensorError(**_numbers(_known(TensorError, error))) for error in row.get("errors", [])]
    return Record(**_numbers(_known(Record, row)))


def of_run(folder: Path) -> Iterator[Record]:
    """Yields the records of a run's folder, then those that its ranks have left unmerged; changes nothing."""
    yield from read(folder / RECORDS)
    yield from unmerged(folder)


def unmerged(folder: Path) -> Iterator[Record]:
    """Yields the records that ranks have left in a run's folder.

    Leaves out cells whose process died of SIGTERM: torchrun has sent it, and the cell is still to be measured.
    """
    for path in of_ranks(folder, RECORDS):
        with suppress(FileNotFoundError):  # another process has merged it since
            for record in read(path):
                if record.status != "crash" or not record.reason.endswith("died of SIGTERM"):
                    record.rank = int(path.parent.name.removeprefix("rank"))
                    yield record


def of_ranks(folder: Path, file: str) -> list[Path]:
    """Returns the files of this name that ranks have left in a run's folder."""
    return sorted((folder / SHARDS).glob(f"rank*/{file}"))


def to_frame(records: list[Record]) -> pd.DataFrame:
    """Returns one row a cell; axes become columns, and so does each tensor's error (`y.floor_ratio`, ...)."""
    rows = []
    for record in records:
        row = asdict(record)
        row["cell"] = record.cell
        row["shape"] = "x".join(map(str, record.shape))
        row.update(row.pop("axes"))
        for error in row.pop("errors"):
            name = error.pop("tensor")
            row.update({f"{name}.{figure}": value for figure, value in error.items()})
        rows.append(row)
    kinds: dict[str, set[type]] = {}
    for name, value in ((name, value) for row in rows for name, value in row.items() if value is not None):
        kinds.setdefault(name, set()).add(type(value))
    # Where another row has none, pandas would make floats of whole numbers.
    return pd.DataFrame(rows).astype({name: "Int64" for name, kind in kinds.items() if kind == {int}})


# JSON has no such numbers, so that they are written as words.
_WORDS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def _line(record: Record) -> str:
    return json.dumps(_strict(asdict(record)), allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    """Returns the value with words in the place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _strict(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_strict(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields with numbers again in the place of such words; no text of a record is one of them."""
    return {key: _WORDS.get(value, value) if isinstance(value, str) else value for key, value in row.items()}


def _known(kind: type[Record] | type[TensorError], row: dict[str, Any]) -> dict[str, Any]:
    # Not by dataclasses.fields, which takes as long as parsing the line.
    return {key: value for key, value in row.items() if key in kind.__dataclass_fields__}
