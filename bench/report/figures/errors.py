"""Figures of error: every tensor beside its bound, and a tensor's error against size and against the mean."""

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from bench.page import svg
from bench.page.axes import WIDTH, lines, log_axis, log_limits, size_axis, slug, ticks
from bench.page.palette import Key
from bench.results.numbers import short
from bench.results.thresholds import BOUNDS, LARGEST_NORMAL_OFFSET, SMALLEST_SHARE


def bounds_of(errors: pd.DataFrame, figure_name: str, dtype: str) -> tuple[float, float] | None:
    """Returns the lowest and highest bound that the records carry for a figure and dtype, or the published ones."""
    carried = errors.loc[(errors["decided_by"] == figure_name) & (errors["dtype"] == dtype), "bound"].dropna()
    return (float(carried.min()), float(carried.max())) if len(carried) else BOUNDS.get((figure_name, dtype))


def error_figure(
    errors: pd.DataFrame, figure_name: str, bounds: tuple[float, float] | None, legend: dict[str, Key], name: str
) -> tuple[Markup, int] | None:
    """Draws for each tensor and provider the median of a figure (the marker) and its whole range (the bar).

    Returns the image and how many values were not finite; None where none was.
    """
    drawn = errors[np.isfinite(errors[figure_name])]
    undrawn = int(errors[figure_name].notna().sum()) - len(drawn)
    if not len(drawn):
        return None
    tensors = list(dict.fromkeys(drawn["tensor"]))
    shown = [key for key in legend.values() if key.provider in set(drawn["provider"])]
    floor = (bounds[0] if bounds else float(drawn[figure_name].max()) or 1.0) * SMALLEST_SHARE
    drawn = drawn.assign(**{figure_name: drawn[figure_name].clip(lower=floor)})
    height = 0.75 + len(tensors) * (0.14 + 0.13 * len(shown))
    with svg.drawing(WIDTH, height, (0.22, 0.96, 0.5 / height, 1 - 0.06 / height)) as (figure, axes):
        for place, key in enumerate(shown):
            part = drawn[drawn["provider"] == key.provider].groupby("tensor")[figure_name]
            offset = (place - (len(shown) - 1) / 2) * 0.78 / len(shown)
            here = [tensor for tensor in tensors if tensor in part.groups]
            heights = [tensors.index(tensor) + offset for tensor in here]
            axes.hlines(heights, part.min()[here], part.max()[here], color=key.colour, linewidth=1.8, alpha=0.7)
            axes.plot(
                part.median()[here], heights, key.marker, color=key.colour, markersize=5.5, markeredgecolor=svg.PAPER,
                markeredgewidth=0.6, zorder=4, gid=slug("dots", key.provider),
            )  # fmt: skip
        for bound in set(bounds or ()):
            axes.axvline(bound, color=svg.LIMIT, linewidth=1.4, zorder=1)
        if bounds:
            axes.axvspan(*bounds, color=svg.LIMIT, alpha=0.12, linewidth=0, zorder=0)
        axes.set_yticks(range(len(tensors)), tensors)
        axes.set_ylim(len(tensors) - 0.5, -0.5)
        axes.grid(False, axis="y")
        for line in range(1, len(tensors)):
            axes.axhline(line - 0.5, color=svg.GRID, linewidth=0.7, zorder=0)
        axes.tick_params(axis="y", length=0)
        ends = [drawn[figure_name].min(), drawn[figure_name].max(), *(bounds or ())]
        low, high = min(ends), max(ends)
        if high / low < 4:
            spare = 0.06 * (high - low) or 0.06 * high
            _scale(axes, "x", low - spare, high + spare)
        else:
            spare = (high / low) ** 0.05
            _scale(axes, "x", low / spare, high * spare)
        axes.set_xlabel(figure_name)
        alt = f"{figure_name} of {', '.join(tensors)} for {', '.join(key.provider for key in shown)}"
        return svg.inline(figure, name, alt), undrawn


def against(
    errors: pd.DataFrame,
    figure_name: str,
    x: str,
    bounds: tuple[float, float] | None,
    legend: dict[str, Key],
    name: str,
) -> Markup:
    """Draws one tensor's error against `size` or `mean/std` of x: the median, and a band over all cells.

    `errors` has finite, positive values of the figure and a column named by `x`.
    """
    drawn = errors.assign(low=errors[figure_name], high=errors[figure_name])
    with svg.drawing(WIDTH, 2.5, (0.18, 0.97, 0.19, 0.97)) as (figure, axes):
        lines(axes, drawn, legend, x, figure_name)
        for bound in sorted(set(bounds or ())):
            axes.axhline(bound, color=svg.LIMIT, linewidth=1.4, zorder=1, gid=slug("bound", short(bound)))
        if bounds:
            axes.axhspan(*bounds, color=svg.LIMIT, alpha=0.12, linewidth=0, zorder=0)
        _scale(axes, "y", *log_limits(drawn[figure_name], *(bounds or ())))
        if x == "size":
            size_axis(axes, drawn[x])
        else:
            axes.set_xscale("log")
            largest = lambda value: f"≤ {value:g}" if value == LARGEST_NORMAL_OFFSET else short(value)
            ticks(axes.xaxis, FixedLocator(sorted(drawn[x].unique())), largest)
        axes.set(xlabel=f"{x} of x", ylabel=figure_name)
        return svg.inline(figure, name, f"{figure_name} against {x} of x for {', '.join(legend)}")


def _scale(axes: Axes, which: str, low: float, high: float) -> None:
    """Makes an axis logarithmic, but for a range so narrow that a logarithmic one has no round tick in it."""
    if high / low < 4:
        axes.set(**{f"{which}lim": (low, high)})
        ticks(getattr(axes, f"{which}axis"), MaxNLocator(4), short)
    else:
        log_axis(axes, which, (low, high), (1.0,) if high / low > 100 else (1.0, 2.0, 5.0), short, 6)
