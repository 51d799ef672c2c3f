"""The records of a study: one JSON line a run, append-only. Imports no torch.

JSON has no inf and no NaN: a figure is a number, "inf", "-inf" or null, in values as in series.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench import writing
from bench.results import json_lines
from bench.study.training import Points

FILE = "study.jsonl"
State = Literal["ok", "diverged", "failed"]


@dataclass(frozen=True)
class StudyRun:
    """One condition of one experiment with one seed.

    `diverged` is a result: a loss was no longer finite. `failed` is an error in the run; `reason` says which.
    """

    experiment: str
    condition: str
    seed: int
    values: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, Points] = field(default_factory=dict)
    state: State = "ok"
    reason: str = ""
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, str, int]:
        """(experiment, condition, seed), which a study has once."""
        return self.experiment, self.condition, self.seed


def append(folder: Path, run: StudyRun) -> None:
    """Adds one line and hands it to the operating system before returning."""
    writing.append(folder / FILE, json.dumps(_strict(asdict(run)), allow_nan=False) + "\n")


def read(folder: Path) -> Iterator[StudyRun]:
    """Yields the runs of a folder in order; of two with one key the later counts. Drops a last line cut short."""
    return json_lines.read(
        folder / FILE, lambda row: StudyRun(**row | {key: _figures(row[key]) for key in ("values", "series")})
    )


def _strict(value: Any) -> Any:
    """Returns the same with every figure as strict JSON has it, to seven digits: more than float32 holds."""
    if isinstance(value, dict):
        return {key: _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    if not isinstance(value, float):
        return value
    if math.isfinite(value):
        return float(f"{value:.7g}")
    return None if math.isnan(value) else str(value)


def _figures(value: Any) -> Any:
    """Returns what `_strict` has written with its figures as floats."""
    if isinstance(value, dict):
        return {key: _figures(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_figures(inner) for inner in value]
    return math.nan if value is None else float(value)
