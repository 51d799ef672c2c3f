"""The first screen: cards and three sentences on accuracy, speed and losses."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from bench.page.formatting import duration, number, percent, plural, times
from bench.page.templating import Card
from bench.report import facts
from bench.report.facts import geomean
from bench.report.sections import Section
from bench.report.sections.losses import less_accurate, slower
from bench.report.sections.trust import warnings
from bench.results.load import LoadedRun, ordered
from bench.results.records import STATUSES
from bench.results.thresholds import ACCURACY_MARGIN, LEAST_SHOWN, NOISY_SPREAD, SUBJECT


class RunVerdict:
    """The cards and sentences of one run."""

    def __init__(self, run: LoadedRun) -> None:
        self.run, self.ours, self.judged = run, run.ours, facts.judged(run.ours)
        self.wrong = int((self.judged["status"] == "wrong").sum())
        self.right = len(self.judged) - self.wrong
        errors = facts.worst_errors(run)
        self.worst = f"{errors['words'].iloc[0]}, {errors['label'].iloc[0]}" if len(errors) else ""
        self.speedups = self.ours["speedup"].dropna()
        self.slower, self.less_accurate = slower(run), less_accurate(run)

    def cards(self) -> list[Card]:
        """Returns the cards; speed is judged only where a GPU's clock timed it."""
        if self.run.has_speed:
            speed = self._speed_cards()
        else:
            ran = "ran in Triton's interpreter" if self.run.interpreted else "were not timed on a GPU"
            speed = [Card("Speed", "needs a GPU", f"The kernels {ran}; no time here says how fast they are.")]
        accurate = [self._peer_accuracy_card()] if self.right else []
        return [self._accuracy_card(), *self._impossible_cards(), *speed, *accurate, self._failure_card()]

    def sentences(self) -> list[str]:
        """Returns whether it is right, whether it is faster, and where not, a sentence each."""
        return [self._right(), self._fast(), self._not()]

    def _accuracy_card(self) -> Card:
        title = "Accuracy against float64"
        if not len(self.judged):
            return Card(title, "not judged", f"No {SUBJECT} cell ran to its end.", "caution")
        if self.wrong:
            of = f"{self.wrong:,} of {len(self.judged):,} wrong"
            return Card(title, of, f"Worst: {self.worst}" if self.worst else "", "bad")
        detail = f"Nearest to its bound: {self.worst}" if self.worst else "No figure was recorded."
        return Card(title, f"{len(self.judged):,} of {len(self.judged):,} right", detail, "good")

    def _impossible_cards(self) -> list[Card]:
        """Returns a red card where a time was shorter than the memory allows."""
        cells = self.run.cells[self.run.cells["status"] == "impossible"]
        if not len(cells):
            return []
        by = ", ".join(f"{len(part):,} of {name}" for name, part in cells.groupby("provider"))
        detail = f"{by}: faster than the memory can be, so something else was timed. None has a speedup."
        return [Card("Impossible times", plural(len(cells), "cell"), detail, "bad")]

    def _speed_cards(self) -> list[Card]:
        timed, copy = self.run.timed, self.run.environment["copy_gbps"]
        cards = [
            self._mean_card(f"Speed against {self.run.baseline}", self.speedups, self.run.against),
            self._mean_card("Speed against each cell's best peer", self.run.duels["ratio"], self.run.duels),
        ]
        if len(self.run.duels):
            cards.append(self._worst_card(self.run.duels))
        fractions = self.ours.dropna(subset=["roofline_fraction"])
        if len(fractions):
            low = fractions.loc[fractions["roofline_fraction"].idxmin()]
            detail = f"Median of {plural(len(fractions), 'cell')}{f', of {number(copy)} GB/s' if copy else ''}; "
            detail += f"lowest {percent(low['roofline_fraction'])}, {low['label']}"
            cards.append(Card("Share of the copy bandwidth", percent(fractions["roofline_fraction"].median()), detail))
        noisy = int((timed["spread"] > NOISY_SPREAD).sum())
        detail = f"Median spread, p10 to p90; {noisy:,} of {plural(len(timed), 'timed cell')} above {NOISY_SPREAD:.0%}"
        cards.append(Card("Noise", percent(timed["spread"].median()), detail, "caution" if noisy else "good"))
        return cards

    def _mean_card(self, title: str, ratios: pd.Series, pairs: pd.DataFrame) -> Card:
        mean = geomean(ratios)
        if mean is None:
            return Card(title, "none", f"No right {SUBJECT} cell has a time beside it.", "caution")
        detail = f"Geometric mean of {plural(len(ratios), 'cell')}"
        if len(pairs) == len(ratios) and (error := mean_error(pairs)) >= 0:  # and not NaN
            detail += f", {f'±{percent(error)}' if error >= LEAST_SHOWN else f'within ±{percent(LEAST_SHOWN)}'} (95%)"
        return Card(
            title,
            times(mean),
            f"{detail}; cells from {times(min(ratios))} to {times(max(ratios))}",
            "good" if mean >= 1 else "bad",
        )

    def _worst_card(self, duels: pd.DataFrame) -> Card:
        worst, clear = duels.loc[duels["ratio"].idxmin()], sum(loss["beyond_noise"] for loss in self.slower)
        detail = f"{worst['label']}, against {worst['provider_peer']}. "
        detail += f"A peer is faster in {len(self.slower):,} of {plural(len(duels), 'cell')}"
        detail += f", in {clear:,} beyond the noise." if self.slower else "."
        return Card("Worst cell", times(worst["ratio"]), detail, "caution" if self.slower else "good")

    def _peer_accuracy_card(self) -> Card:
        title = "Cells where a peer is more accurate"
        if not self.less_accurate:
            detail = f"By more than {ACCURACY_MARGIN:.0%}, in any tensor, counting only right cells"
            return Card(title, f"0 of {self.right:,}", detail, "good")
        worst = self.less_accurate[0]
        detail = f"By more than {ACCURACY_MARGIN:.0%} in some tensor; widest {worst['tensor']} {times(worst['ratio'])} "
        detail += f"the error of {worst['provider_peer']}, {worst['label']}"
        return Card(title, f"{len(self.less_accurate):,} of {self.right:,}", detail, "caution")

    def _failure_card(self) -> Card:
        cells = self.run.cells
        failed, ours = cells[cells["status"] != "ok"], int((self.ours["status"] != "ok").sum())
        if not len(cells):
            return Card("Cells not ok", "no cells", "Nothing was run.", "caution")
        if not len(failed):
            return Card("Cells not ok", f"0 of {len(cells):,}", "Every provider served every cell.", "good")
        detail = f"{_by_status(failed)}; {ours:,} of them {SUBJECT}"
        return Card("Cells not ok", f"{len(failed):,} of {len(cells):,}", detail, "caution" if ours else "plain")

    def _right(self) -> str:
        if not len(self.judged):
            return f"No {SUBJECT} cell was compared with float64, so nothing can be said about its accuracy."
        if self.wrong:
            worst = f"; the worst is {self.worst}" if self.worst else ""
            return (
                f"Not right: {self.wrong:,} of {plural(len(self.judged), f'{SUBJECT} cell')} compared with float64 "
                f"{'is' if self.wrong == 1 else 'are'} wrong{worst}."
            )
        nearest = f"; nearest to its bound is {self.worst}" if self.worst else ""
        return f"Right: {plural(len(self.judged), f'{SUBJECT} cell')} compared with float64, none wrong{nearest}."

    def _fast(self) -> str:
        if not self.run.has_speed:
            return "Speed: this run has no cell timed on a GPU, so it says nothing about speed."
        mean, peer = geomean(self.speedups), geomean(self.run.duels["ratio"])
        parts = []
        if mean is not None:
            faster = int((self.speedups > 1).sum())
            parts.append(
                f"{times(mean)} as fast as {self.run.baseline}, faster in {faster:,} of {len(self.speedups):,} cells"
            )
        if peer is not None:
            faster = int((self.run.duels["ratio"] > 1).sum())
            parts.append(
                f"{times(peer)} as fast as the best peer of each cell, faster in {faster:,} of {len(self.run.duels):,}"
            )
        if not parts:
            return f"Speed: no right {SUBJECT} cell has another provider's time beside it."
        lead = "Faster" if (peer if peer is not None else mean or 0) >= 1 else "Not faster"
        return f"{lead}: on the geometric mean {SUBJECT} is {'; and '.join(parts)}."

    def _not(self) -> str:
        if not len(self.ours):
            return f"Where not: no {SUBJECT} cell was run."
        parts = []
        if len(self.run.duels):
            text = f"a peer is faster in {len(self.slower):,} of {plural(len(self.run.duels), 'cell')}"
            if self.slower:
                worst = self.slower[0]
                more = f"{duration(worst['cost_us'])} more than {worst['provider_peer']}"
                text += f" (it costs most at {worst['label']}: {more})"
            parts.append(text)
        if self.right:
            parts.append(f"a peer is more accurate in {len(self.less_accurate):,} of {self.right:,}")
        ours = self.ours[self.ours["status"] != "ok"]
        parts.append(f"{SUBJECT} cells that are not ok: {_by_status(ours) or 'none'}")
        return f"Where not: {'; '.join(parts)}."


def mean_error(pairs: pd.DataFrame) -> float:
    """Returns the share by which the geometric mean of `ratio` may be off at 95%; NaN where a cell has no interval.

    It says how well these cells were measured, and nothing about cells that were not.
    """
    return float(np.exp(1.96 * np.sqrt(pairs["log_variance"].sum(skipna=False)) / max(len(pairs), 1))) - 1


def _by_status(cells: pd.DataFrame) -> str:
    """`3 wrong, 12 unsupported`, in the order of the statuses."""
    counts = Counter(cells["status"])
    names = [*STATUSES, *sorted(set(counts).difference(STATUSES))]
    return ", ".join(f"{counts[name]:,} {name}" for name in names if name != "ok" and counts[name])


def summary_rows(run: LoadedRun) -> list[dict[str, Any]]:
    """Returns a row an operator and mode of the subject: right, fast, by how much, where not."""
    rows, worst = [], facts.worst_errors(run)
    for op in ordered(run.cells["op"]):
        for mode in ordered(run.ours.loc[run.ours["op"] == op, "mode"]):
            ours, duels, errors = (
                frame[(frame["op"] == op) & (frame["mode"] == mode)] for frame in (run.ours, run.duels, worst)
            )
            rows.append(
                {
                    "op": op,
                    "mode": mode,
                    "ok": int((ours["status"] == "ok").sum()),
                    "cells": len(ours),
                    "wrong": int((ours["status"] == "wrong").sum()),
                    "worst": errors["words"].iloc[0] if len(errors) else None,
                    "speedup": geomean(ours["speedup"]),
                    "low": ours["speedup"].min(),
                    "high": ours["speedup"].max(),
                    "peer": geomean(duels["ratio"]),
                    "lost": int((duels["ratio"] < 1).sum()),
                    "duels": len(duels),
                    "fraction": ours["roofline_fraction"].median(),
                }
            )
    return rows


def _context(run: LoadedRun) -> dict[str, Any]:
    verdict = RunVerdict(run)
    return {
        "sentences": verdict.sentences(),
        "cards": verdict.cards(),
        "models": facts.model_sentences(run),
        "warnings": warnings(run),
        "summary": summary_rows(run),
    }


SECTION = Section(10, "Verdict", _context)
