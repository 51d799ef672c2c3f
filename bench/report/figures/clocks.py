"""The state of the GPU over the run: one value a cell, in the order in which the cells were measured."""

import numpy as np
import pandas as pd

from bench.page.chart import Chart, linear, path
from bench.page.formatting import number
from bench.page.templating import Panel
from bench.results.thresholds import POINTS_DRAWN


def over_the_run(
    cells: pd.DataFrame, column: str, unit: str, limit: float | None, name: str, title: str, note: str
) -> Panel:
    """Draws one quantity against the number of the cell; marks cells whose clocks were held down, and the limit."""
    values = cells[column].to_numpy(float)
    held = (cells["throttle"] != "").to_numpy()
    places = np.arange(1, len(values) + 1)
    # Of a long run, the extremes of every stretch: what a clock drops to must not fall between two points.
    stretch = -(-len(values) // POINTS_DRAWN)
    kept = sorted(
        {int(i) for part in np.array_split(places - 1, -(-len(values) // stretch)) for i in _ends(values, part)}
    )
    seen = [*values[kept][np.isfinite(values[kept])], *([limit] if limit is not None else [])]
    low, high = min(seen), max(seen)
    # Never magnified beyond a tenth of the value, or the flicker of a steady clock would look like a fall.
    spare = max(0.08 * (high - low), 0.05 * high)
    order = linear(0.5, len(values) + 0.5, lambda value: f"{value:,.0f}", "cell, in the order measured")
    chart = Chart(name, order, linear(max(0.0, low - spare), high + spare, lambda v: f"{v:,g}", unit, 4), height=200)
    known = [i for i in kept if np.isfinite(values[i])]
    chart.parts.append(f'<path class="run" d="{path(chart.at_x(places[known]), chart.at_y(values[known]))}"/>')
    for i in known:
        at = cells.iloc[i]
        text = f"{number(values[i], 4)} {unit}{', clocks held down: ' + at['throttle'] if held[i] else ''}"
        chart.point(places[i], values[i], at["provider"], text, int(cells.index[i]))
        if held[i]:
            x, y = float(chart.at_x(places[i])), float(chart.at_y(values[i]))
            chart.parts.append(f'<path class="held" d="M{x:.1f} {y + 4:.1f}l4-8h-8z"/>')
    if limit is not None:
        chart.roof((order.low, order.high), (limit, limit))
    return chart.panel(title, f"{column.replace('_', ' ')} over the run, from {number(low)} to {number(high)}", note)


def _ends(values: np.ndarray, part: np.ndarray) -> list[int]:
    known = part[np.isfinite(values[part])]
    return [int(known[values[known].argmin()]), int(known[values[known].argmax()])] if len(known) else []
