"""What a run says, derived from its frames alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.cases.case import INPUTS
from bench.page.formatting import number, short, times
from bench.results.headline import Headline, headlines
from bench.results.load import Run, ordered
from bench.results.records import STATUSES
from bench.results.thresholds import SUBJECT


@dataclass(frozen=True)
class Link:
    """A cell by its name in words and by the name that its row of the table has."""

    label: str
    cell: str


def geomean(values: pd.Series) -> float | None:
    """The geometric mean, or None of nothing."""
    kept = values.dropna()
    return float(np.exp(np.log(kept).mean())) if len(kept) else None


def geomean_interval(pairs: pd.DataFrame) -> tuple[float, float] | None:
    """The 95% interval of the geometric mean of `ratio`, from the cells' own; None where a cell lacks one.

    It says how well these cells were measured, and nothing about cells that were not.
    """
    mean = geomean(pairs["ratio"])
    error = float(np.sqrt(pairs["log_variance"].sum(skipna=False))) / max(len(pairs), 1)
    if mean is None or not np.isfinite(error):
        return None
    return mean * float(np.exp(-1.96 * error)), mean * float(np.exp(1.96 * error))


def link(row: Any) -> Link:
    """The link of a row of any frame of the run."""
    return Link(row["label"], row["cell"])


def subject_cells(run: Run) -> pd.DataFrame:
    """The subject's rows."""
    return run.cells[run.cells["provider"] == SUBJECT]


def judged(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells whose outputs were compared with float64."""
    return cells[cells["status"].isin(["ok", "wrong", "impossible"])]


def worst_errors(run: Run, op: str | None = None) -> pd.DataFrame:
    """The subject's worst tensor of each cell, worst first."""
    errors = run.errors[run.errors["provider"] == SUBJECT]
    if op is not None:
        errors = errors[errors["op"] == op]
    return errors.sort_values(["pressure", "cell", "tensor"], ascending=[False, True, True]).drop_duplicates(
        ["cell", "case"]
    )


@dataclass(frozen=True)
class Family:
    """How often a provider was right on one family of inputs; None where it was not judged."""

    name: str
    about: str
    right: dict[str, tuple[int, int] | None]


def families(run: Run, op: str) -> list[Family]:
    """One row a family of inputs; nothing where all inputs are normal."""
    cells = judged(run.cells[run.cells["op"] == op])
    if set(cells["inputs"]) <= {"normal"}:
        return []
    rows = []
    for name, offset in sorted(set(zip(cells["inputs"], cells["offset"], strict=True)), key=_family_order):
        here = cells[(cells["inputs"] == name) & (cells["offset"] == offset)]
        counts = {p: (int((part["status"] == "ok").sum()), len(part)) for p, part in here.groupby("provider")}
        about = f"mean/std {short(offset)} in every statistic" if offset else INPUTS.get(name, "")
        rows.append(Family(name, about, {p: counts.get(p) for p in run.providers}))
    return rows


def _family_order(family: tuple[str, float]) -> tuple[int, float]:
    names = list(INPUTS)
    return names.index(family[0]) if family[0] in names else len(names), family[1]


def by_status(cells: pd.DataFrame) -> str:
    """`3 wrong, 12 unsupported`, in the order of the statuses."""
    counts = Counter(cells["status"])
    names = [*STATUSES, *sorted(set(counts).difference(STATUSES))]
    return ", ".join(f"{counts[name]:,} {name}" for name in names if name != "ok" and counts[name])


def summary_rows(run: Run) -> list[dict[str, Any]]:
    """One row an operator and mode for the subject: right, fast, by how much, where not."""
    rows = []
    for op in ordered(run.cells["op"]):
        cells = subject_cells(run)
        cells = cells[cells["op"] == op]
        for mode in ordered(cells["mode"]):
            part = cells[cells["mode"] == mode]
            duels = run.duels[(run.duels["op"] == op) & (run.duels["mode"] == mode)]
            errors = worst_errors(run, op)
            errors = errors[errors["mode"] == mode]
            rows.append(
                {
                    "op": op,
                    "mode": mode,
                    "ok": int((part["status"] == "ok").sum()),
                    "cells": len(part),
                    "wrong": int((part["status"] == "wrong").sum()),
                    "worst": errors["text"].iloc[0] if len(errors) else None,
                    "speedup": geomean(part["speedup"]),
                    "low": part["speedup"].min(),
                    "high": part["speedup"].max(),
                    "peer": geomean(duels["ratio"]),
                    "lost": int((duels["ratio"] < 1).sum()),
                    "duels": len(duels),
                    "fraction": part["roofline_fraction"].median(),
                }
            )
    return rows


def providers(run: Run) -> dict[str, dict[str, Any]]:
    """What the environment says about each provider."""
    listed = run.environment["providers"]
    return {n: p for n, p in listed.items() if isinstance(p, dict)} if isinstance(listed, dict) else {}


def spread_line(values: Sequence[float] | pd.Series) -> str:
    """`0.83x to 3.10x`."""
    return f"{times(min(values))} to {times(max(values))}"


def bandwidth_line(run: Run) -> str:
    """`, of 4,000 GB/s`: the measured copy bandwidth, or nothing."""
    copy = run.environment["copy_gbps"]
    return f", of {number(copy)} GB/s" if copy else ""


def models(run: Run) -> list[Headline]:
    """What a model's norms take together, where the run measured a model's preset; only those with a sum."""
    if not run.has_speed or not isinstance(run.environment["arguments"], dict):
        return []
    return [found for found in headlines(run.records, run.environment) if found.parts]
