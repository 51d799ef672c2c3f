"""Parts that figures share: names, lines of providers, axes."""

import math
import re
from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, NullLocator

from bench.page import svg
from bench.page.formatting import size
from bench.page.palette import Key
from bench.results.thresholds import DOTS_AN_OCTAVE, LINE_POINTS, SUBJECT

WIDTH = 4.4  # inches; the page scales it


def slug(*parts: str) -> str:
    """Returns a name that can be part of an id and of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", "-".join(parts)).strip("-").lower()


def lines(axes: Axes, cells: pd.DataFrame, legend: dict[str, Key], x: str, y: str) -> None:
    """Draws a line through each provider's median, the subject's on top, and a band from `low` to `high`."""
    for key in reversed([key for key in legend.values() if key.provider in set(cells["provider"])]):
        ours = key.provider == SUBJECT
        # Not seaborn's lineplot, which takes a second for every ten thousand cells, and ten times as long to set up.
        drawn = _points(cells[cells["provider"] == key.provider], x, y)
        if len(drawn) > 1:
            axes.fill_between(
                drawn[x], drawn["low"], drawn["high"], color=key.colour, alpha=0.2, linewidth=0, zorder=2,
                gid=slug("band", key.provider),
            )  # fmt: skip
        else:
            axes.vlines(drawn[x], drawn["low"], drawn["high"], color=key.colour, alpha=0.45, linewidth=2.4, zorder=2)
        axes.plot(
            drawn[x], drawn[y], color=key.colour, marker=key.marker, markersize=5.5, markeredgecolor=svg.PAPER,
            markeredgewidth=0.6, linewidth=2.0 if ours else 1.3, zorder=4 if ours else 3,
            gid=slug("line", key.provider),
        )  # fmt: skip


def _points(cells: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Returns median, `low` and `high` at each x; values too close to be told apart are merged."""
    drawn = cells.groupby(x, as_index=False).agg({y: "median", "low": "min", "high": "max"})
    if len(drawn) <= LINE_POINTS:
        return drawn
    place = np.log(drawn[x] / drawn[x].min()) / np.log(drawn[x].max() / drawn[x].min())
    cell = (place * (LINE_POINTS - 1)).round()
    return drawn.groupby(cell).agg({x: "median", y: "median", "low": "min", "high": "max"})


def apart(x: pd.Series, y: pd.Series) -> pd.Series:
    """Returns which points on logarithmic axes to draw: the first of those that would cover each other."""
    places = [(np.log2(values) * DOTS_AN_OCTAVE).round() for values in (x, y)]
    return ~pd.concat(places, axis=1, ignore_index=True).duplicated()


def size_axis(axes: Axes, sizes: pd.Series) -> None:
    """Makes x a logarithmic axis of bytes, with ticks at powers of two."""
    axes.set_xscale("log", base=2)
    low, high = math.floor(math.log2(sizes.min())), math.ceil(math.log2(sizes.max()))
    if high - low <= 1:
        low, high = low - 1, high + 1
    step = max(1, math.ceil((high - low) / 5))
    axes.set_xlim(2.0 ** (low - 0.3), 2.0 ** (high + 0.3))
    ticks(axes.xaxis, FixedLocator([2.0**power for power in range(low, high + 1, step)]), size)


def ticks(axis: Axis, places: Locator, written: Callable[[float], str]) -> None:
    """Puts ticks at these places and no others, and says how their values are written."""
    axis.set_major_locator(places)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))


def log_axis(
    axes: Axes,
    which: str,
    limits: tuple[float, float],
    subs: tuple[float, ...],
    written: Callable[[float], str],
    count: int = 7,
) -> None:
    """Makes axis `x` or `y` logarithmic, with about `count` ticks at these multiples of powers of ten."""
    axes.set(**{f"{which}scale": "log", f"{which}lim": limits})
    ticks(getattr(axes, f"{which}axis"), LogLocator(subs=subs, numticks=count), written)


def log_limits(values: pd.Series | np.ndarray, *others: float) -> tuple[float, float]:
    """Returns the ends of a logarithmic axis that holds all of these, with a twentieth to spare on either side."""
    low, high = min([values.min(), *others]), max([values.max(), *others])
    spare = max((high / low) ** 0.05, 1.1)
    return float(low / spare), float(high * spare)
