"""A chart of a page taken apart: the values of its points by its own ticks, its lines, squares and words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate
from xml.etree import ElementTree as ET

import numpy as np

UNITS = {"": 1, "×": 1, "µs": 1, "ms": 1e3, "s": 1e6, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}  # noqa: RUF001
COLOUR = re.compile(r"stroke:([^;]+);fill:([^;]+)")


def quantity(text):
    """Returns the number that a tick's label stands for; None if it is a word."""
    found = re.fullmatch(r"(?:≤ )?(-?[0-9.,]+(?:e[+-]?\d+)?) ?([^0-9]*)", text)
    return float(found[1].replace(",", "")) * UNITS[found[2]] if found and found[2] in UNITS else None


@dataclass(frozen=True)
class Axis:
    """An axis as a reader has it: its title, and labels at places in pixels."""

    title: str
    ticks: list[tuple[float, str]]

    def is_near(self, pixel, value):
        """Returns whether a value stands at a pixel or at one beside it: paths are drawn to whole pixels."""
        return any(
            low <= value <= high
            for back in self._scales()
            for low, high in [sorted(float(back(at)) for at in (pixel - 1.01, pixel + 1.01))]
        )

    def _scales(self):
        """Returns the scales, linear or logarithmic, that fit the labels; both fit where there are two labels."""
        pixels, values = map(np.array, zip(*((at, quantity(text)) for at, text in self.ticks), strict=True))
        assert len(pixels) > 1, f"an axis of one label: {self}"
        linear = np.polyfit(pixels, values, 1)
        scales = {lambda at: np.polyval(linear, at): np.abs(np.polyval(linear, pixels) - values).max() / np.ptp(values)}
        if min(values) > 0:
            log = np.polyfit(pixels, np.log(values), 1)
            off = np.abs(np.polyval(log, pixels) - np.log(values)).max() / np.ptp(np.log(values))
            scales[lambda at: np.exp(np.polyval(log, at))] = off
        fitting = [back for back, off in scales.items() if off < 0.003]
        assert fitting, f"labels on no scale: {self}"
        return fitting

    def label(self, pixel):
        """Returns the label nearest to a pixel."""
        return min(self.ticks, key=lambda tick: abs(tick[0] - pixel))[1]


@dataclass(frozen=True)
class Told:
    """A point of a chart, with the text that the page shows there."""

    provider: str
    text: str
    cell: str | None  # that it leads to
    x: float
    y: float


@dataclass(frozen=True)
class Drawn:
    """A chart as it is drawn, in pixels."""

    name: str
    title: str  # above it
    alt: str
    x: Axis
    y: Axis
    told: list[Told]
    element: ET.Element

    def series(self):
        """Returns each provider's colour and the elements that draw its figures."""
        found = {}
        for one in self.element:
            if one.get("class") == "series":
                stroke, fill = COLOUR.fullmatch(one.get("style")).groups()
                colour, parts = found.setdefault(one.get("data-p"), (stroke, []))
                assert stroke == fill == colour
                parts += one
        return found

    def words(self, kind):
        """Returns the texts of a class by their places."""
        found = [one for one in self.element.iter("text") if (one.get("class") or "") == kind]
        return {(float(one.get("x")), float(one.get("y"))): one.text for one in found}


def along(element):
    """Returns the points of a path of relative lines, closed or not."""
    steps = [tuple(map(float, step.split())) for step in re.split("[Ml]", element.get("d").removesuffix("z"))[1:]]
    xs, ys = zip(*steps, strict=True)
    return list(zip(accumulate(xs), accumulate(ys), strict=True))


def charts(shown):
    """Returns every chart of a page by its name."""
    providers, rows = [*shown.points["providers"], ""], shown.data["rows"]
    found = {}
    pattern = r'<figure data-points="(\d+)"><figcaption>([^<]*)</figcaption>(<svg class="chart".*?</svg>)'
    for number, title, drawn in re.findall(pattern, shown.html, re.DOTALL):
        element = ET.fromstring(drawn)
        titles = [one for one in element if one.get("class") == "axis"]
        ticks = [one for one in element if one.get("class") == "tick"]
        across = [(float(one.get("x")), one.text) for one in ticks if one.get("text-anchor") == "middle"]
        down = [(float(one.get("y")) - 3.5, one.text) for one in ticks if one.get("text-anchor") == "end"]
        panel = shown.points["panels"][int(number)]
        told = [
            Told(providers[who], said, rows[at]["id"] if at is not None else None, x, y)
            for who, said, at, x, y in zip(*(panel[key] for key in ("who", "said", "at", "x", "y")), strict=True)
        ]
        upright = [one.text for one in titles if one.get("transform")]
        flat = [one.text for one in titles if not one.get("transform")]
        axes = Axis(flat[0], across), Axis(upright[0] if upright else "", down)
        found[element.get("id")] = Drawn(element.get("id"), title, element.get("aria-label"), *axes, told, element)
    return found
