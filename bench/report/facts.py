"""Facts about a run that several sections of the report state."""

from typing import Any

import pandas as pd

from bench.results.headline import Headline, headlines
from bench.results.load import LoadedRun


def judged(cells: pd.DataFrame) -> pd.DataFrame:
    """Returns the cells whose outputs were compared with float64."""
    return cells[cells["status"].isin(["ok", "wrong", "impossible"])]


def worst_errors(run: LoadedRun) -> pd.DataFrame:
    """Returns the subject's worst tensor of each cell, the worst first."""
    errors = run.errors[run.errors["provider"] == run.subject]
    errors = errors.sort_values(["pressure", "cell", "tensor"], ascending=[False, True, True])
    return errors.drop_duplicates(["cell", "case"])


def providers(run: LoadedRun) -> dict[str, dict[str, Any]]:
    """Returns what the environment says about each provider."""
    listed = run.environment["providers"]
    return {n: p for n, p in listed.items() if isinstance(p, dict)} if isinstance(listed, dict) else {}


def models(run: LoadedRun) -> list[Headline]:
    """Returns what a model's norms take together, where the run measured a model's preset and some provider has all."""
    if not run.has_speed or not isinstance(run.environment["arguments"], dict):
        return []
    return [found for found in headlines(run.records, run.environment) if found.parts]


def model_sentences(run: LoadedRun) -> list[str]:
    """Returns a sentence for each of `models`."""
    return [headline.sentence(run.baseline, run.subject) for headline in models(run)]
