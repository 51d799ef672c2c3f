"""Figures of error: every tensor beside its bound, and a tensor's error against size and against the mean."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from bench.page import svg
from bench.page.axes import WIDTH, lines, log_limits, size_axis, slug
from bench.page.palette import Key
from bench.results.numbers import short
from bench.results.thresholds import BOUNDS, LARGEST_NORMAL_OFFSET, SMALLEST_SHARE


def bounds_of(errors: pd.DataFrame, figure_name: str, dtype: str) -> tuple[float, float] | None:
    """The lowest and highest bound that the records carry for this figure and dtype, or the published ones."""
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
    with svg.style():
        figure = svg.new(WIDTH, 0.75 + len(tensors) * (0.14 + 0.13 * len(shown)))
        axes = figure.subplots()
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
        _error_scale(axes, drawn[figure_name], bounds or ())
        axes.set_xlabel(figure_name)
        height = figure.get_figheight()
        figure.subplots_adjust(left=0.22, right=0.96, bottom=0.5 / height, top=1 - 0.06 / height)
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
    """One tensor's error against `size` of x or against `mean/std` of x: median, and a band over all cells.

    `errors` has finite, positive values of the figure and a column named by `x`.
    """
    drawn = errors.assign(low=errors[figure_name], high=errors[figure_name])
    with svg.style():
        figure = svg.new(WIDTH, 2.5)
        axes = figure.subplots()
        lines(axes, drawn, legend, x, figure_name)
        for bound in sorted(set(bounds or ())):
            axes.axhline(bound, color=svg.LIMIT, linewidth=1.4, zorder=1, gid=slug("bound", short(bound)))
        if bounds:
            axes.axhspan(*bounds, color=svg.LIMIT, alpha=0.12, linewidth=0, zorder=0)
        low, high = log_limits(drawn[figure_name], *(bounds or ()))
        if high / low < 4:
            axes.set_ylim(low, high)
            axes.yaxis.set_major_locator(MaxNLocator(4))
        else:
            axes.set_yscale("log")
            axes.set_ylim(low, high)
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 100 else (1.0, 2.0, 5.0), numticks=6))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        if x == "size":
            size_axis(axes, drawn[x])
        else:
            _offset_axis(axes, drawn[x])
        axes.set(xlabel=f"{x} of x", ylabel=figure_name)
        figure.subplots_adjust(left=0.18, right=0.97, bottom=0.19, top=0.97)
        return svg.inline(figure, name, f"{figure_name} against {x} of x for {', '.join(legend)}")


def _offset_axis(axes: Axes, offsets: pd.Series) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted(offsets.unique())))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"≤ {value:g}" if value == LARGEST_NORMAL_OFFSET else short(value))
    )


def _error_scale(axes: Axes, values: pd.Series, bounds: tuple[float, ...]) -> None:
    low, high = min(values.min(), *bounds, values.max()), max(values.max(), *bounds, values.min())
    written = FuncFormatter(lambda value, _: short(value))
    if high / low < 4:  # a log axis would have no round tick to stand on
        margin = 0.06 * (high - low) or 0.06 * high
        axes.set_xlim(low - margin, high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(written)
        return
    axes.set_xscale("log")
    axes.set_xlim(low / (high / low) ** 0.05, high * (high / low) ** 0.05)
    axes.xaxis.set_minor_locator(NullLocator())
    decades = math.log10(high / low)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,), numticks=6))
    axes.xaxis.set_major_formatter(written)  # last: a new scale brings its own
