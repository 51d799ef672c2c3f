"""The templates and the style that every page of ours is made with."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.report import formatting

HERE = Path(__file__).parent


def templates() -> Environment:
    """The environment of templates/, with the filters of formatting.py."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "duration", "size", "times", "percent", "plural", "spoken"):
        environment.filters[name] = getattr(formatting, name)
    return environment


def style() -> Markup:
    """The style sheet, to stand inside a page."""
    return Markup((HERE / "style.css").read_text(encoding="utf-8"))
