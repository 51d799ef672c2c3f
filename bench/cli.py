"""Shared by all command lines: the parser, the types of its arguments, how a command ends, and the console.

Imports nothing that takes long: every command checks its arguments before it imports torch, pandas or rich.
"""

from __future__ import annotations

import argparse
import codecs
import errno
import io
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import get_close_matches
from functools import wraps
from reprlib import repr as shortened
from typing import TYPE_CHECKING, NoReturn, TypeVar

from bench.writing import Unwritable

if TYPE_CHECKING:
    from rich.console import Console

V = TypeVar("V")

DEVICES = ("cuda", "cpu")
# A disk, a quota or a file that is full, whoever was writing: Triton's cache and temporary files, too.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(s|m|h|)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


class BadArgument(Exception):
    """An argument that cannot be used; the text is one line that names it and says what is allowed."""

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument}: {problem}")


# Of what this project's own lines hold beyond ASCII; anything else is escaped.
_PLAIN = {"–": "-", "→": "->", "…": "...", "±": "+-", "×": "x", "µ": "u", "°": "", "∞": "inf", "“": '"', "”": '"'}  # noqa: RUF001


def _plainly(error: UnicodeError) -> tuple[bytes, int]:
    """Writes what a terminal's encoding lacks; the bytes of a file's name that are no text are written as they are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    written = "".join(_PLAIN.get(character, character) for character in error.object[error.start : error.end])
    try:
        return written.encode("ascii", "surrogateescape"), error.end
    except UnicodeEncodeError:
        return written.encode("ascii", "backslashreplace"), error.end


codecs.register_error("plainly", _plainly)


class Parser(argparse.ArgumentParser):
    """The parser of every command, which raises BadArgument instead of exiting."""

    def error(self, message: str) -> NoReturn:
        """Raises argparse's `argument --op: expected one argument` as a BadArgument of `--op`."""
        argument, _, problem = message.removeprefix("argument ").partition(": ")
        raise BadArgument(argument, problem)


def command(program: str) -> Callable[[Callable[[Sequence[str]], int]], Callable[..., int]]:
    """Decorates a command's `main`, which then takes the command line where it is given no arguments.

    BadArgument and a file that cannot be written become one line on stderr and status 2, Ctrl-C status 130.
    Output that the terminal's encoding lacks is written in ASCII.
    """

    def decorate(main: Callable[[Sequence[str]], int]) -> Callable[..., int]:
        @wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):
                    stream.reconfigure(errors="plainly")
            try:
                return main(sys.argv[1:] if argv is None else argv)
            except BadArgument as error:
                print(f"{program}: error:", *str(error).split(), file=sys.stderr)
                return 2
            except OSError as error:
                if not isinstance(error, Unwritable) and error.errno not in _FULL:
                    raise
                print(f"{program}: error: {error}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                return 130

        return run

    return decorate


def console(width: int, markup: bool = True) -> Console:
    """Returns the console for stdout; `width` is taken where stdout is no terminal, so that no table is squeezed."""
    from rich.console import Console

    return Console(highlight=False, markup=markup, width=None if sys.stdout.isatty() else width)


def values(argument: str, text: str) -> tuple[str, ...]:
    """Returns the values of a comma list, each once."""
    found = [value.strip() for value in text.split(",")]
    if not all(found):
        raise BadArgument(argument, f"{shortened(text)} has an empty value; give values separated by commas")
    return unique(found)


# What others call a value that is allowed here.
_MEANT = {"float32": "fp32", "float": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16"}


def one_of(argument: str, value: str, allowed: Collection[str]) -> str:
    """Returns the value itself, if it is allowed."""
    if value not in allowed:
        meant = [_MEANT[value]] if _MEANT.get(value) in allowed else []
        close = meant or get_close_matches(value, allowed, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise BadArgument(argument, f"{shortened(value)} is not one of {', '.join(allowed)}{hint}")
    return value


def among(argument: str, value: str, measured: Collection[str], known: Collection[str]) -> str:
    """Returns a provider's name, if this run measures it; `known` are all that there are."""
    if value not in measured:
        one_of(argument, value, known)
        raise BadArgument(argument, f"{value!r} is not among the providers of this run: {', '.join(measured)}")
    return value


def some_of(argument: str, text: str, allowed: Collection[str]) -> tuple[str, ...]:
    """Returns the values of a comma list, all of them allowed."""
    return tuple(one_of(argument, value, allowed) for value in values(argument, text))


def count(argument: str, text: str) -> int:
    """Returns a whole number from 1 to 9999."""
    if not re.fullmatch("[1-9][0-9]{0,3}", text):
        raise BadArgument(argument, f"{text!r} is not a whole number from 1 to 9999")
    return int(text)


def seconds(argument: str, text: str) -> float:
    """Returns a duration such as 90, 90s, 10m or 1.5h in seconds."""
    match = _DURATION.fullmatch(text.strip())
    length = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if length <= 0:
        raise BadArgument(argument, f"{shortened(text)} is not a duration above zero such as 90s, 10m or 1.5h")
    return length


def unique(items: Iterable[V]) -> tuple[V, ...]:
    """Returns each item once, in order."""
    return tuple(dict.fromkeys(items))
