"""The series of a study's runs as frames: one row a point, and over the seeds one row an x. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from bench.results.thresholds import POINTS_DRAWN
from bench.study.records import Run

NUMBERS = ["x", "y", "low", "high"]


def points(runs: Iterable[Run], series: str) -> pd.DataFrame:
    """`condition`, `seed`, `x`, `y`, `low` and `high` of a series; of a band `y` is the middle.

    What is not finite is NaN, and `diverged` says of each row whether its run has such a point or stops before others.
    """
    frames = [_of(run, series) for run in runs if series in run.series]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["condition", "seed", *NUMBERS])
    frame = frame.astype(dict.fromkeys(NUMBERS, float))
    by_run = frame.groupby(["condition", "seed"])
    stopped = by_run["x"].transform("max") < frame["x"].max()
    return frame.assign(
        diverged=stopped | frame["y"].isna().groupby([frame["condition"], frame["seed"]]).transform("any")
    )


def _of(run: Run, series: str) -> pd.DataFrame:
    recorded = {axis: np.asarray(values, float) for axis, values in run.series[series].items()}
    low, high = (recorded.get(end, recorded.get("y")) for end in ("low", "high"))
    frame = pd.DataFrame({"x": recorded["x"], "low": low, "high": high}).replace([np.inf, -np.inf], np.nan)
    return frame.assign(condition=run.condition, seed=run.seed, y=(frame["low"] + frame["high"]) / 2)


def over_seeds(frame: pd.DataFrame, band: bool = False) -> pd.DataFrame:
    """Of one condition at each x: the median of the seeds that are finite there, and their range.

    Of a band the ends are medians themselves. Of more points than can be told apart, neighbours make one.
    """
    ends = ("median", "median") if band else ("min", "max")
    drawn = frame.groupby("x", as_index=False).agg({"y": "median", "low": ends[0], "high": ends[1]})
    place = np.arange(len(drawn)) * POINTS_DRAWN // max(len(drawn), POINTS_DRAWN)
    return drawn.groupby(place).agg({"x": "median", "y": "median", "low": "min", "high": "max"}).dropna()


def last_finite(frame: pd.DataFrame) -> pd.DataFrame:
    """Where each run that diverged was last seen: one row a run."""
    seen = frame[frame["diverged"] & frame["y"].notna()]
    return seen.sort_values("x").groupby(["condition", "seed"], as_index=False).last()
