"""A study's folder, read: its environment, its runs and what they come to. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.results.load import UnreadableRun, read_environment
from bench.study.claims import EXPERIMENTS
from bench.study.experiment import Experiment
from bench.study.records import FILE, Run, read
from bench.study.verdict import Verdict, Word, overall, verdicts

__all__ = ["FILE", "Study", "holds_study", "load"]


@dataclass(frozen=True)
class Study:
    """Everything that the page is made from; of two runs of the same condition and seed the later one."""

    folder: Path
    environment: Mapping[str, Any]
    runs: tuple[Run, ...]

    @cached_property
    def experiments(self) -> list[Experiment]:
        """Those with a run, in the order of claims.py."""
        found = {run.experiment for run in self.runs}
        return [experiment for experiment in EXPERIMENTS if experiment.name in found]

    @cached_property
    def verdicts(self) -> dict[str, list[Verdict]]:
        """The gates of each experiment, judged; of one without a gate an empty list."""
        found: dict[str, list[Verdict]] = {experiment.name: [] for experiment in self.experiments}
        for verdict in verdicts(self.runs):
            found[verdict.experiment.name].append(verdict)
        return found

    def word(self, experiment: Experiment) -> Word | None:
        """What an experiment comes to; None where it has no gate."""
        return overall(self.verdicts[experiment.name])

    def having(self, word: Word | None) -> list[Experiment]:
        """The experiments that come to this."""
        return [experiment for experiment in self.experiments if self.word(experiment) == word]

    def of(self, experiment: Experiment) -> list[Run]:
        """An experiment's runs: conditions in their order, and seeds in theirs."""
        order = experiment.conditions
        runs = [run for run in self.runs if run.experiment == experiment.name and run.condition in order]
        return sorted(runs, key=lambda run: (order.index(run.condition), run.seed))

    @property
    def seeds(self) -> list[int]:
        """Every seed that has a run."""
        return sorted({run.seed for run in self.runs})


def holds_study(folder: Path) -> bool:
    """Whether a folder holds a study, and not a run of bench.run."""
    return (folder / FILE).exists()


def load(folder: Path) -> Study:
    """Reads study.jsonl and environment.json; raises UnreadableRun, with one line, where one is missing or broken."""
    path = folder / FILE
    described = read_environment(folder)
    try:
        runs = {run.key: run for run in read(folder)}
    except FileNotFoundError:
        raise UnreadableRun(f"{path}: no such file; python -m bench.study writes one line a run there") from None
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UnreadableRun(f"{path}: a line is not a run ({error})") from None
    return Study(folder, described, tuple(runs.values()))
