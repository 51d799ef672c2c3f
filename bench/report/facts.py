"""What a run says: verdicts, losses, failures and warnings, each derived from the frames alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.case import INPUTS
from bench.report.data import Run, ordered
from bench.report.formatting import figure, number, percent, plural, short, times
from bench.report.thresholds import ABOVE_ROOF, ACCURACY_MARGIN, JUDGED_BY, LEAST_ERROR, NOISY_SPREAD, SUBJECT
from bench.results import STATUSES


@dataclass(frozen=True)
class Link:
    """A cell by its name in words and by the name that its row of the table has."""

    label: str
    cell: str


@dataclass(frozen=True)
class Slower:
    """A case in which a peer's median is below the subject's."""

    link: Link
    ours_us: float
    peer: str
    peer_us: float
    ratio: float  # peer's median over the subject's: below 1
    clear: bool  # the two p10 to p90 intervals do not meet


@dataclass(frozen=True)
class LessAccurate:
    """A case in which a right peer's error is smaller by more than the margin, in its worst tensor."""

    link: Link
    tensor: str
    ours: str
    peer: str
    theirs: str
    ratio: float  # the subject's error over the peer's: above 1
    others: int  # further tensors of the case that lose as well


@dataclass(frozen=True)
class Failure:
    """Cells that ended the same way for the same reason."""

    provider: str
    status: str
    reason: str
    alike: bool  # reasons differ in their numbers alone
    links: tuple[Link, ...]


def geomean(values: pd.Series) -> float | None:
    """The geometric mean, or None of nothing."""
    kept = values.dropna()
    return float(np.exp(np.log(kept).mean())) if len(kept) else None


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


def slower(run: Run) -> list[Slower]:
    """Every timed case in which a peer is faster, the widest gap first."""
    lost = run.duels[run.duels["ratio"] < 1].sort_values(["ratio", "cell"])
    return [
        Slower(link(r), r["latency_us"], r["provider_peer"], r["latency_us_peer"], r["ratio"], bool(r["clear"]))
        for r in lost.to_dict("records")
    ]


def less_accurate(run: Run) -> list[LessAccurate]:
    """Every case in which a right peer's error is smaller by more than the margin, the widest gap first."""
    right = run.errors[(run.errors["status"] == "ok") & run.errors["rel_l2_error"].notna()]
    ours, peers = right[right["provider"] == SUBJECT], right[right["provider"] != SUBJECT]
    best = peers.sort_values(["rel_l2_error", "provider"]).drop_duplicates(["case", "tensor"])
    pairs = ours.merge(best, on=["case", "tensor"], suffixes=("", "_peer"))
    mine, theirs = (pairs[name].clip(lower=LEAST_ERROR) for name in ("rel_l2_error", "rel_l2_error_peer"))
    pairs = pairs.assign(ratio=mine / theirs)
    pairs = pairs[pairs["ratio"] > 1 + ACCURACY_MARGIN].sort_values(
        ["ratio", "cell", "tensor"], ascending=[False, True, True]
    )
    tensors = pairs.groupby("case")["tensor"].count()
    losses = []
    for r in pairs.drop_duplicates("case").to_dict("records"):
        name = JUDGED_BY.get(r["dtype"], "rel_l2_error")
        if not (r[name] > r[f"{name}_peer"]):
            name = "rel_l2_error"
        written = [f"{name} {figure(name, r[key])}" for key in (name, f"{name}_peer")]
        others = int(tensors[r["case"]]) - 1
        losses.append(
            LessAccurate(link(r), r["tensor"], written[0], r["provider_peer"], written[1], r["ratio"], others)
        )
    return losses


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


# A number that stands alone, so that fp16 and sm_90 stay what they are.
STANDING_NUMBER = re.compile(r"(?<![\w.])\d[\d.,x]*(?:e[+-]?\d+)?")


def failures(run: Run, provider: str | None = None) -> list[Failure]:
    """Cells that are not ok, grouped by provider, status and reason; the gravest status and largest group first."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    rows = run.cells[run.cells["status"] != "ok"]
    for row in rows.to_dict("records"):
        if provider in (None, row["provider"]):
            key = (row["provider"], row["status"], STANDING_NUMBER.sub("#", row["reason"]))
            groups.setdefault(key, []).append(row)
    found = [
        Failure(
            provider=name,
            status=status,
            reason=group[0]["reason"] or "no reason was recorded",
            alike=len({row["reason"] for row in group}) > 1,
            links=tuple(link(row) for row in group),
        )
        for (name, status, _), group in groups.items()
    ]
    rank = {status: place for place, status in enumerate(STATUSES)}
    return sorted(found, key=lambda f: (rank.get(f.status, len(rank)), -len(f.links), f.provider, f.reason))


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


def completeness(run: Run) -> tuple[bool, str]:
    """Whether every planned cell has a record, and a sentence on it."""
    complete, planned = run.environment["complete"], run.environment["cells_planned"]
    have = len(run.records) if complete else int((run.cells["status"] != "skipped").sum())
    of = f"{have:,} of {plural(planned, 'planned cell')}" if isinstance(planned, int) else plural(have, "cell")
    endings = {
        "interrupt": "It was interrupted by hand",
        "time budget": "It was stopped by its time budget",
        "error": "It was stopped by an error",
        "a lost rank": "One of its processes was lost",
        "SIGTERM": "It was ended by SIGTERM, as torchrun does where one of its processes is lost",
    }
    if complete:
        if isinstance(planned, int) and have < planned:
            return False, f"The run says that it is complete, but the records hold {of}."
        return True, f"The run is complete: {of}."
    ending = endings.get(str(run.environment["stopped_by"] or ""), "It has not finished, or ended without saying why")
    return False, f"The run is not complete. {ending}, having measured {of}."


def warnings(run: Run) -> list[str]:
    """Reasons to believe the figures less, one sentence each."""
    env, cells = run.environment, run.cells
    timed = cells[cells["timed"]]
    found = []
    if not completeness(run)[0]:
        found.append(completeness(run)[1])
    if env["git_dirty"]:
        found.append("The checkout held uncommitted changes, so the commit alone does not give this code.")
    if len(timed):
        noisy = timed[timed["spread"] > NOISY_SPREAD]
        if len(noisy):
            worst = noisy.loc[noisy["spread"].idxmax()]
            found.append(
                f"{plural(len(noisy), 'timed cell')} of {len(timed):,} scatter by more than {percent(NOISY_SPREAD)} "
                f"(p90 less p10, over the median); the widest is {worst['provider']} on {worst['label']} with "
                f"{percent(worst['spread'])}."
            )
        above = timed[timed["roofline_fraction"] > ABOVE_ROOF]
        if len(above):
            top = above.loc[above["roofline_fraction"].idxmax()]
            found.append(
                f"{plural(len(above), 'timed cell')} move data faster than the measured copy (up to "
                f"{percent(top['roofline_fraction'])}, {top['provider']} on {top['label']}): "
                "the data stayed in a cache, or the bytes are miscounted."
            )
        if not env["copy_gbps"]:
            found.append("The copy bandwidth was not measured, so no fraction of it can be given.")
        without = timed[(timed["provider"] == SUBJECT) & timed["speedup"].isna()]
        if len(without):
            found.append(
                f"{plural(len(without), 'timed cell')} of {SUBJECT} have no time of {run.baseline} beside them."
            )
    clocks = ordered(set(cells.loc[cells["latency_us"].notna(), "clock"]))
    if len(clocks) > 1:
        found.append(f"Times were taken by more than one clock: {', '.join(clocks)}.")
    missing = {n: p.get("unavailable") for n, p in providers(run).items() if p.get("unavailable")}
    if missing:
        found.append(f"Not served here: {'; '.join(f'{name} ({why})' for name, why in sorted(missing.items()))}.")
    return found


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
