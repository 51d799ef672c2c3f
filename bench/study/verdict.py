"""What a study's runs say about each claim. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from bench.study.claims import EXPERIMENTS
from bench.study.experiment import Experiment, Gate
from bench.study.records import Run

Word = Literal["reproduced", "not reproduced", "not decided"]

# Seeds without which nothing is called reproduced: with fewer, what holds by luck in one of two is not told apart.
SEEDS, SEEDS_OF_A_SWEEP = 3, 1


@dataclass(frozen=True)
class Spread:
    """One value that a gate compares, over the seeds that have it."""

    condition: str
    name: str
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """One gate: seed -> whether it holds there (None: a run failed or is missing), and what that comes to."""

    experiment: Experiment
    gate: Gate
    outcomes: Mapping[int, bool | None]
    spreads: tuple[Spread, ...]
    word: Word


def verdicts(runs: Iterable[Run]) -> list[Verdict]:
    """A verdict a gate, of the experiments that have any run, in the order of claims.py."""
    found: dict[str, dict[tuple[str, int], Run]] = {}
    for run in runs:
        found.setdefault(run.experiment, {})[run.condition, run.seed] = run
    return [verdict for e in EXPERIMENTS if e.name in found for verdict in judged(e, list(found[e.name].values()))]


def judged(experiment: Experiment, runs: Sequence[Run]) -> Iterator[Verdict]:
    """A verdict a gate of one experiment, from its runs."""
    seeds = sorted({run.seed for run in runs})
    values = {
        seed: {
            (r.condition, name): v
            for r in runs
            if r.seed == seed and r.state != "failed"
            for name, v in r.values.items()
        }
        for seed in seeds
    }
    for gate in experiment.gates:
        outcomes = {
            seed: gate.holds(values[seed]) if all(shown in values[seed] for shown in gate.shows) else None
            for seed in seeds
        }
        spreads = tuple(
            _spread(*shown, [values[s][shown] for s in seeds if shown in values[s]]) for shown in gate.shows
        )
        yield Verdict(experiment, gate, outcomes, spreads, _word(experiment, list(outcomes.values())))


def overall(of_one: Sequence[Verdict]) -> Word | None:
    """What the gates of one experiment come to together; None where it has none, and is only reported."""
    words = {verdict.word for verdict in of_one}
    if not words:
        return None
    return next((word for word in ("not reproduced", "not decided") if word in words), "reproduced")


def _word(experiment: Experiment, outcomes: Sequence[bool | None]) -> Word:
    """Held in every seed of enough; failed in most of all; or neither."""
    if outcomes.count(False) > len(outcomes) / 2:
        return "not reproduced"
    enough = SEEDS_OF_A_SWEEP if experiment.sweep else SEEDS
    return "reproduced" if len(outcomes) >= enough and all(outcomes) else "not decided"


def _spread(condition: str, name: str, values: Sequence[float]) -> Spread:
    nothing = float("nan")
    if not values:
        return Spread(condition, name, nothing, nothing, nothing)
    return Spread(condition, name, median(values), min(values), max(values))
