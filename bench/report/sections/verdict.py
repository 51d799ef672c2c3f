"""The first screen: what is wrong, and how fast each operator is in each direction, beyond its mean."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pandas as pd

from bench.page.formatting import duration, number, percent, plural, spoken, times
from bench.page.templating import Card
from bench.report import facts
from bench.report.sections import Section
from bench.report.sections.losses import less_accurate, slower
from bench.report.sections.trust import warnings
from bench.report.tally import Tally, tally
from bench.results.load import LoadedRun, ordered
from bench.results.records import STATUSES
from bench.results.thresholds import ACCURACY_MARGIN, NOISY_SPREAD

NAMED = 3  # cells, or operators and directions, that a sentence names; the others it counts
NEVER_RAN = ("unsupported", "skipped")  # statuses that say nothing against a provider


class RunVerdict:
    """The cards and sentences of one run."""

    def __init__(self, run: LoadedRun) -> None:
        self.run, self.ours, self.judged = run, run.ours, facts.judged(run.ours)
        self.wrong = int((self.judged["status"] == "wrong").sum())
        self.impossible = int((self.judged["status"] == "impossible").sum())
        self.right = len(self.judged) - self.wrong
        errors = facts.worst_errors(run)
        self.worst = f"{errors['words'].iloc[0]}, {errors['label'].iloc[0]}" if len(errors) else ""
        self.slower, self.less_accurate = slower(run), less_accurate(run)
        self.directions = directions(run)

    @property
    def subject(self) -> str:
        """The provider that the verdict is about."""
        return self.run.subject

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
        """Returns whether it is right, how fast it is, and where not."""
        return [self._right(), *self._fast(), self._not()]

    def _accuracy_card(self) -> Card:
        title = f"Accuracy of {self.subject} against float64"
        if not len(self.judged):
            return Card(title, "not judged", f"No {self.subject} cell ran to its end.", "caution")
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
            self._tally_card(f"Speed against {self.run.baseline}", tally(self.run.against)),
            self._tally_card("Speed against each cell's best peer", tally(self.run.duels)),
        ]
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

    def _tally_card(self, title: str, found: Tally | None) -> Card:
        if found is None:
            return Card(title, "none", f"No right {self.subject} cell has a time beside it.", "caution")
        return Card(title, times(found.mean), found.detail, found.tone)

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
        failed = cells[~cells["status"].isin(["ok", *NEVER_RAN])]
        apart = _by_status(cells[cells["status"].isin(NEVER_RAN)])
        if not len(cells):
            return Card("Cells not ok", "no cells", "Nothing was run.", "caution")
        ours = int((failed["provider"] == self.subject).sum())
        told = f"{_by_status(failed)}; {ours:,} of them {self.subject}" if len(failed) else "Every cell that ran is ok"
        tone = "bad" if ours else "plain" if len(failed) or apart else "good"
        return Card(
            "Cells not ok", f"{len(failed):,} of {len(cells):,}", told + (f". Apart: {apart}" * bool(apart)), tone
        )

    def _right(self) -> str:
        if not len(self.judged):
            return f"No {self.subject} cell was compared with float64, so nothing can be said about its accuracy."
        if self.wrong:
            worst = f"; the worst is {self.worst}" if self.worst else ""
            return (
                f"Not right: {self.wrong:,} of {plural(len(self.judged), f'{self.subject} cell')} compared with "
                f"float64 {'is' if self.wrong == 1 else 'are'} wrong{worst}."
            )
        nearest = f"; nearest to its bound is {self.worst}" if self.worst else ""
        return f"Right: {plural(len(self.judged), f'{self.subject} cell')} compared with float64, none wrong{nearest}."

    def _fast(self) -> list[str]:
        """Returns a sentence for the baseline and one for the best peers, direction by direction."""
        if not self.run.has_speed:
            return ["Speed: this run has no cell timed on a GPU, so it says nothing about speed."]
        found = [
            _by_word(name, [(row["name"], row[key]) for row in self.directions if row[key]])
            for name, key in ((self.run.baseline, "baseline"), ("the best peer of each cell", "peer"))
            if any(row[key] for row in self.directions)
        ]
        return found or [f"Speed: no right {self.subject} cell has another provider's time beside it."]

    def others(self) -> list[str]:
        """Returns a sentence, or none, that names the wrong and impossible cells of every provider but the subject."""
        found = [group for group in suspects(self.run) if group["provider"] != self.subject]
        told = [
            f"{g['provider']} has {g['count']:,} {g['status']} ({_listed(c['label'] for c in g['cells'])})"
            for g in found
        ]
        return [f"Others that are not to be believed: {'; '.join(told)}."] if found else []

    def _not(self) -> str:
        if not len(self.ours):
            return f"Where not: no {self.subject} cell was run."
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
        parts.append(f"{self.subject} cells that are not ok: {_by_status(self.ours) or 'none'}")
        return f"Where not: {'; '.join(parts)}."


def _by_word(against: str, found: list[tuple[str, Tally]]) -> str:
    """Returns `Against torch: faster in layer norm fwd (1.6x; ...); mixed in layer norm bwd (...)`, the worst first."""
    parts = []
    for word in ("slower", "mixed", "level", "faster"):
        alike = [(name, one) for name, one in found if one.word == word]
        alike.sort(key=lambda part: part[1].worst["ratio"])
        if alike:
            named = _listed((f"{name} ({one.words})" for name, one in alike))
            parts.append(f"{word} in {named}")
    return f"Against {against}: {'; '.join(parts)}."


def _listed(every: Iterable[str]) -> str:
    texts = list(every)
    more = f" and {len(texts) - NAMED:,} more" if len(texts) > NAMED else ""
    return ", ".join(texts[:NAMED]) + more


def _by_status(cells: pd.DataFrame) -> str:
    """`3 wrong, 12 unsupported`, in the order of the statuses."""
    counts = Counter(cells["status"])
    names = [*STATUSES, *sorted(set(counts).difference(STATUSES))]
    return ", ".join(f"{counts[name]:,} {name}" for name in names if name != "ok" and counts[name])


def suspects(run: LoadedRun) -> list[dict[str, Any]]:
    """Returns the wrong and impossible cells of anyone, a group a provider and status, the subject's first."""
    cells = run.cells[run.cells["status"].isin(["wrong", "impossible"])]
    return [
        {"provider": name, "status": status, "count": len(part), "cells": part.to_dict("records")}
        for name in run.providers
        for status in ("wrong", "impossible")
        if len(part := cells[(cells["provider"] == name) & (cells["status"] == status)])
    ]


def directions(run: LoadedRun) -> list[dict[str, Any]]:
    """Returns a row an operator and mode of the subject: right, fast, by how much, where not."""
    rows, worst = [], facts.worst_errors(run)
    for op in ordered(run.cells["op"]):
        for mode in ordered(run.ours.loc[run.ours["op"] == op, "mode"]):
            ours, against, duels, errors = (
                frame[(frame["op"] == op) & (frame["mode"] == mode)]
                for frame in (run.ours, run.against, run.duels, worst)
            )
            baseline, peer = tally(against), tally(duels)
            status = Counter(ours["status"])
            failed = len(ours) - sum(status[name] for name in ("ok", *NEVER_RAN))
            speed = peer or baseline
            rows.append(
                {
                    "op": op,
                    "mode": mode,
                    "name": f"{spoken(op)} {mode}",
                    "word": "not ok" if failed else speed.word if speed else "right" if status["ok"] else "not run",
                    "tone": "bad" if failed else speed.tone if speed else "good" if status["ok"] else "plain",
                    "ok": status["ok"],
                    "cells": len(ours),
                    "failed": failed,
                    "apart": sum(status[name] for name in NEVER_RAN),
                    "worst": errors["words"].iloc[0] if len(errors) else None,
                    "baseline": baseline,
                    "peer": peer,
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
        "directions": verdict.directions,
        "suspects": suspects(run),
        "named": NAMED,
    }


SECTION = Section(10, "Verdict", _context)
