"""The losses of the subject: peers that are faster, peers that are more accurate, cells that are not ok."""

import re
from collections import Counter, defaultdict
from typing import Any

import pandas as pd

from bench.report.facts import judged
from bench.report.sections import Section
from bench.results.headline import count_in_model
from bench.results.load import LoadedRun
from bench.results.numbers import error_figure
from bench.results.records import STATUSES, Record
from bench.results.thresholds import ACCURACY_MARGIN, JUDGED_BY, LEAST_ERROR, WIDTHS

# A number by itself, so that fp16 and sm_90 stay what they are.
STANDING_NUMBER = re.compile(r"(?<![\w.])\d[\d.,x]*(?:e[+-]?\d+)?")


def slower(run: LoadedRun) -> list[dict[str, Any]]:
    """Returns the rows of `duels` that are lost, with `cost_us` by which the peer is faster; the costliest first."""
    lost = run.duels[run.duels["outcome"] == "lost"]
    lost = lost.assign(cost_us=lost["latency_us"] - lost["latency_us_peer"])
    rows: list[dict[str, Any]] = lost.sort_values(["cost_us", "cell"], ascending=[False, True]).to_dict("records")
    return rows


def regimes(run: LoadedRun, lost: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the lost cells by operator, direction and width, the costliest first.

    `cost_us` adds up what the cells take longer than their best peers. `model_us` is the same with each shape as often
    as the run's model has it, at the batch, dtype and layout where that is most; None where no model was measured.
    """
    of = Counter((row["op"], row["mode"], _width(run, row)) for row in run.duels.to_dict("records"))
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in lost:
        groups[row["op"], row["mode"], _width(run, row)].append(row)
    found = []
    for (op, mode, width), rows in groups.items():
        peers = Counter(row["provider_peer"] for row in rows)
        in_model: dict[tuple[Any, ...], float] = defaultdict(float)
        for row in rows:
            if counted := count_in_model(_record(run, row), run.environment):
                in_model[counted[1], row["dtype"], row["layout"]] += counted[0] * row["cost_us"]
        found.append(
            {
                "op": op,
                "mode": mode,
                "width": width,
                "lost": len(rows),
                "cells": of[op, mode, width],
                "worst": min(rows, key=lambda row: row["ratio"]),
                "peers": ", ".join(f"{name} in {count:,}" for name, count in peers.most_common(3)),
                "cost_us": sum(row["cost_us"] for row in rows),
                "model_us": max(in_model.values(), default=None),
            }
        )
    return sorted(found, key=lambda one: (-(one["model_us"] or 0.0), -one["cost_us"]))


def _record(run: LoadedRun, row: dict[str, Any]) -> Record:
    return run.by_key[row["key"]]


def _width(run: LoadedRun, row: dict[str, Any]) -> str:
    """Returns the class of a row's columns or channels: `columns to 1,024`, `columns beyond 8,192`."""
    record = _record(run, row)
    kind = "columns" if "hidden" in record.axes else "channels"
    value = record.shape[-1] if kind == "columns" else record.shape[1]
    upper = next((end for end in WIDTHS[kind] if value <= end), None)
    return f"{kind} to {upper:,}" if upper else f"{kind} beyond {WIDTHS[kind][-1]:,}"


def less_accurate(run: LoadedRun) -> list[dict[str, Any]]:
    """Returns a row a case in which a right peer's error is smaller by more than the margin, the widest gap first.

    A row is of the worst tensor: `ratio` is the subject's error over the peer's, `ours` and `theirs` are the figures
    in words, `others` counts further tensors of the case that lose as well.
    """
    right = run.errors[(run.errors["status"] == "ok") & run.errors["rel_l2_error"].notna()]
    ours, peers = right[right["provider"] == run.subject], right[right["provider"] != run.subject]
    best = peers.sort_values(["rel_l2_error", "provider"]).drop_duplicates(["case", "tensor"])
    pairs = ours.merge(best, on=["case", "tensor"], suffixes=("", "_peer"))
    mine, theirs = (pairs[name].clip(lower=LEAST_ERROR) for name in ("rel_l2_error", "rel_l2_error_peer"))
    pairs = pairs.assign(ratio=mine / theirs)
    pairs = pairs[pairs["ratio"] > 1 + ACCURACY_MARGIN]
    pairs = pairs.sort_values(["ratio", "cell", "tensor"], ascending=[False, True, True])
    tensors = pairs.groupby("case")["tensor"].count()
    rows: list[dict[str, Any]] = pairs.drop_duplicates("case").to_dict("records")
    for row in rows:
        name = JUDGED_BY.get(row["dtype"], "rel_l2_error")
        if not (row[name] > row[f"{name}_peer"]):
            name = "rel_l2_error"
        row["ours"], row["theirs"] = (f"{name} {error_figure(name, row[key])}" for key in (name, f"{name}_peer"))
        row["others"] = int(tensors[row["case"]]) - 1
    return rows


def failures(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns groups of cells that ended the same way; the gravest status and the largest group first.

    `alike` says that the reasons of a group differ in their numbers.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in cells[cells["status"] != "ok"].to_dict("records"):
        key = (row["provider"], row["status"], STANDING_NUMBER.sub("#", row["reason"]))
        groups.setdefault(key, []).append(row)
    rank = {status: place for place, status in enumerate(STATUSES)}
    found: list[dict[str, Any]] = [
        {
            "provider": provider,
            "status": status,
            "reason": rows[0]["reason"] or "no reason was recorded",
            "alike": len({row["reason"] for row in rows}) > 1,
            "cells": rows,
        }
        for (provider, status, _), rows in groups.items()
    ]
    found.sort(key=lambda group: (group["provider"], group["reason"]))
    return sorted(found, key=lambda group: (rank.get(group["status"], len(rank)), -len(group["cells"])))


def _context(run: LoadedRun) -> dict[str, Any]:
    lost = slower(run)
    return {
        "judged": len(judged(run.ours)),
        "slower": lost,
        "regimes": regimes(run, lost),
        "less_accurate": less_accurate(run),
        "own_failures": failures(run.ours),
    }


SECTION = Section(20, "Where we lose", _context)
