"""Merges the files of all ranks into one run's: records in the plan's order, samples, and whether devices agree."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import writing
from bench.cases.case import Case
from bench.measure import environment
from bench.results import records as results
from bench.results import samples
from bench.results.records import CUDA_EVENT, RECORDS, SHARDS, TRACES, Record

CHECK = "check"  # inside a rank's folder: the case that every rank measures
# Chosen: equal GPUs side by side differ by a few percent in their clocks. What differs more is to be looked at before
# cells of different devices are compared.
AGREEMENT = 0.05


def rank_folder(folder: Path, rank: int) -> Path:
    return folder / SHARDS / f"rank{rank}"


def merge(folder: Path, order: Sequence[tuple[Case, str]] = ()) -> list[Record]:
    """Moves what ranks have left in the folder into the run's own files; returns all records.

    Of two records of a cell the one that was not skipped counts, then the later one. `order` is the plan's. A process
    that is killed while it merges leaves files that merge to the same records again.
    """
    found: dict[tuple[Case, str], Record] = {}
    for record in (*_read(folder), *results.unmerged(folder)):
        key = record.case, record.provider
        if record.status != "skipped" or key not in found:
            found[key] = record
    known = [found.pop(key) for key in order if key in found]
    records = [*known, *found.values()]
    results.rewrite(folder / RECORDS, records)
    samples.mend(folder / samples.FILE)
    for path in results.of_ranks(folder, samples.FILE):
        for taken in samples.read(path):
            samples.append(folder / samples.FILE, taken)
    for path in results.of_ranks(folder, TRACES):
        writing.append(folder / TRACES, path.read_text(encoding="utf-8"))
    shutil.rmtree(folder / SHARDS, ignore_errors=True)
    return records


def agreement(folder: Path) -> dict[str, Any] | None:
    """Compares the case that all ranks have measured: errors and median times by provider; None for fewer than two."""
    measured = {int(p.name.removeprefix("rank")): list(_read(p / CHECK)) for p in (folder / SHARDS).glob("rank*")}
    ranks = sorted(rank for rank, records in measured.items() if records)
    if len(ranks) < 2:
        return None
    providers: dict[str, Any] = {}
    for name in dict.fromkeys(record.provider for rank in ranks for record in measured[rank]):
        mine = {rank: record for rank in ranks for record in measured[rank] if record.provider == name}
        times = {str(r): m.latency_us for r, m in mine.items() if m.latency_us is not None and m.clock == CUDA_EVENT}
        providers[name] = {
            "errors_equal": all(m.errors == mine[ranks[0]].errors for m in mine.values()) if ranks[0] in mine else None,
            "latency_us": times,
            "spread": (max(times.values()) - min(times.values())) / median(times.values()) if len(times) > 1 else None,
        }
    return {"case": measured[ranks[0]][0].case.label, "ranks": ranks, "providers": providers}


def said(found: Mapping[str, Any]) -> list[str]:
    """Describes the agreement, one line a provider."""
    lines = []
    for name, result in found["providers"].items():
        errors = "the same errors" if result["errors_equal"] else "errors that differ"
        spread, latency_us = result["spread"], result["latency_us"]
        if spread is None:
            times = "no times are compared without a GPU"
        else:
            off = {rank: value / median(latency_us.values()) - 1 for rank, value in latency_us.items()}
            outliers = [f"rank {rank} {share:+.1%}" for rank, share in off.items() if abs(share) > AGREEMENT]
            verdict = f"the devices do not agree ({', '.join(outliers)})" if outliers else "the devices agree"
            times = f"median times within {spread:.1%}: {verdict}"
        lines.append(f"{found['case']} by {name} on {len(found['ranks'])} ranks: {errors}, {times}")
    return lines


def device_of(folder: Path, rank: int) -> dict[str, Any]:
    """Describes a rank's device, as far as the rank has written it down."""
    try:
        described = environment.read(rank_folder(folder, rank))
    except (OSError, ValueError):
        return {"rank": rank}
    return {"rank": rank, **{key: described.get(key) for key in ("device_name", "copy_gbps", "conditions")}}


def _read(place: Path) -> Iterable[Record]:
    path = place / RECORDS
    return results.read(path) if path.exists() else ()
