"""Where the subject loses: peers that are faster, peers that are more accurate, cells that are not ok."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from bench.page.formatting import figure
from bench.report.facts import Link, link
from bench.results.load import Run
from bench.results.records import STATUSES
from bench.results.thresholds import ACCURACY_MARGIN, JUDGED_BY, LEAST_ERROR, SUBJECT


@dataclass(frozen=True)
class Slower:
    """A case in which a peer's median is below the subject's."""

    link: Link
    ours_us: float
    peer: str
    peer_us: float
    ratio: float  # peer's median over the subject's: below 1
    cost_us: float  # what a call takes longer than the peer's
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


def slower(run: Run) -> list[Slower]:
    """Every timed case in which a peer is faster, the one that costs the most time first."""
    lost = run.duels[run.duels["ratio"] < 1]
    lost = lost.assign(cost_us=lost["latency_us"] - lost["latency_us_peer"])
    return [
        Slower(
            link=link(row),
            ours_us=row["latency_us"],
            peer=row["provider_peer"],
            peer_us=row["latency_us_peer"],
            ratio=row["ratio"],
            cost_us=row["cost_us"],
            clear=bool(row["clear"]),
        )
        for row in lost.sort_values(["cost_us", "cell"], ascending=[False, True]).to_dict("records")
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
