"""The first screen: cards and three sentences, generated from the facts."""

from __future__ import annotations

from functools import cached_property

import pandas as pd

from bench.page.card import Card
from bench.page.formatting import duration, percent, plural, times
from bench.report import facts, losses
from bench.report.facts import spread_line
from bench.results.load import Run
from bench.results.thresholds import ACCURACY_MARGIN, LEAST_SHOWN, NOISY_SPREAD, SUBJECT


class Verdict:
    """The cards and sentences of one run."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @cached_property
    def ours(self) -> pd.DataFrame:
        return facts.subject_cells(self.run)

    @cached_property
    def judged(self) -> pd.DataFrame:
        return facts.judged(self.ours)

    @cached_property
    def wrong(self) -> int:
        return int((self.judged["status"] == "wrong").sum())

    @cached_property
    def right(self) -> int:
        return len(self.judged) - self.wrong

    @cached_property
    def worst(self) -> str:
        """The subject's worst figure and its cell; empty where there is none."""
        errors = facts.worst_errors(self.run)
        return f"{errors['text'].iloc[0]}, {errors['label'].iloc[0]}" if len(errors) else ""

    @cached_property
    def speedups(self) -> pd.Series:
        return self.ours["speedup"].dropna()

    @cached_property
    def slower(self) -> list[losses.Slower]:
        return losses.slower(self.run)

    @cached_property
    def less_accurate(self) -> list[losses.LessAccurate]:
        return losses.less_accurate(self.run)

    def cards(self) -> list[Card]:
        """Speed is judged only where a GPU's clock timed it."""
        speed = self._speed_cards() if self.run.has_speed else [self._no_speed_card()]
        accurate = [self._peer_accuracy_card()] if self.right else []
        return [self._accuracy_card(), *self._impossible_cards(), *speed, *accurate, self._failure_card()]

    def sentences(self) -> list[str]:
        """Is it right, is it faster, and where not."""
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
        """A red card where a time was shorter than the memory can make it."""
        cells = self.run.cells[self.run.cells["status"] == "impossible"]
        if not len(cells):
            return []
        by = ", ".join(f"{len(part):,} of {name}" for name, part in cells.groupby("provider"))
        detail = f"{by}: faster than the memory can be, so something else was timed. None has a speedup."
        return [Card("Impossible times", plural(len(cells), "cell"), detail, "bad")]

    def _no_speed_card(self) -> Card:
        ran = "ran in Triton's interpreter" if self.run.interpreted else "were not timed on a GPU"
        return Card("Speed", "needs a GPU", f"The kernels {ran}; no time here says how fast they are.")

    def _speed_cards(self) -> list[Card]:
        timed = self.run.cells[self.run.cells["timed"]]
        cards = [
            self._mean_card(f"Speed against {self.run.baseline}", self.speedups, self.run.against),
            self._mean_card("Speed against each cell's best peer", self.run.duels["ratio"], self.run.duels),
        ]
        if len(self.run.duels):
            cards.append(self._worst_card(self.run.duels))
        fractions = self.ours.dropna(subset=["roofline_fraction"])
        if len(fractions):
            low = fractions.loc[fractions["roofline_fraction"].idxmin()]
            detail = f"Median of {plural(len(fractions), 'cell')}{facts.bandwidth_line(self.run)}; "
            detail += f"lowest {percent(low['roofline_fraction'])}, {low['label']}"
            cards.append(Card("Share of the copy bandwidth", percent(fractions["roofline_fraction"].median()), detail))
        noisy = int((timed["spread"] > NOISY_SPREAD).sum())
        detail = f"Median spread, p10 to p90; {noisy:,} of {plural(len(timed), 'timed cell')} above {NOISY_SPREAD:.0%}"
        cards.append(Card("Noise", percent(timed["spread"].median()), detail, "caution" if noisy else "good"))
        return cards

    def _mean_card(self, title: str, ratios: pd.Series, pairs: pd.DataFrame) -> Card:
        mean = facts.geomean(ratios)
        if mean is None:
            return Card(title, "none", f"No right {SUBJECT} cell has a time beside it.", "caution")
        detail = f"Geometric mean of {plural(len(ratios), 'cell')}"
        if len(pairs) == len(ratios) and (interval := facts.geomean_interval(pairs)):
            error = interval[1] / mean - 1
            detail += f", {f'±{percent(error)}' if error >= LEAST_SHOWN else f'within ±{percent(LEAST_SHOWN)}'} (95%)"
        return Card(title, times(mean), f"{detail}; cells from {spread_line(ratios)}", "good" if mean >= 1 else "bad")

    def _worst_card(self, duels: pd.DataFrame) -> Card:
        worst, clear = duels.loc[duels["ratio"].idxmin()], sum(loss.clear for loss in self.slower)
        detail = f"{worst['label']}, against {worst['provider_peer']}. "
        detail += f"A peer is faster in {len(self.slower):,} of {plural(len(duels), 'cell')}"
        detail += f", in {clear:,} beyond the noise." if self.slower else "."
        return Card("Worst cell", times(worst["ratio"]), detail, "caution" if self.slower else "good")

    def _peer_accuracy_card(self) -> Card:
        title = "Cells where a peer is more accurate"
        if not self.less_accurate:
            detail = f"By more than {ACCURACY_MARGIN:.0%}, in any tensor, counting right cells alone"
            return Card(title, f"0 of {self.right:,}", detail, "good")
        worst = self.less_accurate[0]
        detail = (
            f"By more than {ACCURACY_MARGIN:.0%} in some tensor; widest {worst.tensor} {times(worst.ratio)} "
            f"the error of {worst.peer}, {worst.link.label}"
        )
        return Card(title, f"{len(self.less_accurate):,} of {self.right:,}", detail, "caution")

    def _failure_card(self) -> Card:
        cells = self.run.cells
        failed, ours = cells[cells["status"] != "ok"], int((self.ours["status"] != "ok").sum())
        if not len(cells):
            return Card("Cells not ok", "no cells", "Nothing was run.", "caution")
        if not len(failed):
            return Card("Cells not ok", f"0 of {len(cells):,}", "Every provider served every cell.", "good")
        detail = f"{facts.by_status(failed)}; {ours:,} of them {SUBJECT}"
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
        mean, peer = facts.geomean(self.speedups), facts.geomean(self.run.duels["ratio"])
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
                text += f" (it costs most at {worst.link.label}: {duration(worst.cost_us)} more than {worst.peer})"
            parts.append(text)
        if self.right:
            parts.append(f"a peer is more accurate in {len(self.less_accurate):,} of {self.right:,}")
        ours = self.ours[self.ours["status"] != "ok"]
        missing = facts.by_status(ours)
        parts.append(f"{SUBJECT} cells that are not ok: {missing or 'none'}")
        return f"Where not: {'; '.join(parts)}."
