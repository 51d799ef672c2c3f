"""The figures of a study, drawn as the literature draws them, with a line, band or bar for each condition."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from math import isfinite
from statistics import median

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from bench.page import svg
from bench.page.chart import log_limits, slug
from bench.page.formatting import number, plural
from bench.page.palette import Key
from bench.page.templating import Panel
from bench.results.numbers import short
from bench.results.thresholds import POINTS_DRAWN
from bench.study.experiment import Experiment, Figure
from bench.study.records import StudyRun

WIDTH, HEIGHT = 4.4, 2.9  # inches; the page scales them
MARKS = 7  # markers of a curve, by which conditions are told apart without their colours
TICKS = 9  # settings of a sweep that each have a tick of their own
# A run that blows up is drawn up to this many times all others: it may reach 1e30 before it ends, and would press the
# others onto the axis.
FOLLOWED = 3.0
NUMBERS = ["x", "y", "low", "high"]

Legend = dict[str, Key]


def panels(experiment: Experiment, runs: Sequence[StudyRun], legend: Legend) -> list[Panel]:
    """Returns those of an experiment's figures that have something to draw."""
    found: list[Panel] = []
    for how in (experiment.figure, *experiment.also):
        name = slug("study", experiment.name, *[how.series] * (how in experiment.also))
        if image := _image(how, runs, legend, name):
            found.append(Panel(how.y, image))
    return found


def _image(how: Figure, runs: Sequence[StudyRun], legend: Legend, name: str) -> Markup | None:
    if how.kind == "bars":
        return _bars(how, runs, legend, name)
    frame = points(runs, how.series)
    if frame["y"].isna().all():
        return None
    with svg.style():
        drawing = svg.new(WIDTH, HEIGHT)
        axes = drawing.subplots()
        said = {"curves": _curves, "bands": _bands, "lines": _lines}[how.kind](axes, frame, legend)
        _scales(axes, how, frame)
        axes.set_xlabel(how.x)
        drawing.subplots_adjust(left=0.13, right=0.97, bottom=0.17, top=0.96)
        return svg.inline(drawing, name, f"{how.y} against {how.x}: {'; '.join(said)}")


def _curves(axes: Axes, frame: pd.DataFrame, legend: Legend) -> list[str]:
    """Draws a line through the median of the seeds, a band over their range, a cross where a run diverged."""
    said = []
    for key, part in _by_condition(frame, legend):
        drawn = over_seeds(part)
        axes.fill_between(drawn["x"], drawn["low"], drawn["high"], color=key.colour, alpha=0.2, linewidth=0, zorder=2)
        axes.plot(
            drawn["x"], drawn["y"], color=key.colour, linewidth=1.6, marker=key.marker, markersize=5,
            markeredgecolor=svg.PAPER, markeredgewidth=0.6, markevery=max(1, len(drawn) // MARKS), zorder=3,
            gid=slug("line", key.provider),
        )  # fmt: skip
        said.append(f"{key.provider} ends at {number(drawn['y'].iloc[-1])}{_diverged(part)}")
    _crosses(axes, frame, legend)
    return said


def _bands(axes: Axes, frame: pd.DataFrame, legend: Legend) -> list[str]:
    """Draws a band from `low` to `high`, each the median of the seeds; the widest lies behind the others."""
    said = []
    parts = [(key, part, over_seeds(part, band=True)) for key, part in _by_condition(frame, legend)]
    for key, part, drawn in sorted(parts, key=lambda one: -float((one[2]["high"] - one[2]["low"]).median())):
        axes.fill_between(
            drawn["x"], drawn["low"], drawn["high"], facecolor=key.colour, alpha=0.45, linewidth=0,
            gid=slug("band", key.provider),
        )  # fmt: skip
        for end in ("low", "high"):
            axes.plot(drawn["x"], drawn[end], color=key.colour, linewidth=0.9)
        low, high = (number(drawn[end].median()) for end in ("low", "high"))
        said.append(f"{key.provider} lies between {low} and {high} (medians over the steps){_diverged(part)}")
    _crosses(axes, frame, legend)
    return said


def _lines(axes: Axes, frame: pd.DataFrame, legend: Legend) -> list[str]:
    """Draws a line over the swept quantity, and a cross at the top where a setting's runs diverged."""
    said = []
    for place, (key, part) in enumerate(_by_condition(frame, legend)):
        drawn = part.groupby("x", as_index=False).agg({"y": "median", "low": "min", "high": "max"})
        if len(drawn) > 1:
            axes.fill_between(
                drawn["x"], drawn["low"], drawn["high"], color=key.colour, alpha=0.2, linewidth=0, zorder=2,
                gid=slug("band", key.provider),
            )  # fmt: skip
        else:
            axes.vlines(drawn["x"], drawn["low"], drawn["high"], color=key.colour, alpha=0.45, linewidth=2.4, zorder=2)
        axes.plot(
            drawn["x"], drawn["y"], color=key.colour, marker=key.marker, markersize=5.5, markeredgecolor=svg.PAPER,
            markeredgewidth=0.6, linewidth=1.3, zorder=3, gid=slug("line", key.provider),
        )  # fmt: skip
        lost = sorted(set(part.loc[part["y"].isna(), "x"]))
        axes.plot(
            lost, np.full(len(lost), 0.97 - 0.06 * place), "x", color=key.colour, markersize=6, markeredgewidth=1.8,
            transform=axes.get_xaxis_transform(), gid=slug("diverged", key.provider),
        )  # fmt: skip
        middle = part.groupby("x")["y"].median()
        values = [f"{number(y) if np.isfinite(y) else 'diverged'} at {short(x)}" for x, y in middle.items()]
        said.append(f"{key.provider} {', '.join(values)}")
    return said


def _bars(how: Figure, runs: Sequence[StudyRun], legend: Legend, name: str) -> Markup | None:
    """Draws a bar to the median of the seeds and a line over their range; counts runs that diverged in words."""
    values: dict[str, list[float]] = {}
    for run in runs:
        if how.series in run.values:
            values.setdefault(run.condition, []).append(run.values[how.series])
    shown = [condition for condition in legend if condition in values]
    if not any(map(isfinite, chain(*values.values()))):
        return None
    height = 0.75 + 0.42 * len(shown)
    with svg.style():
        drawing = svg.new(WIDTH, height)
        axes = drawing.subplots()
        said = []
        for row, condition in enumerate(shown):
            finite = [value for value in values[condition] if isfinite(value)]
            middle, lost = median(finite or [0.0]), len(values[condition]) - len(finite)
            words = " ".join([number(middle)] * bool(finite) + [f"({lost} diverged)"] * bool(lost))
            axes.barh(row, middle, height=0.6, color=legend[condition].colour, gid=slug("bar", condition))
            if finite:
                axes.hlines(row, min(finite), max(finite), color=svg.INK, linewidth=1.4)
            axes.annotate(
                words, (max([middle, *finite]), row), (5, 0), textcoords="offset points", va="center", fontsize=8.5,
                color=svg.INK,
            )  # fmt: skip
            said.append(f"{condition} {words}")
        axes.set_yticks(range(len(shown)), shown)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.margins(x=0.16)
        axes.set_xlim(left=0)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(how.y)
        drawing.subplots_adjust(left=0.27, right=0.98, bottom=0.5 / height, top=1 - 0.06 / height)
        return svg.inline(drawing, name, f"{how.y}: {'; '.join(said)}")


def _by_condition(frame: pd.DataFrame, legend: Legend) -> list[tuple[Key, pd.DataFrame]]:
    """Returns the conditions that have a finite point, in the order of the experiment."""
    parts = {str(name): part for name, part in frame.groupby("condition") if part["y"].notna().any()}
    return [(key, parts[name]) for name, key in legend.items() if name in parts]


def _crosses(axes: Axes, frame: pd.DataFrame, legend: Legend) -> None:
    """Draws a cross at the last finite point of each run that diverged, or at the edge that it left the figure by."""
    seen = frame[frame["diverged"] & frame["y"].notna()]
    last = seen.sort_values("x").groupby(["condition", "seed"], as_index=False).last()
    for name, ends in last.groupby("condition"):
        axes.plot(
            ends["x"], ends["high"].clip(upper=_top(frame)), "x", color=legend[str(name)].colour, markersize=7,
            markeredgewidth=2, clip_on=False, zorder=5, gid=slug("diverged", str(name)),
        )  # fmt: skip


def _diverged(part: pd.DataFrame) -> str:
    runs = part.groupby("seed")["diverged"].any()
    return f", and {runs.sum()} of {plural(len(runs), 'run')} diverged" if runs.any() else ""


def _top(frame: pd.DataFrame) -> float:
    """Returns the highest value that is drawn of curves and bands."""
    whole = frame.loc[~frame["diverged"], "high"]
    first = frame.loc[frame["x"] == frame["x"].min(), "high"]
    return min(float(frame["high"].max()), FOLLOWED * float((whole if whole.notna().any() else first).max()))


def _scales(axes: Axes, how: Figure, frame: pd.DataFrame) -> None:
    # Each setting of a sweep is drawn in full, even where others diverged.
    top = float(frame["high"].max()) if how.kind == "lines" else _top(frame)
    values = pd.concat([frame["low"], frame["high"]]).dropna().clip(upper=top)
    if "y" in how.log:
        axes.set_yscale("log")
        low, high = log_limits(values[values > 0])
        axes.set_ylim(low, high)
        _log_ticks(axes.yaxis, high / low)
    else:
        spare = 0.05 * (top - float(values.min())) or 0.05 * abs(top) or 1.0
        axes.set_ylim(float(values.min()) - spare, top + spare)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    settings = sorted(set(frame["x"]))
    if "x" in how.log:
        axes.set_xscale("log")
        _log_ticks(axes.xaxis, settings[-1] / settings[0])
    if how.kind == "lines" and len(settings) <= TICKS:
        axes.xaxis.set_major_locator(FixedLocator(settings))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _log_ticks(axis: Axis, span: float) -> None:
    """Puts some five ticks at round values; matplotlib's own are powers of ten, or none within a decade."""
    axis.set_major_locator(LogLocator(subs=(1.0,) if span > 100 else (1.0, 2.0, 5.0), numticks=6))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def points(runs: Iterable[StudyRun], series: str) -> pd.DataFrame:
    """Returns `condition`, `seed`, `x`, `y`, `low` and `high` of a series; of a band `y` is the middle.

    What is not finite is NaN. `diverged` is True in all rows of a run that has such a point or stops before others.
    """
    frames = [pd.DataFrame(columns=["condition", "seed", *NUMBERS])]
    for run in runs:
        if recorded := run.series.get(series):
            low, high = (np.asarray(recorded.get(end, recorded.get("y")), float) for end in ("low", "high"))
            frame = pd.DataFrame({"x": recorded["x"], "low": low, "high": high}).replace([np.inf, -np.inf], np.nan)
            frames.append(frame.assign(condition=run.condition, seed=run.seed, y=(frame["low"] + frame["high"]) / 2))
    frame = pd.concat(frames[1:] or frames, ignore_index=True).astype(dict.fromkeys(NUMBERS, float))
    by_run = frame.assign(lost=frame["y"].isna()).groupby(["condition", "seed"])
    stopped = by_run["x"].transform("max") < frame["x"].max()
    return frame.assign(diverged=stopped | by_run["lost"].transform("any"))


def over_seeds(frame: pd.DataFrame, band: bool = False) -> pd.DataFrame:
    """Returns one condition's median at each x over the seeds that are finite there, and their range.

    Of a band the ends are medians themselves. Of more points than can be told apart, neighbours make one.
    """
    low, high = ("median", "median") if band else ("min", "max")
    drawn = frame.groupby("x", as_index=False).agg({"y": "median", "low": low, "high": high})
    place = np.arange(len(drawn)) * POINTS_DRAWN // max(len(drawn), POINTS_DRAWN)
    return drawn.groupby(place).agg({"x": "median", "y": "median", "low": "min", "high": "max"}).dropna()
