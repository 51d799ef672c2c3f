"""Figures of speed against size: bandwidth, time, and where each cell stands under the measured roof."""

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench.page import svg
from bench.page.axes import WIDTH, apart, lines, log_axis, log_limits, size_axis, slug
from bench.page.formatting import number, round_duration
from bench.page.palette import Key
from bench.results.numbers import short
from bench.results.thresholds import SUBJECT


def throughput(cells: pd.DataFrame, legend: dict[str, Key], copy_gbps: float | None, top: float, name: str) -> Markup:
    """Draws GB/s against the bytes of x: each size's median as a line, a band from p10 to p90 of its cells."""
    drawn = cells.assign(
        low=cells["gbps"] * cells["latency_us"] / cells["latency_us_p90"],
        high=cells["gbps"] * cells["latency_us"] / cells["latency_us_p10"],
    )
    with svg.drawing(WIDTH, 2.9, (0.14, 0.97, 0.17, 0.97)) as (figure, axes):
        lines(axes, drawn, legend, "size", "gbps")
        size_axis(axes, cells["size"])
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
        return svg.inline(figure, name, f"GB/s against the size of x for {', '.join(legend)}")


def latency(cells: pd.DataFrame, legend: dict[str, Key], copy_gbps: float | None, name: str) -> Markup:
    """Draws time against the bytes of x on logarithmic axes, with what a copy of these bytes takes as a dashed line."""
    drawn = cells.assign(low=cells["latency_us_p10"], high=cells["latency_us_p90"])
    with svg.drawing(WIDTH, 2.9, (0.2, 0.97, 0.17, 0.97)) as (figure, axes):
        lines(axes, drawn, legend, "size", "latency_us")
        size_axis(axes, cells["size"])
        if copy_gbps:
            floor = cells.groupby("size")["bytes_moved"].median() / copy_gbps / 1e3
            axes.plot(floor.index, floor, color=svg.INK, linestyle=(0, (5, 3)), linewidth=1, zorder=1, gid="roof")
        # Not down to the roof of the smallest size, which is far below what a launch takes.
        log_axis(axes, "y", log_limits(pd.concat([drawn["low"], drawn["high"]])), (1.0, 3.0), round_duration)
        axes.set(xlabel="size of x", ylabel="time of a call")
        return svg.inline(figure, name, f"time of a call against the size of x for {', '.join(legend)}")


def roofline(
    cells: pd.DataFrame, legend: dict[str, Key], copy_gbps: float | None, least_us: float, name: str
) -> Markup:
    """Draws GB/s of every cell against the bytes that it must move, under the two roofs of the device.

    Norms do so little arithmetic that bandwidth bounds them, or, where little is moved, `least_us`, the time of the
    run's shortest call.
    """
    with svg.drawing(WIDTH, 2.9, (0.16, 0.97, 0.17, 0.97)) as (figure, axes):
        for key in reversed([key for key in legend.values() if key.provider in set(cells["provider"])]):
            ours = key.provider == SUBJECT
            part = cells[cells["provider"] == key.provider]
            part = part[apart(part["bytes_moved"], part["gbps"])]
            axes.plot(
                part["bytes_moved"], part["gbps"], key.marker, color=key.colour, markersize=5.5 if ours else 4.5,
                markeredgecolor=svg.PAPER, markeredgewidth=0.4, alpha=0.9, zorder=4 if ours else 3,
                gid=slug("dots", key.provider),
            )  # fmt: skip
        size_axis(axes, cells["bytes_moved"])
        ends = np.geomspace(*axes.get_xlim(), 64)
        roof = ends / least_us / 1e3
        roof = roof if copy_gbps is None else np.minimum(roof, copy_gbps)
        axes.plot(ends, roof, color=svg.INK, linestyle=(0, (5, 3)), linewidth=1, zorder=1, gid="roof")
        log_axis(axes, "y", log_limits(cells["gbps"], copy_gbps or cells["gbps"].max()), (1.0, 3.0), short)
        axes.set(xlabel="bytes that must move", ylabel="GB/s")
        return svg.inline(figure, name, f"GB/s against the bytes that must move, every cell of {', '.join(legend)}")
