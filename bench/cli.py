"""What all command lines share: the parser, and the types of its arguments."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from reprlib import repr as shortened
from typing import TypeVar

V = TypeVar("V")

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(s|m|h|)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


class BadArgument(Exception):
    """An argument that cannot be used; the text is one line that names it and says what is allowed."""

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument}: {problem}")


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage above it."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Ends with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def values(argument: str, text: str) -> tuple[str, ...]:
    """The values of a comma list, each once."""
    found = [value.strip() for value in text.split(",")]
    if not all(found):
        raise BadArgument(argument, f"{shortened(text)} has an empty value; give values separated by commas")
    return unique(found)


def one_of(argument: str, value: str, allowed: Collection[str]) -> str:
    """The value itself, if it is allowed."""
    if value not in allowed:
        close = get_close_matches(value, allowed, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise BadArgument(argument, f"{shortened(value)} is not one of {', '.join(allowed)}{hint}")
    return value


def some_of(argument: str, text: str, allowed: Collection[str]) -> tuple[str, ...]:
    """The values of a comma list, all of them allowed."""
    return tuple(one_of(argument, value, allowed) for value in values(argument, text))


def seconds(argument: str, text: str) -> float:
    """A duration such as 90, 90s, 10m or 1.5h."""
    match = _DURATION.fullmatch(text.strip())
    length = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if length <= 0:
        raise BadArgument(argument, f"{shortened(text)} is not a duration above zero such as 90s, 10m or 1.5h")
    return length


def unique(items: Iterable[V]) -> tuple[V, ...]:
    """Each item once, in order."""
    return tuple(dict.fromkeys(items))
