"""Charts of speed against size: bandwidth, time, and where each cell stands under the measured roof."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from bench.page.chart import Chart, linear, log_limits, logarithmic, sizes
from bench.page.formatting import duration, number, plural, round_duration, size
from bench.page.palette import Key
from bench.page.templating import Panel
from bench.report.figures.points import Points, points
from bench.results.load import LoadedRun
from bench.results.numbers import short
from bench.results.thresholds import DOTS_AN_OCTAVE


def throughput(run: LoadedRun, cells: pd.DataFrame, legend: dict[str, Key], top: float, name: str, title: str) -> Panel:
    """Draws GB/s against the bytes of x: each size's median as a line, a band from p10 to p90 of its cells."""
    copy = run.environment["copy_gbps"]
    drawn = cells.assign(
        low=cells["gbps"] * cells["latency_us"] / cells["latency_us_p90"],
        high=cells["gbps"] * cells["latency_us"] / cells["latency_us_p10"],
    )
    written = lambda value: f"{value:,.0f}" if top > 10 else number(value)
    chart = Chart(name, sizes(cells["size"], "size of x"), linear(0, top, written, "GB/s"))
    if copy:
        chart.roof((chart.x.low, chart.x.high), (copy, copy))
        chart.text(chart.at_x(chart.x.low) + 4, chart.at_y(copy) - 4, f"copy {number(copy)}")
    for key, found in by_provider(drawn, legend, "gbps"):
        chart.line(key, found.x, found.y, found.low, found.high, bold=key.provider == run.subject)
        _tell(chart, key, found, lambda value: f"{number(value)} GB/s")
    return chart.panel(title, f"GB/s against the size of x for {', '.join(legend)}")


def latency(run: LoadedRun, cells: pd.DataFrame, legend: dict[str, Key], name: str, title: str) -> Panel:
    """Draws time against the bytes of x on logarithmic axes, with what a copy of these bytes takes as a dashed line."""
    copy = run.environment["copy_gbps"]
    drawn = cells.assign(low=cells["latency_us_p10"], high=cells["latency_us_p90"])
    # Not down to the roof of the smallest size, which is far below what a launch takes.
    limits = log_limits(pd.concat([drawn["low"], drawn["high"]]))
    chart = Chart(
        name, sizes(cells["size"], "size of x"), logarithmic(*limits, round_duration, "time of a call"),
        margins=(64, 12, 8, 40),
    )  # fmt: skip
    if copy:
        floor = (cells.groupby("size")["bytes_moved"].median() / copy / 1e3).clip(lower=limits[0])
        chart.roof(floor.index, floor)
    for key, found in by_provider(drawn, legend, "latency_us"):
        chart.line(key, found.x, found.y, found.low, found.high, bold=key.provider == run.subject)
        _tell(chart, key, found, duration)
    return chart.panel(title, f"time of a call against the size of x for {', '.join(legend)}")


def roofline(
    run: LoadedRun, cells: pd.DataFrame, legend: dict[str, Key], least_us: float, name: str, title: str
) -> Panel:
    """Draws GB/s of every cell against the bytes that it must move, under the two roofs of the device.

    Norms do so little arithmetic that bandwidth bounds them, or, where little is moved, `least_us`, the time of the
    run's shortest call.
    """
    copy = run.environment["copy_gbps"]
    limits = log_limits(cells["gbps"], copy or cells["gbps"].max())
    chart = Chart(name, sizes(cells["bytes_moved"], "bytes that must move"), logarithmic(*limits, short, "GB/s"))
    ends = np.geomspace(chart.x.low, chart.x.high, 64)
    roof = np.clip(ends / least_us / 1e3, limits[0], copy or np.inf)
    chart.roof(ends, roof)
    for key in reversed([key for key in legend.values() if key.provider in set(cells["provider"])]):
        part = cells[cells["provider"] == key.provider]
        part = part[apart(part["bytes_moved"], part["gbps"])]
        chart.dots(key, part["bytes_moved"], part["gbps"])
        for place, moved, gbps in zip(part.index, part["bytes_moved"], part["gbps"], strict=True):
            chart.point(moved, gbps, key.provider, f"{number(gbps)} GB/s, {size(moved)}", int(place))
    return chart.panel(title, f"GB/s against the bytes that must move, every cell of {', '.join(legend)}")


def by_provider(cells: pd.DataFrame, legend: dict[str, Key], y: str, x: str = "size") -> Iterator[tuple[Key, Points]]:
    """Yields each provider's points, the subject's last, so that it lies on top; `cells` has columns low and high."""
    parts = dict(iter(cells.groupby("provider")))
    for key in reversed([key for key in legend.values() if key.provider in parts]):
        part = parts[key.provider]
        columns = [part[name].to_numpy(float) for name in (x, y, "low", "high")]
        yield key, points(columns[0], columns[1], columns[2], columns[3], part.index.to_numpy())


def _tell(chart: Chart, key: Key, found: Points, written: Callable[[float], str]) -> None:
    for x, y, low, high, place, count in found.rows():
        of = f", {plural(count, 'cell')}" if count > 1 else ""
        chart.point(x, y, key.provider, f"{written(y)}, {written(low)} to {written(high)}{of}", place)


def apart(x: pd.Series, y: pd.Series) -> pd.Series:
    """Returns which points on logarithmic axes to draw: the first of those that would cover each other."""
    places = [(np.log2(values) * DOTS_AN_OCTAVE).round() for values in (x, y)]
    return ~pd.concat(places, axis=1, ignore_index=True).duplicated()
