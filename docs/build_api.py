"""Writes docs/api.md from the docstrings: `python docs/build_api.py`. A test holds the two together."""

import inspect
import re
from pathlib import Path
from typing import Any

import normlib
from normlib import functional

PAGE = Path(__file__).with_name("api.md")
HEAD = """# API

Generated from the docstrings by `python docs/build_api.py`. [layers.md](layers.md) is the introduction.
"""


def entry(name: str, thing: Any) -> str:
    """Returns the heading, the signature and the docstring of a class or function."""
    inherited = inspect.isclass(thing) and thing.__init__.__module__.startswith("torch.")
    # PyTorch's own signatures differ between its releases. Annotations are strings, and print with quotes.
    signature = "(...)" if inherited else re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(thing)))
    return f"## {name}\n\n```python\n{name}{signature}\n```\n\n{inspect.getdoc(thing)}\n"


def page() -> str:
    """Returns the page's text."""
    public = {f"normlib.{name}": getattr(normlib, name) for name in normlib.__all__ if name != "functional"}
    functions = {f"normlib.functional.{name}": thing for name, thing in vars(functional).items() if callable(thing)}
    return "\n".join([HEAD, *(entry(name, thing) for name, thing in (public | functions).items())])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
