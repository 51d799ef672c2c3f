"""A matplotlib figure as inline SVG: colours that follow the page, ids that cannot collide, no dates."""

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import seaborn as sns
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench import writing
from bench.page.palette import COLOURS

# The colours of style.css on light paper. In a page each becomes the page's own variable: dark and print follow.
INK, MUTED, GRID, LIMIT, PAPER = "#1c1f23", "#5d646d", "#e4e5e3", "#c2410c", "#ffffff"
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", LIMIT: "--limit", PAPER: "--paper"} | {
    colour: f"--p{place}" for place, colour in enumerate(COLOURS)
}

STYLE: dict[Any, Any] = {
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 8.5),
    # The grid's lines are enough, and a tick of its own doubles what a label takes.
    **dict.fromkeys(("xtick.bottom", "ytick.left", "axes.spines.right", "axes.spines.top", "text.parse_math"), False),
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the layout is the same on every machine
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "path.simplify": True,
    "svg.fonttype": "none",
    "text.color": INK,
}


@contextmanager
def style() -> Iterator[None]:
    """Sets the look of every figure."""
    with sns.axes_style("ticks"), rc_context(STYLE):
        yield


_FOLDER: ContextVar[Path | None] = ContextVar("folder", default=None)
FILE_DPI = 200  # of PNG files: sharp at the width of a slide


@contextmanager
def files_in(folder: Path | None) -> Iterator[None]:
    """Also writes every figure that is drawn meanwhile into this folder, as NAME.svg and NAME.png."""
    if folder:
        folder.mkdir(exist_ok=True)
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


def new(width: float, height: float) -> Figure:
    """Returns a figure, in inches, that pyplot does not know of."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def inline(figure: Figure, name: str, alt: str) -> Markup:
    """Returns the figure as an <svg> element whose ids begin with `name`; a screen reader reads `alt`."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(
            buffer, format="svg", dpi=FILE_DPI, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
        if folder := _FOLDER.get():
            for kind in ("svg", "png"):
                with writing.replacing(folder / f"{name}.{kind}") as part:
                    figure.savefig(part, format=kind, facecolor=PAPER, dpi=FILE_DPI)
    root = ET.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) == "style":  # it would hold for the whole page
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _value(_local(key), value, name) for key, value in element.attrib.items()}
        element.tail = None
        if element.tag != "text":
            element.text = element.text if element.tag == "tspan" else None
    _slim(root)
    for unwanted in ("width", "height", "version"):
        root.attrib.pop(unwanted, None)
    root.attrib.update({"role": "img", "aria-label": alt})
    return Markup(ET.tostring(root, encoding="unicode", short_empty_elements=True))


# The ids that matplotlib gives of itself; figure_1, the whole, keeps its own, and so does what is referred to.
NUMBERED = re.compile(r"-(?!figure_1$)[A-Za-z][A-Za-z0-9.]*_\d+$")


def _slim(element: ET.Element) -> None:
    """Removes what draws nothing: ids without a reference, groups without attributes, rotations by 0."""
    for child in list(element):
        _slim(child)
    if NUMBERED.search(element.get("id", "")):
        del element.attrib["id"]
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    if element.tag == "g":
        _hoist(element)
    inside = [part for child in element for part in (child if child.tag == "g" and not child.attrib else [child])]
    element[:] = [part for part in inside if part.tag != "defs" or len(part)]


def _hoist(group: ET.Element) -> None:
    """Moves the style that all markers of a group share to the group, which is most of what a marker takes."""
    markers = list(group)
    styles = {marker.get("style") for marker in markers}
    style = styles.pop() if len(styles) == 1 else None
    if style and "style" not in group.attrib and all(marker.tag == "use" for marker in markers):
        group.set("style", style)
        for marker in markers:
            del marker.attrib["style"]


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


LONG_DECIMAL = re.compile(r"-?\d+\.\d{3,}")


def _value(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    if key == "style":
        for colour, variable in VARIABLES.items():
            value = value.replace(colour, f"var({variable})")
        return value
    value = value.replace("url(#", f"url(#{name}-")
    if key in ("d", "x", "y", "transform", "points"):
        return LONG_DECIMAL.sub(lambda match: f"{float(match[0]):.2f}", " ".join(value.split()))
    return value
