"""The subject's speedup over two axes, as a heat map."""

import math
import re
from collections import defaultdict
from typing import Any

import pandas as pd

from bench.page.chart import LETTER, WIDTH, Chart, Scale
from bench.page.formatting import number, times
from bench.page.palette import DIVERGING
from bench.page.templating import Panel
from bench.results.numbers import DASH, present
from bench.results.thresholds import HEAT_LIMIT, SQUARES_WRITTEN


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


def speedup_map(
    cells: pd.DataFrame, ratio: str, over: str, axes_names: tuple[str, str], name: str, title: str
) -> Panel:
    """Draws the subject's lowest `ratio` for each pair of values of two axes, or the status of a cell not ok.

    `cells` are the subject's; `over` says in words what the ratio is taken against.
    """
    down, across = axes_names
    rows, columns = (sorted(cells[axis].unique(), key=axis_order) for axis in axes_names)
    row_of, column_of = ({value: place for place, value in enumerate(axis)} for axis in (rows, columns))
    height = 46 + (26 if len(rows) <= 16 else 18) * len(rows)
    margin = 26 + 7 * max(len(axis_text(value)) for value in rows)
    chart = Chart(
        name, _places(columns, across, (WIDTH - margin) / len(columns)), _places(rows[::-1], down), height=height,
        margins=(margin + 8, 4, 4, 40),
    )  # fmt: skip
    wide, high = float(chart.at_x(1) - chart.at_x(0)), float(chart.at_y(0) - chart.at_y(1))
    written = len(rows) * len(columns) <= SQUARES_WRITTEN and wide >= 3.2 * LETTER
    square = f"h{wide:.1f}v{high:.1f}h{-wide:.1f}z"
    squares: dict[str, str] = defaultdict(str)
    cells = cells.assign(place=cells.index)
    lowest = cells.sort_values(ratio).drop_duplicates([down, across])  # NaN is last
    broken = cells[cells["status"] != "ok"].drop_duplicates([down, across])
    broken = {(row[down], row[across]): row for row in broken.to_dict("records")}
    for cell in lowest.to_dict("records"):
        at = cell[down], cell[across]
        cell = broken.get(at, cell)
        x, y = column_of[at[1]], len(rows) - 1 - row_of[at[0]]
        left, top = float(chart.at_x(x)) - wide / 2, float(chart.at_y(y)) - high / 2
        value = cell[ratio]
        if cell["status"] != "ok":
            word = told = cell["status"]
        elif pd.isna(value):
            word, told = DASH, "not measured"
        else:
            shade = 0.5 + math.log2(value) / math.log2(HEAT_LIMIT) / 2
            squares[DIVERGING[round(40 * min(max(shade, 0.0), 1.0))]] += f"M{left:.1f} {top:.1f}{square}"
            word, told = number(value), f"{times(value)} {over}"
        if written:
            kind = "small fixed" if present(value) and cell["status"] == "ok" else "small muted"
            chart.text(float(chart.at_x(x)), float(chart.at_y(y)) + 3.5, word, f"{kind} middle")
        chart.point(x, y, "", told, cell["place"])
    # Beneath what was written.
    chart.parts[:0] = [f'<path class="paper" fill="{colour}" d="{drawn}"/>' for colour, drawn in squares.items()]
    return chart.panel(title, f"speedup {over} by {down} and {across}", grid="")


def _places(values: list[Any], title: str, room: float = math.inf) -> Scale:
    """Returns a scale with a step for each value, and as many labels as do not touch; `room` is a step in pixels."""
    texts = [axis_text(value) for value in values]
    step = math.ceil((max(map(len, texts)) + 1.5) * LETTER / room) if room < math.inf else 1
    return Scale(-0.5, len(values) - 0.5, list(enumerate(texts))[::step], title)
