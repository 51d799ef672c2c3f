"""The table of all values as data for the pages' script: a row a value of a run. Imports no torch."""

from __future__ import annotations

import math
from typing import Any

from bench.study.records import Run
from bench.study.study import Study
from bench.study.words import value

# Titles, whether numbers stand there, and whether the column is hidden at first.
COLUMNS = (
    ("experiment", False, False),
    ("condition", False, False),
    ("seed", True, False),
    ("status", False, False),
    ("value", False, False),
    ("figure", True, False),
    ("seconds of the run", True, True),
)
NO_NUMBER = 1e300  # JSON has no infinity, and this is more than any


def payload(study: Study) -> dict[str, Any]:
    """Columns and rows as bench/report/sections/cells.py has them; a run without values is one row."""
    ordered = [run for experiment in study.experiments for run in study.of(experiment)]
    titles = {experiment.name: experiment.title for experiment in study.experiments}
    return {
        "noun": "value",
        "columns": [{"title": title, "numeric": numeric, "hidden": hidden} for title, numeric, hidden in COLUMNS],
        "rows": [
            _row(run, titles[run.experiment], name)
            for run in ordered
            for name in (*run.values, *[""] * (not run.values))
        ],
    }


def _row(run: Run, title: str, name: str) -> dict[str, Any]:
    return {
        "id": "/".join((*map(str, run.key), name)).rstrip("/"),
        "case": run.experiment,
        "why": run.reason,
        "is": [
            title,
            run.condition,
            [run.seed, str(run.seed)],
            run.state,
            name or None,
            _number(run.values[name]) if name else None,
            _number(run.seconds),
        ],
    }


def _number(found: float) -> list[Any] | None:
    if math.isnan(found):
        return None
    if math.isinf(found):
        return [math.copysign(NO_NUMBER, found), str(found)]
    return [float(f"{found:.7g}"), value(found)]
