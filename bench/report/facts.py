"""Facts about a run that several sections of the report state."""

from statistics import geometric_mean
from typing import Any

import pandas as pd

from bench.results.headline import Headline, headlines
from bench.results.load import LoadedRun
from bench.results.thresholds import SUBJECT


def geomean(values: pd.Series) -> float | None:
    """Returns the geometric mean of the values that are there, or None where there are none."""
    kept = values.dropna()
    return geometric_mean(kept) if len(kept) else None


def judged(cells: pd.DataFrame) -> pd.DataFrame:
    """Returns the cells whose outputs were compared with float64."""
    return cells[cells["status"].isin(["ok", "wrong", "impossible"])]


def worst_errors(run: LoadedRun) -> pd.DataFrame:
    """Returns the subject's worst tensor of each cell, the worst first."""
    errors = run.errors[run.errors["provider"] == SUBJECT]
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
    return [headline.sentence(run.baseline, SUBJECT) for headline in models(run)]
