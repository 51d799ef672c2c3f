"""The templates, the style, the scripts, and the cards and panels that pages are made of."""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.page import formatting

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Card:
    """A verdict: a title, the figure, and what stands behind it."""

    title: str
    value: str
    detail: str
    tone: str = "plain"  # good, bad, caution, plain


@dataclass(frozen=True)
class Panel:
    """A drawing with the words above and below it."""

    title: str
    image: Markup
    note: str = ""
    points: Sequence[tuple[float, float, str, str, int | None]] = ()  # see bench.page.chart.Chart


def templates(*folders: str, **options: Any) -> Environment:
    """Returns the environment of all pages' templates, and of those in `folders`, with the filters of formatting.py.

    Options are Jinja's.
    """
    environment = Environment(
        loader=FileSystemLoader([*sorted(HERE.parent.glob("*/templates")), *folders]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **{"autoescape": True, **options},
    )
    for name in ("number", "duration", "size", "times", "percent", "plural", "spoken", "change", "count"):
        environment.filters[name] = getattr(formatting, name)
    return environment


def style() -> Markup:
    """Returns the style sheet, to stand inside a page."""
    return Markup((HERE / "style.css").read_text(encoding="utf-8"))


def scripts(*names: str) -> Markup:
    """Returns scripts of scripts/ in this order, to stand inside a page."""
    return Markup("\n".join((HERE / "scripts" / f"{name}.js").read_text(encoding="utf-8") for name in names))


def packed(data: Any) -> str:
    """Returns JSON, gzipped, in base64: the rows of a table repeat each other, and take a tenth of the space."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).encode()
    return base64.b64encode(gzip.compress(text, mtime=0)).decode()


def packed_table(data: Mapping[str, Any]) -> str:
    """Returns the data of table.js, packed column by column, which takes a third less space than row by row."""
    rows = data["rows"]
    columns = {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
    columns["is"] = list(zip(*columns.get("is", []), strict=True))
    return packed({**data, "rows": columns})
