"""The report's figures: throughput, speedup over two axes, and errors beside their bounds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from bench.report import svg
from bench.report.data import Run
from bench.report.formatting import DASH, number, short, size
from bench.report.thresholds import (
    BARS_DRAWN,
    BOUNDS,
    HEAT_LIMIT,
    LARGEST_NORMAL_OFFSET,
    LEAST_ERROR,
    SMALLEST_SHARE,
    SQUARES_WRITTEN,
    SUBJECT,
)

WIDTH = 4.4  # inches; the page scales it


@dataclass(frozen=True)
class Key:
    """How a provider is drawn, everywhere in the report."""

    provider: str
    colour: str
    marker: str  # matplotlib's name
    path: str  # the same shape for the page's legend, in a box of 10 by 10


@dataclass(frozen=True)
class Panel:
    """One figure with the words above and below it."""

    title: str
    image: Markup
    note: str = ""


# The subject is blue and the baseline grey in every report; yellow and light pink, faint on white, come last.
COLOURS = [sns.color_palette("colorblind").as_hex()[i] for i in (0, 7, 1, 2, 3, 4, 9, 5, 6, 8)]
# Orange where the subject is slower, blue where it is faster, white between.
DIVERGING = sns.diverging_palette(40, 245, s=85, l=58, as_cmap=True)
HEAT_ENDS = [to_hex(DIVERGING(at)) for at in (0.0, 0.5, 1.0)]
SHAPES = (
    ("o", "M5 1a4 4 0 1 0 0 8a4 4 0 1 0 0-8z"),
    ("s", "M1.5 1.5h7v7h-7z"),
    ("^", "M5 1l4.2 7.6h-8.4z"),
    ("D", "M5 .6l4.4 4.4l-4.4 4.4l-4.4-4.4z"),
    ("v", "M5 9l4.2-7.6h-8.4z"),
    ("P", "M3.5 1h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z"),
    ("X", "M1 3l2-2l2 2l2-2l2 2l-2 2l2 2l-2 2l-2-2l-2 2l-2-2l2-2z"),
)


def keys(run: Run) -> dict[str, Key]:
    """One fixed colour and shape a provider."""
    places = {name: place for place, name in enumerate([SUBJECT, run.baseline])}
    for name in run.providers:
        places.setdefault(name, len(places))
    return {
        name: Key(name, COLOURS[places[name] % len(COLOURS)], *SHAPES[places[name] % len(SHAPES)])
        for name in run.providers
    }


def slug(*parts: str) -> str:
    """A name that may stand in an id."""
    return re.sub(r"[^A-Za-z0-9]+", "-", "-".join(parts)).strip("-").lower()


def _lines(axes: Axes, cells: pd.DataFrame, legend: dict[str, Key], x: str, y: str) -> None:
    """A line through each provider's median, the subject's on top."""
    for key in reversed([key for key in legend.values() if key.provider in set(cells["provider"])]):
        ours = key.provider == SUBJECT
        # Not seaborn's own median, which takes a second for every ten thousand cells.
        medians = cells[cells["provider"] == key.provider].groupby(x, as_index=False)[y].median()
        sns.lineplot(
            medians, x=x, y=y, estimator=None, errorbar=None, ax=axes,
            color=key.colour, legend=False, marker=key.marker, markersize=5.5, markeredgecolor=svg.PAPER,
            markeredgewidth=0.6, linewidth=2.0 if ours else 1.3, zorder=4 if ours else 3,
        )  # fmt: skip
        axes.lines[-1].set_gid(slug("line", key.provider))


def throughput(cells: pd.DataFrame, legend: dict[str, Key], copy_gbps: float | None, top: float, name: str) -> Markup:
    """GB/s against the bytes of x: a line through the median of each size, a bar from p10 to p90 for each cell."""
    with svg.style():
        figure = svg.new(WIDTH, 2.9)
        axes = figure.subplots()
        _lines(axes, cells, legend, "size", "gbps")
        for provider, part in cells.groupby("provider"):
            bars = pd.DataFrame(
                {
                    "size": part["size"],
                    "low": part["gbps"] * part["latency_us"] / part["latency_us_p90"],
                    "high": part["gbps"] * part["latency_us"] / part["latency_us_p10"],
                }
            )
            if len(cells) > BARS_DRAWN:
                bars = bars.groupby("size", as_index=False).agg({"low": "min", "high": "max"})
            axes.vlines(
                bars["size"], bars["low"], bars["high"], color=legend[str(provider)].colour, alpha=0.45, linewidth=2.4,
                zorder=2,
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        _size_ticks(axes, cells["size"])
        axes.set_ylim(0, top)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if top > 10 else number(value)))
        axes.set(xlabel="size of x", ylabel="GB/s")
        if copy_gbps:
            axes.axhline(copy_gbps, color=svg.INK, linestyle=(0, (5, 3)), linewidth=1, zorder=1)
            axes.annotate(
                f"copy {number(copy_gbps)}", (0, copy_gbps), (3, 3), xycoords=axes.get_yaxis_transform(),
                textcoords="offset points", va="bottom", fontsize=8, color=svg.INK,
            )  # fmt: skip
        figure.subplots_adjust(left=0.14, right=0.97, bottom=0.17, top=0.97)
        return svg.inline(figure, name, f"GB/s against the size of x for {', '.join(legend)}")


def error_against_offset(errors: pd.DataFrame, legend: dict[str, Key], top: float, name: str) -> Markup:
    """rel_l2_error against mean/std: a line through each provider's median, a bar over all its cells."""
    drawn = errors.assign(
        at=errors["offset"].where(errors["inputs"] == "offset", LARGEST_NORMAL_OFFSET),
        rel_l2_error=errors["rel_l2_error"].clip(LEAST_ERROR, top),
    )
    with svg.style():
        figure = svg.new(WIDTH, 2.7)
        axes = figure.subplots()
        _lines(axes, drawn, legend, "at", "rel_l2_error")
        for provider, part in drawn.groupby("provider"):
            spread = part.groupby("at")["rel_l2_error"]
            colour = legend[str(provider)].colour
            axes.vlines(spread.min().index, spread.min(), spread.max(), color=colour, alpha=0.4, linewidth=2.4)
        places = sorted(drawn["at"].unique())
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(LEAST_ERROR / 2, top * 2)
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"≤ {value:g}" if value == LARGEST_NORMAL_OFFSET else short(value))
        )
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.set(xlabel="mean/std of x", ylabel="rel_l2_error")
        figure.subplots_adjust(left=0.16, right=0.97, bottom=0.18, top=0.97)
        return svg.inline(figure, name, f"rel_l2_error against the mean of x for {', '.join(legend)}")


def _size_ticks(axes: Axes, sizes: pd.Series) -> None:
    low, high = math.floor(math.log2(sizes.min())), math.ceil(math.log2(sizes.max()))
    if low == high or high - low == 1:
        low, high = low - 1, high + 1
    step = max(1, math.ceil((high - low) / 5))
    axes.set_xlim(2.0 ** (low - 0.3), 2.0 ** (high + 0.3))
    axes.xaxis.set_major_locator(FixedLocator([2.0**power for power in range(low, high + 1, step)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))


def heat_axes(cells: pd.DataFrame, names: list[str]) -> tuple[str, str] | None:
    """The two axes with the most values, in the operator's order, or None where there are not two."""
    counts = {name: cells[name].nunique() for name in names}
    if len(counts) < 2 or max(counts.values()) < 2:
        return None
    chosen = sorted(names, key=lambda name: (-counts[name], names.index(name)))[:2]
    first, second = sorted(chosen, key=names.index)
    return first, second


def axis_order(value: Any) -> tuple[float, str]:
    """Numbers by size, 14x14 by its product, words by name."""
    digits = re.findall(r"\d+", axis_text(value))
    return (math.prod(map(int, digits)) if digits else math.inf, str(value))


def axis_text(value: Any) -> str:
    """An axis value as written on the command line: 32, 56x56."""
    return f"{value:.0f}" if isinstance(value, float) and value == int(value) else str(value)


def speedup_map(cells: pd.DataFrame, axes_names: tuple[str, str], name: str) -> Markup:
    """The subject's lowest speedup for each pair of values of two axes; a cell that is not ok shows its status."""
    down, across = axes_names
    rows, columns = (sorted(cells[axis].unique(), key=axis_order) for axis in axes_names)
    values = np.full((len(rows), len(columns)), np.nan)
    words = np.full(values.shape, "", dtype=object)
    row_of, column_of = ({value: place for place, value in enumerate(axis)} for axis in (rows, columns))
    for (row, column), lowest in cells.groupby([down, across])["speedup"].min().dropna().items():
        at = row_of[row], column_of[column]
        values[at], words[at] = math.log2(lowest), number(lowest)
    for (row, column), status in cells[cells["status"] != "ok"].groupby([down, across])["status"].first().items():
        at = row_of[row], column_of[column]
        values[at], words[at] = math.nan, status
    written = values.size <= SQUARES_WRITTEN
    with svg.style():
        # As high as its rows need for numbers; without any, as high as the numbers of the largest map.
        figure = svg.new(WIDTH, 1.0 + 0.34 * (len(rows) if written else min(len(rows), 24)))
        axes = figure.subplots()
        limit = math.log2(HEAT_LIMIT)
        font = 9 if len(columns) <= 8 else 7
        sns.heatmap(
            values, ax=axes, vmin=-limit, vmax=limit, center=0, cmap=DIVERGING, cbar=False,
            annot=words if written else None, fmt="", annot_kws={"fontsize": font, "color": "#1c1f23"},
            linewidths=1.2 if written else 0, linecolor=svg.PAPER,
            xticklabels=[axis_text(value) for value in columns], yticklabels=[axis_text(value) for value in rows],
        )  # fmt: skip
        for row, column in np.argwhere(np.isnan(values)) if written else ():
            word = words[row, column] or DASH
            axes.text(column + 0.5, row + 0.5, word, ha="center", va="center", fontsize=7.5, color=svg.MUTED)
        if not written:
            _thin(axes.xaxis)
            _thin(axes.yaxis)
        axes.set(xlabel=across, ylabel=down)
        axes.tick_params(length=0)
        axes.tick_params(axis="y", rotation=0)
        axes.tick_params(axis="x", rotation=0)
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        height = figure.get_figheight()
        figure.subplots_adjust(left=0.17, right=0.98, bottom=0.52 / height, top=1 - 0.08 / height)
        return svg.inline(figure, name, f"speedup of {SUBJECT} over {down} and {across}")


def _thin(axis: Axis) -> None:
    """Leaves about ten of the labels of an axis."""
    places, labels = axis.get_ticklocs(), axis.get_ticklabels()
    step = math.ceil(len(labels) / 10)
    axis.set_ticks(list(places[::step]), [label.get_text() for label in labels[::step]])


@dataclass(frozen=True)
class ErrorFigure:
    """A drawn error figure and what could not be drawn in it."""

    image: Markup
    undrawn: int  # values that are not finite


def bounds_of(errors: pd.DataFrame, figure_name: str, dtype: str) -> tuple[float, float] | None:
    """The lowest and highest bound that the records carry for this figure and dtype, or the published ones."""
    carried = errors.loc[(errors["decided_by"] == figure_name) & (errors["dtype"] == dtype), "bound"].dropna()
    return (float(carried.min()), float(carried.max())) if len(carried) else BOUNDS.get((figure_name, dtype))


def error_figure(
    errors: pd.DataFrame, figure_name: str, bounds: tuple[float, float] | None, legend: dict[str, Key], name: str
) -> ErrorFigure | None:
    """For each tensor and provider the median of a figure (the marker) and its whole range (the bar)."""
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
            sns.scatterplot(
                x=part.median()[here].to_numpy(), y=heights, ax=axes, color=key.colour, marker=key.marker, s=30,
                edgecolor=svg.PAPER, linewidth=0.6, legend=False, zorder=4, gid=slug("dots", key.provider),
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
        return ErrorFigure(svg.inline(figure, name, alt), undrawn)


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
