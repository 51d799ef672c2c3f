"""The state of the GPU over the run: one value a cell, in the order in which the cells were measured."""

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench.page import svg
from bench.page.axes import WIDTH
from bench.page.formatting import number
from bench.results.thresholds import POINTS_DRAWN


def over_the_run(cells: pd.DataFrame, column: str, unit: str, limit: float | None, name: str) -> Markup:
    """Draws one quantity against the number of the cell; marks cells whose clocks were held down, and the limit."""
    values = cells[column].to_numpy(float)
    held = (cells["throttle"] != "").to_numpy()
    places = np.arange(1, len(values) + 1)
    # Of a long run, the extremes of every stretch: what a clock drops to must not fall between two points.
    stretch = -(-len(values) // POINTS_DRAWN)
    kept = sorted(
        {int(i) for part in np.array_split(places - 1, -(-len(values) // stretch)) for i in _ends(values, part)}
    )
    with svg.drawing(WIDTH, 2.1, (0.17, 0.97, 0.22, 0.96)) as (figure, axes):
        axes.plot(places[kept], values[kept], color=svg.MUTED, linewidth=1.2, gid="values")
        marked = [i for i in kept if held[i]]
        axes.plot(places[marked], values[marked], "v", color=svg.LIMIT, markersize=4.5, linestyle="none", gid="held")
        if limit is not None:
            axes.axhline(limit, color=svg.INK, linestyle=(0, (5, 3)), linewidth=1)
        seen = [*values[kept][np.isfinite(values[kept])], *([limit] if limit is not None else [])]
        low, high = min(seen), max(seen)
        # Never magnified beyond a tenth of the value, or the flicker of a steady clock would look like a fall.
        spare = max(0.08 * (high - low), 0.05 * high)
        axes.set_ylim(max(0.0, low - spare), high + spare)
        axes.set_xlim(0.5, len(values) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.set(xlabel="cell, in the order measured", ylabel=unit)
        return svg.inline(
            figure, name, f"{column.replace('_', ' ')} over the run, from {number(low)} to {number(high)}"
        )


def _ends(values: np.ndarray, part: np.ndarray) -> list[int]:
    known = part[np.isfinite(values[part])]
    return [int(known[values[known].argmin()]), int(known[values[known].argmax()])] if len(known) else []
