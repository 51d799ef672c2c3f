"""Charts of error: every tensor beside its bound, and a tensor's error against size and against the mean."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from bench.page.chart import Chart, Scale, linear, log_limits, logarithmic, sizes
from bench.page.formatting import plural, size
from bench.page.palette import Key
from bench.page.templating import Panel
from bench.report.figures.speed import by_provider
from bench.results.numbers import error_figure as written
from bench.results.numbers import short
from bench.results.thresholds import BOUNDS, LARGEST_NORMAL_OFFSET, SMALLEST_SHARE

Bounds = tuple[float, float] | None


def bounds_of(errors: pd.DataFrame, figure_name: str, dtype: str) -> Bounds:
    """Returns the lowest and highest bound that the records carry for a figure and dtype, or the published ones."""
    carried = errors.loc[(errors["decided_by"] == figure_name) & (errors["dtype"] == dtype), "bound"].dropna()
    return (float(carried.min()), float(carried.max())) if len(carried) else BOUNDS.get((figure_name, dtype))


def error_figure(
    errors: pd.DataFrame, figure_name: str, bounds: Bounds, legend: dict[str, Key], name: str, title: str
) -> Panel | None:
    """Draws for each tensor and provider the median of a figure (the marker) and its whole range (the bar).

    Returns None where no value was finite.
    """
    drawn = errors[np.isfinite(errors[figure_name])]
    undrawn = int(errors[figure_name].notna().sum()) - len(drawn)
    if not len(drawn):
        return None
    tensors = list(dict.fromkeys(drawn["tensor"]))
    shown = [key for key in legend.values() if key.provider in set(drawn["provider"])]
    floor = (bounds[0] if bounds else float(drawn[figure_name].max()) or 1.0) * SMALLEST_SHARE
    drawn = drawn.assign(**{figure_name: drawn[figure_name].clip(lower=floor)})
    longest = max(len(tensor) for tensor in tensors)
    rows = Scale(len(tensors) - 0.5, -0.5, [(place, tensor) for place, tensor in enumerate(tensors)])
    chart = Chart(
        name, _scale(drawn[figure_name], bounds, figure_name), rows,
        height=round(54 + len(tensors) * (14 + 12 * len(shown))), margins=(14 + 7 * min(longest, 16), 16, 6, 40),
    )  # fmt: skip
    if bounds:
        chart.limit(*bounds, upright=True)
    for place, key in enumerate(shown):
        offset = (place - (len(shown) - 1) / 2) * 0.78 / len(shown)
        part = drawn[drawn["provider"] == key.provider].groupby("tensor")[figure_name]
        table = part.agg(["min", "median", "max", "idxmax", "count"])
        heights = np.array([tensors.index(tensor) + offset for tensor in table.index])
        chart.ranges(key, heights, table["min"], table["max"])
        chart.dots(key, table["median"], heights)
        for at, (tensor, row) in zip(heights, table.iterrows(), strict=True):
            median, low, high = (written(figure_name, float(row[column])) for column in ("median", "min", "max"))
            text = f"{tensor}: {median}, {low} to {high} over {plural(int(row['count']), 'cell')}; leads to the largest"
            chart.point(row["median"], at, key.provider, text, int(errors.at[row["idxmax"], "place"]))
    ends = [short(bound) for bound in dict.fromkeys(bounds or ())]
    notes = [f"Bound {' to '.join(ends)}." if ends else "No bound."]
    if undrawn:
        notes.append(f"{plural(undrawn, 'value')} not finite, not drawn.")
    alt = f"{figure_name} of {', '.join(tensors)} for {', '.join(key.provider for key in shown)}"
    return chart.panel(title, alt, " ".join(notes), grid="x")


def against(
    errors: pd.DataFrame, figure_name: str, x: str, bounds: Bounds, legend: dict[str, Key], name: str, subject: str
) -> Panel:
    """Draws one tensor's error against `size` or `mean/std` of x: the median, and a band over all cells.

    `errors` has finite, positive values of the figure and a column named by `x`.
    """
    scale, told = (sizes(errors[x], "size of x"), size) if x == "size" else (_offsets(errors[x], f"{x} of x"), short)
    chart = Chart(name, scale, _scale(errors[figure_name], bounds, figure_name), height=240, margins=(64, 12, 8, 40))
    if bounds:
        chart.limit(*bounds)
    drawn = errors.assign(low=errors[figure_name], high=errors[figure_name]).set_index("place")
    for key, found in by_provider(drawn, legend, figure_name, x):
        chart.line(key, found.x, found.y, found.low, found.high, bold=key.provider == subject)
        for at, y, low, high, place, count in found.rows():
            ends = f"{written(figure_name, low)} to {written(figure_name, high)} over {plural(count, 'cell')}"
            chart.point(at, y, key.provider, f"{written(figure_name, y)} at {told(at)}, {ends}", place)
    first = errors.iloc[0]
    return chart.panel(
        f"{first['tensor']}, {first['dtype']}", f"{figure_name} against {x} of x for {', '.join(legend)}"
    )


def _offsets(values: pd.Series, title: str) -> Scale:
    """Returns a logarithmic scale with a tick at each value; the first value stands for all normal inputs."""
    largest: Callable[[float], str] = lambda value: ("≤ " if value == LARGEST_NORMAL_OFFSET else "") + short(value)
    low, high = log_limits(values)
    return Scale(low, high, [(value, largest(value)) for value in sorted(values.unique())], title, log=True)


def _scale(values: pd.Series, bounds: Bounds, title: str) -> Scale:
    """Returns a logarithmic scale of values and bounds; linear for a range without a round logarithmic tick."""
    low, high = min([values.min(), *(bounds or ())]), max([values.max(), *(bounds or ())])
    if high / low < 4:
        spare = 0.06 * (high - low) or 0.06 * high
        return linear(low - spare, high + spare, short, title, 4)
    return logarithmic(*log_limits([low, high]), short, title)
