"""Writes the files that commands leave, so that a full disk leaves no half of one. Imports nothing that takes long."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# A file's name need not be text, and may stand in what is written.
_ERRORS = "backslashreplace"


class Unwritable(OSError):
    """A file could not be written; the text is one line that names it and says why."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self._text = f"{path} cannot be written: {error.strerror or error}; what was written before it is whole"

    def __str__(self) -> str:
        return self._text


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the path beside it to write to, which then takes its place; a reader never sees half of a file.

    Raises Unwritable where that fails, and leaves what was there before.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise Unwritable(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Writes the file as a whole; raises Unwritable."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors=_ERRORS)


def append(path: Path, text: str) -> None:
    """Hands the text to the operating system before returning, all of it or none; raises Unwritable."""
    left = memoryview(text.encode(errors=_ERRORS))
    try:
        # Without a buffer, which would be written again when the file is closed.
        with path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while left:
                    left = left[file.write(left) :]
            except BaseException:
                file.truncate(end)
                raise
    except OSError as error:
        raise Unwritable(path, error) from error
