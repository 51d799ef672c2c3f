"""The sections of the report: each is a file here that defines SECTION, and a template of the same name beside it.

A template that writes nothing leaves its section out. Its macro `definitions`, if it has one, explains the terms that
the section uses; the section on the method lists them all.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from bench.results.load import LoadedRun


@dataclass(frozen=True)
class Section:
    """A part of the report: its place among the others, its title in the bar, and what fills its template."""

    place: int
    title: str
    context: Callable[[LoadedRun], dict[str, Any]] = lambda run: {}


def every() -> dict[str, Section]:
    """Returns every section by the name of its file, in the order of the report."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    found = {name: import_module(f"{__name__}.{name}").SECTION for name in names}
    return dict(sorted(found.items(), key=lambda item: item[1].place))
