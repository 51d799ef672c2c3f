"""The templates, the style and the scripts that every page of ours is made with."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.page import formatting

HERE = Path(__file__).parent


def templates(**options: Any) -> Environment:
    """Returns the environment of all pages' templates, with the filters of formatting.py; options are Jinja's."""
    environment = Environment(
        loader=FileSystemLoader(sorted(HERE.parent.glob("*/templates"))),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **{"autoescape": True, **options},
    )
    for name in ("number", "duration", "size", "times", "percent", "plural", "spoken", "change"):
        environment.filters[name] = getattr(formatting, name)
    return environment


def style() -> Markup:
    """The style sheet, to stand inside a page."""
    return Markup((HERE / "style.css").read_text(encoding="utf-8"))


def scripts(*names: str) -> Markup:
    """Scripts of scripts/ in this order, to stand inside a page."""
    return Markup("\n".join((HERE / "scripts" / f"{name}.js").read_text(encoding="utf-8") for name in names))


def packed(data: Any) -> str:
    """JSON, gzipped, in base64: the rows of a table repeat each other, and take a tenth of the space."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).encode()
    return base64.b64encode(gzip.compress(text, mtime=0)).decode()
