"""The subject's speedup over two axes, as a heat map."""

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from markupsafe import Markup

from bench.page import svg
from bench.page.axes import WIDTH
from bench.page.formatting import number
from bench.page.palette import DIVERGING
from bench.results.numbers import DASH
from bench.results.thresholds import HEAT_LIMIT, SQUARES_WRITTEN, SUBJECT

ON_A_SQUARE = "#1d2023"  # words on the map's own pale colours, which are the same on dark paper


def heat_axes(cells: pd.DataFrame, names: list[str]) -> tuple[str, str] | None:
    """Returns the two axes with the most values, in the operator's order, or None where there are not two."""
    counts = {name: cells[name].nunique() for name in names}
    if len(counts) < 2 or max(counts.values()) < 2:
        return None
    chosen = sorted(names, key=lambda name: (-counts[name], names.index(name)))[:2]
    first, second = sorted(chosen, key=names.index)
    return first, second


def axis_order(value: Any) -> tuple[float, str]:
    """Sorts numbers by size, 14x14 by its product, words by name."""
    digits = re.findall(r"\d+", axis_text(value))
    return (math.prod(map(int, digits)) if digits else math.inf, str(value))


def axis_text(value: Any) -> str:
    """An axis value as written on the command line: 32, 56x56."""
    return f"{value:.0f}" if isinstance(value, float) and value == int(value) else str(value)


def speedup_map(cells: pd.DataFrame, axes_names: tuple[str, str], name: str) -> Markup:
    """Draws the subject's lowest speedup for each pair of values of two axes, or the status of a cell not ok."""
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
    # As high as its rows need for numbers; without any, as high as the numbers of the largest map.
    height = 1.0 + 0.34 * (len(rows) if written else min(len(rows), 24))
    with svg.drawing(WIDTH, height, (0.17, 0.98, 0.52 / height, 1 - 0.08 / height)) as (figure, axes):
        limit = math.log2(HEAT_LIMIT)
        font = 9 if len(columns) <= 8 else 7
        sns.heatmap(
            values, ax=axes, vmin=-limit, vmax=limit, center=0, cmap=DIVERGING, cbar=False,
            annot=words if written else None, fmt="", annot_kws={"fontsize": font, "color": ON_A_SQUARE},
            linewidths=1.2 if written else 0, linecolor=svg.PAPER, rasterized=not written,
            xticklabels=[axis_text(value) for value in columns], yticklabels=[axis_text(value) for value in rows],
        )  # fmt: skip
        for row, column in np.argwhere(np.isnan(values)) if written else ():
            word = words[row, column] or DASH
            axes.text(column + 0.5, row + 0.5, word, ha="center", va="center", fontsize=7.5, color=svg.MUTED)
        for axis in () if written else (axes.xaxis, axes.yaxis):
            # About ten labels an axis.
            places, labels = axis.get_ticklocs(), axis.get_ticklabels()
            step = math.ceil(len(labels) / 10)
            axis.set_ticks(list(places[::step]), [label.get_text() for label in labels[::step]])
        axes.set(xlabel=across, ylabel=down)
        axes.tick_params(length=0, rotation=0)
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return svg.inline(figure, name, f"speedup of {SUBJECT} over {down} and {across}")
