"""A study's folder, read: its environment, its runs and the verdict on each claim. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, isnan
from pathlib import Path
from statistics import median
from typing import Any, Literal

from bench.page.formatting import number, plural
from bench.page.templating import Card
from bench.results.load import UnreadableRun, read_environment
from bench.results.numbers import DASH
from bench.study.experiment import Experiment, Gate
from bench.study.experiments import BY_NAME
from bench.study.records import FILE as FILE
from bench.study.records import StudyRun, read

Word = Literal["reproduced", "not reproduced", "not decided"]
TONES: dict[Word | None, str] = {"reproduced": "good", "not reproduced": "bad", "not decided": "caution", None: "plain"}

# Fewer seeds call nothing reproduced: with two, what holds by luck in one of them is not told apart.
SEEDS, SEEDS_OF_A_SWEEP = 3, 1


@dataclass(frozen=True)
class GateVerdict:
    """One gate: seed -> whether it holds there (None: a run failed or is missing), and the verdict over all seeds."""

    experiment: Experiment
    gate: Gate
    outcomes: Mapping[int, bool | None]
    compared: tuple[tuple[str, str, str], ...]  # condition, value's name, median and range over the seeds
    word: Word

    @property
    def seeds_held(self) -> str:
        """The count of seeds in which the gate holds: `2 of 3 seeds, in 1 a run failed or is missing`."""
        outcomes = Counter(self.outcomes.values())
        text = f"{outcomes[True]} of {plural(len(self.outcomes), 'seed')}"
        return f"{text}, in {outcomes[None]} a run failed or is missing" if outcomes[None] else text


@dataclass(frozen=True)
class Study:
    """The content of a study's folder; `runs` has each experiment, condition and seed once."""

    folder: Path
    environment: Mapping[str, Any]
    runs: tuple[StudyRun, ...]

    @cached_property
    def experiments(self) -> list[Experiment]:
        """The experiments that have a run, in their order."""
        found = {run.experiment for run in self.runs}
        return [experiment for name, experiment in BY_NAME.items() if name in found]

    @cached_property
    def verdicts(self) -> dict[str, list[GateVerdict]]:
        """The verdict on each gate of each experiment; an empty list where it has none."""
        return {experiment.name: list(judged(experiment, self.of(experiment))) for experiment in self.experiments}

    def word(self, experiment: Experiment) -> Word | None:
        """The verdict on an experiment; None where it has no gate."""
        return overall(self.verdicts[experiment.name])

    def having(self, word: Word | None) -> list[Experiment]:
        """The experiments with this verdict."""
        return [experiment for experiment in self.experiments if self.word(experiment) == word]

    def of(self, experiment: Experiment) -> list[StudyRun]:
        """An experiment's runs, sorted by condition and seed."""
        order = experiment.conditions
        runs = [run for run in self.runs if run.experiment == experiment.name and run.condition in order]
        return sorted(runs, key=lambda run: (order.index(run.condition), run.seed))


def holds_study(folder: Path) -> bool:
    """Returns True where a folder holds a study, False where it holds a run of bench.run."""
    return (folder / FILE).exists()


def load(folder: Path) -> Study:
    """Reads study.jsonl and environment.json; raises UnreadableRun, with one line, where one is missing or broken."""
    path = folder / FILE
    described = read_environment(folder)
    try:
        runs = {run.key: run for run in read(folder)}
    except FileNotFoundError:
        raise UnreadableRun(f"{path}: no such file; python -m bench.study writes one line a run there") from None
    except (OSError, ValueError) as error:
        raise UnreadableRun(str(error)) from None
    return Study(folder, described, tuple(runs.values()))


def judged(experiment: Experiment, runs: Sequence[StudyRun]) -> Iterator[GateVerdict]:
    """Yields a verdict for each gate of one experiment, from its runs."""
    values: dict[int, dict[tuple[str, str], float]] = {seed: {} for seed in sorted({run.seed for run in runs})}
    for run in runs:
        if run.state != "failed":
            values[run.seed].update({(run.condition, name): figure for name, figure in run.values.items()})
    for gate in experiment.gates:
        outcomes = {
            seed: gate.holds(*(found[shown] for shown in gate.shows)) if found.keys() >= set(gate.shows) else None
            for seed, found in values.items()
        }
        compared = tuple(
            (*shown, spread([found[shown] for found in values.values() if shown in found])) for shown in gate.shows
        )
        yield GateVerdict(experiment, gate, outcomes, compared, _word(experiment, list(outcomes.values())))


def _word(experiment: Experiment, outcomes: Sequence[bool | None]) -> Word:
    if outcomes.count(False) > len(outcomes) / 2:
        return "not reproduced"
    enough = SEEDS_OF_A_SWEEP if experiment.sweep else SEEDS
    return "reproduced" if len(outcomes) >= enough and all(outcomes) else "not decided"


def overall(of_one: Sequence[GateVerdict]) -> Word | None:
    """Returns the verdict of one experiment's gates together; None where it has none, and is only reported."""
    words = {verdict.word for verdict in of_one}
    if not words:
        return None
    return next((word for word in ("not reproduced", "not decided") if word in words), "reproduced")


def value(found: float | None) -> str:
    """Formats a value of a run: ∞ for what diverged or was never reached, a dash for what is missing."""
    return DASH if found is None or isnan(found) else number(found) if isfinite(found) else "∞"


def spread(values: Sequence[float]) -> str:
    """Formats median and range over the seeds: `0.946 (0.91 to 0.98)`; a dash where there are no values."""
    if not values:
        return DASH
    middle, low, high = median(values), min(values), max(values)
    return value(middle) if low == high or isnan(middle) else f"{value(middle)} ({value(low)} to {value(high)})"


def asked(study: Study) -> str:
    """Describes the study in a line."""
    return f"the literature's claims: {plural(len(study.experiments), 'experiment')}, {plural(len(study.runs), 'run')}"


def cards(study: Study) -> list[Card]:
    """Returns the counts that come first on a page."""

    def titles(experiments: Sequence[Experiment]) -> str:
        return ", ".join(experiment.title for experiment in experiments) or "None."

    judged = sum(bool(verdicts) for verdicts in study.verdicts.values())
    found = []
    for word, tone in TONES.items():
        having = study.having(word)
        if word:
            count, tone = f"{len(having)} of {judged}", tone if having else "plain"
            found.append(Card(word.capitalize(), count, titles(having), tone))
        else:
            found.append(Card("Reported, not judged", str(len(having)), titles(having)))
    counts = Counter(run.state for run in study.runs)
    about = "That is an answer too. Settings of a sweep that diverged are crosses in its figure."
    found.append(Card("Runs that diverged", f"{counts['diverged']} of {len(study.runs)}", about))
    if counts["failed"]:
        reason = next(run.reason for run in study.runs if run.state == "failed")
        found.append(Card("Runs that failed", f"{counts['failed']} of {len(study.runs)}", reason, "bad"))
    return found
