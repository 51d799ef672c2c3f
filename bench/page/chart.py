"""Charts as inline SVG: axes, lines, dots, squares, bars, and what a reader is told at each point of them.

matplotlib takes a tenth of a second a figure, and a report of a full sweep has hundreds. Colours and markers are those
of the page (style.css, and `markers` once a page), so that charts follow dark paper and stay small.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from bench import writing
from bench.page.formatting import size
from bench.page.palette import Key
from bench.page.templating import Panel, style

WIDTH, HEIGHT = 440, 280
LETTER = 6.2  # what a letter of a tick's label takes at the most


def slug(*parts: str) -> str:
    """Returns a name that can be part of an id and of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", "-".join(parts)).strip("-").lower()


@dataclass(frozen=True)
class Scale:
    """An axis: its ends, whether it is logarithmic, its ticks as (value, text), and its title."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    title: str = ""
    log: bool = False

    def share(self, values: Any) -> Any:
        """Returns where values stand, from 0 at the low end to 1 at the high one."""
        if self.log:
            return np.log(np.asarray(values, float) / self.low) / math.log(self.high / self.low)
        return (np.asarray(values, float) - self.low) / (self.high - self.low)


def linear(low: float, high: float, written: Callable[[float], str], title: str = "", count: int = 5) -> Scale:
    """Returns a linear scale with about `count` ticks at round values."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 2.5, 5, 10) if times * power >= 0.999 * rough)
    places = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
    return Scale(low, high, [(place, written(float(place))) for place in places], title)


def logarithmic(low: float, high: float, written: Callable[[float], str], title: str = "", count: int = 6) -> Scale:
    """Returns a logarithmic scale with at most `count` ticks; linear where a logarithmic one has no round tick."""
    if high / low < 4:
        return linear(low, high, written, title)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for subs in ((1, 2, 5), (1, 3), (1,)):
        places = [sub * 10.0**power for power in decades for sub in subs if low <= sub * 10.0**power <= high]
        if len(places) <= count:
            break
    places = places[:: math.ceil(len(places) / count)]
    return Scale(low, high, [(place, written(place)) for place in places], title, log=True)


def log_limits(values: Any, *others: float) -> tuple[float, float]:
    """Returns the ends of a logarithmic axis that holds all of these, with a twentieth to spare on either side."""
    low, high = min([np.min(values), *others]), max([np.max(values), *others])
    spare = max((high / low) ** 0.05, 1.1)
    return float(low / spare), float(high * spare)


def sizes(values: Any, title: str) -> Scale:
    """Returns a logarithmic scale of bytes, with ticks at powers of two."""
    low, high = math.floor(math.log2(np.min(values))), math.ceil(math.log2(np.max(values)))
    if high - low <= 1:
        low, high = low - 1, high + 1
    ticks = [(2.0**power, size(2.0**power)) for power in range(low, high + 1, math.ceil((high - low) / 5))]
    return Scale(2.0 ** (low - 0.3), 2.0 ** (high + 0.3), ticks, title, log=True)


@dataclass
class Chart:
    """A chart under construction, in pixels; `margins` are left, right, top and bottom."""

    name: str
    x: Scale
    y: Scale
    width: int = WIDTH
    height: int = HEIGHT
    margins: tuple[int, int, int, int] = (58, 12, 8, 40)
    parts: list[str] = field(default_factory=list)
    # What is told at a point: x and y in pixels, provider, text, and the place of a cell in the run or None.
    points: list[tuple[float, float, str, str, int | None]] = field(default_factory=list)

    def at_x(self, values: Any) -> Any:
        """Returns pixels from the left."""
        left, right, *_ = self.margins
        return left + self.x.share(values) * (self.width - left - right)

    def at_y(self, values: Any) -> Any:
        """Returns pixels from the top."""
        *_, top, bottom = self.margins
        return self.height - bottom - self.y.share(values) * (self.height - top - bottom)

    def line(self, key: Key, x: Any, y: Any, low: Any = None, high: Any = None, bold: bool = False) -> None:
        """Draws a line with the provider's marker at each point, over a band from `low` to `high`."""
        px, py = self.at_x(x), self.at_y(y)
        inside = ""
        if low is not None:
            bottom, top = self.at_y(low), self.at_y(high)
            if len(px) == 1:
                inside = f'<path class="bar" d="M{px[0]:.1f} {bottom[0]:.1f}V{top[0]:.1f}"/>'
            else:
                around = path(np.concatenate([px, px[::-1]]), np.concatenate([bottom, top[::-1]]))
                inside = f'<path class="band" d="{around}z"/>'
        kind = "line bold" if bold else "line"
        inside += f'<path class="{kind}" style="marker:url(#{key.id})" d="{path(px, py)}"/>'
        self.series(key, inside)

    def dots(self, key: Key, x: Any, y: Any) -> None:
        """Draws only the provider's marker at each point."""
        self.series(key, f'<path class="dots" style="marker:url(#{key.id})" d="{path(self.at_x(x), self.at_y(y))}"/>')

    def ranges(self, key: Key, y: Any, low: Any, high: Any) -> None:
        """Draws horizontal bars from `low` to `high`."""
        ends = zip(self.at_y(y), self.at_x(low), self.at_x(high), strict=True)
        drawn = "".join(f"M{left:.1f} {at:.1f}H{right:.1f}" for at, left, right in ends)
        self.series(key, f'<path class="bar" d="{drawn}"/>')

    def series(self, key: Key, inside: str) -> None:
        """Adds what is drawn of a provider, in its colour; the legend hides it and shows it."""
        name = slug(self.name, key.provider)
        colour = f"stroke:{key.css};fill:{key.css}"
        who = escape(key.provider)
        self.parts.append(f'<g class="series" data-p="{who}" data-s="{name}" style="{colour}">{inside}</g>')

    def roof(self, x: Any, y: Any) -> None:
        """Draws a dashed line."""
        self.parts.append(f'<path class="roof" d="{path(self.at_x(x), self.at_y(y))}"/>')

    def limit(self, low: float, high: float, upright: bool = False) -> None:
        """Shades what lies between two bounds, with a line at each; `upright` where they are values of x."""
        ends = sorted((self.at_x if upright else self.at_y)([low, high]))
        left, right, top, bottom = self.margins
        for at in dict.fromkeys(ends):
            line = f"M{at:.1f} {top}V{self.height - bottom}" if upright else f"M{left} {at:.1f}H{self.width - right}"
            self.parts.append(f'<path class="limit" d="{line}"/>')
        if ends[1] > ends[0]:
            wide = f'x="{ends[0]:.1f}" width="{ends[1] - ends[0]:.1f}" y="{top}" height="{self.height - top - bottom}"'
            high_ = f'y="{ends[0]:.1f}" height="{ends[1] - ends[0]:.1f}" x="{left}" width="{self.width - left - right}"'
            self.parts.append(f'<rect class="between" {wide if upright else high_}/>')

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        """Writes at a place in pixels."""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}"{f" class={kind!r}" if kind else ""}>{escape(text)}</text>')

    def point(self, x: float, y: float, provider: str, text: str, place: int | None = None) -> None:
        """Adds what is told at a place of the data."""
        self.points.append((float(self.at_x(x)), float(self.at_y(y)), provider, text, place))

    def panel(self, title: str, alt: str, note: str = "", grid: str = "xy") -> Panel:
        """Returns the finished chart with the words above and below it; see `svg`."""
        return Panel(title, self.svg(alt, grid), note, self.points)

    def svg(self, alt: str, grid: str = "xy") -> Markup:
        """Returns the <svg> element; a screen reader reads `alt`."""
        left, right, top, bottom = self.margins
        foot, edge = self.height - bottom, self.width - right
        lines, words = "", []
        for at, (_, text) in zip(self.at_x([tick for tick, _ in self.x.ticks]), self.x.ticks, strict=True):
            lines += f"M{at:.1f} {top}V{foot}" if "x" in grid else ""
            words.append(f'<text class="tick" text-anchor="middle" x="{at:.1f}" y="{foot + 15}">{escape(text)}</text>')
        for at, (_, text) in zip(self.at_y([tick for tick, _ in self.y.ticks]), self.y.ticks, strict=True):
            lines += f"M{left} {at:.1f}H{edge}" if "y" in grid else ""
            words.append(
                f'<text class="tick" text-anchor="end" x="{left - 6}" y="{at + 3.5:.1f}">{escape(text)}</text>'
            )
        axis = '<text class="axis" text-anchor="middle"'
        middle = (left + edge) / 2, (top + foot) / 2
        words.append(f'{axis} x="{middle[0]:.0f}" y="{self.height - 6}">{escape(self.x.title)}</text>')
        if self.y.title:
            words.append(f'{axis} transform="translate(11 {middle[1]:.0f})rotate(-90)">{escape(self.y.title)}</text>')
        box = f'viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(alt)}"'
        inside = f'<path class="grid" d="{lines}"/>{"".join(self.parts)}{"".join(words)}'
        drawn = Markup(f'<svg class="chart" id="{self.name}" {box}>{inside}</svg>')
        if folder := _FOLDER.get():
            writing.write(folder / f"{self.name}.svg", standalone(drawn))
        return drawn


def columns(points: Sequence[tuple[float, float, str, str, int | None]], providers: Sequence[str]) -> dict[str, Any]:
    """Returns a chart's points column by column, which packs better; a provider is its place in a list."""
    who = {name: place for place, name in enumerate(providers)}
    x, y, names, said, at = map(list, zip(*points, strict=True))
    return {
        "x": list(map(round, x)),
        "y": list(map(round, y)),
        "who": [who.get(n, -1) for n in names],
        "said": said,
        "at": at,
    }


def path(x: Any, y: Any) -> str:
    """Returns the data of a path through points, in whole pixels and relative, which halves its size."""
    points = [(round(a), round(b)) for a, b in zip(x, y, strict=True)]
    steps = (f"l{b[0] - a[0]} {b[1] - a[1]}" for a, b in pairwise(points))
    return f"M{points[0][0]} {points[0][1]}" + "".join(steps)


_FOLDER: ContextVar[Path | None] = ContextVar("folder", default=None)
_KEYS: ContextVar[Sequence[Key]] = ContextVar("keys", default=())


@contextmanager
def files_in(folder: Path | None, keys: Sequence[Key]) -> Iterator[None]:
    """Also writes every chart that is drawn meanwhile into this folder, as NAME.svg."""
    if folder:
        folder.mkdir(exist_ok=True)
    tokens = _FOLDER.set(folder), _KEYS.set(keys)
    try:
        yield
    finally:
        _FOLDER.reset(tokens[0])
        _KEYS.reset(tokens[1])


def markers(keys: Sequence[Key]) -> Markup:
    """Returns the markers of all providers, which stand once in a page."""
    return Markup("".join(
        f'<marker id="{key.id}" viewBox="0 0 10 10" refX="5" refY="5" markerWidth="7.5" markerHeight="7.5" '
        f'markerUnits="userSpaceOnUse"><path d="{key.path}" fill="{key.css}" stroke="var(--paper)" stroke-width=".7"/>'
        "</marker>"
        for key in keys
    ))  # fmt: skip


def standalone(drawn: str) -> str:
    """Returns a chart that needs no page around it, on light paper and without variables, which few programs know."""
    sheet = style()
    rules = "".join(line for line in sheet.splitlines() if line.startswith(".chart"))
    head = f'<style>{rules}</style><defs>{markers(_KEYS.get())}</defs><rect width="100%" height="100%" fill="#ffffff"/>'
    text = str(drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{head}", 1)
    values = dict(re.findall(r"(--[a-z0-9]+): light-dark\((#[0-9a-f]{6}), ", sheet))
    return re.sub(r"var\((--[a-z0-9]+)\)", lambda found: values.get(found[1], "sans-serif"), text)
