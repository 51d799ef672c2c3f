"""The losses of the subject: peers that are faster, peers that are more accurate, cells that are not ok."""

import re
from typing import Any

import pandas as pd

from bench.report.facts import judged
from bench.report.sections import Section
from bench.results.load import LoadedRun
from bench.results.numbers import error_figure
from bench.results.records import STATUSES
from bench.results.thresholds import ACCURACY_MARGIN, JUDGED_BY, LEAST_ERROR, SUBJECT

# A number by itself, so that fp16 and sm_90 stay what they are.
STANDING_NUMBER = re.compile(r"(?<![\w.])\d[\d.,x]*(?:e[+-]?\d+)?")


def slower(run: LoadedRun) -> list[dict[str, Any]]:
    """Returns the rows of `duels` that a peer wins, with `cost_us` by which it is faster; the costliest first."""
    lost = run.duels[run.duels["ratio"] < 1]
    lost = lost.assign(cost_us=lost["latency_us"] - lost["latency_us_peer"])
    rows: list[dict[str, Any]] = lost.sort_values(["cost_us", "cell"], ascending=[False, True]).to_dict("records")
    return rows


def less_accurate(run: LoadedRun) -> list[dict[str, Any]]:
    """Returns a row a case in which a right peer's error is smaller by more than the margin, the widest gap first.

    A row is of the worst tensor: `ratio` is the subject's error over the peer's, `ours` and `theirs` are the figures
    in words, `others` counts further tensors of the case that lose as well.
    """
    right = run.errors[(run.errors["status"] == "ok") & run.errors["rel_l2_error"].notna()]
    ours, peers = right[right["provider"] == SUBJECT], right[right["provider"] != SUBJECT]
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


SECTION = Section(
    40,
    "Where we lose",
    lambda run: {
        "judged": len(judged(run.ours)),
        "slower": slower(run),
        "less_accurate": less_accurate(run),
        "own_failures": failures(run.ours),
    },
)
