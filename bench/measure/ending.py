"""The status and the reason that an exception stands for in a record."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

# Recognized by name, so that a CPU run need not import Triton's OutOfResources (shared memory, registers).
_OOM_TYPES = ("OutOfMemoryError", "OutOfResources", "MemoryError")
_OOM_TEXT = "can't allocate memory"  # how PyTorch's CPU allocator says it, in a plain RuntimeError
# One line of a table; what a compiler prints behind that is found by running the cell by itself.
_REASON_LENGTH = 300
# The folders of an absolute path.
_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[/\\][^/\\\s:'\"]+)+[/\\](?=[^/\\\s])")


@contextmanager
def exits_raised() -> Iterator[None]:
    """Makes an error as any other of sys.exit: in a provider's code it would end the run, and with success."""
    try:
        yield
    except SystemExit as left:
        raise RuntimeError(f"it calls sys.exit({left.code!r})") from left


def ending(error: BaseException) -> tuple[str, str]:
    """Returns the status, and the exception's type and first line as the reason."""
    seen: BaseException | None = error
    while seen is not None:
        # Compilers wrap what went wrong, so that the cause is looked for as well.
        if any(t.__name__ in _OOM_TYPES for t in type(seen).__mro__) or _OOM_TEXT in text_of(seen):
            return "oom", _named(seen)
        seen = seen.__cause__ or seen.__context__
    return "crash", _named(error)


def trace_of(error: BaseException) -> str:
    """Returns the whole trace, causes included. It names folders, and is for the machine's owner."""
    return "".join(traceback.format_exception(error))


def text_of(error: BaseException) -> str:
    """Returns an exception's text; that it has none where its own __str__ fails."""
    try:
        return str(error).encode(errors="backslashreplace").decode()  # a file's name in it need not be text
    except Exception as broken:
        return f"its text cannot be had: {type(broken).__name__}"


def one_line(text: str) -> str:
    """Returns the first line, of a path only the last part: a reason is published, and folders are personal."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _PATH.sub("", lines[0])[:_REASON_LENGTH] if lines else ""


def _named(error: BaseException) -> str:
    return ": ".join(part for part in (type(error).__name__, one_line(text_of(error))) if part)
