"""Files of one JSON object a line, which a killed process may have left with a last line cut short."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def read(path: Path, make: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """Yields what `make` makes of each line in order; drops a last line that is not JSON.

    Raises ValueError, which names the file and its line, where another line is not JSON or `make` cannot use it.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                if next(file, None) is None:
                    return
                raise ValueError(f"{path}: line {number} is not JSON ({error.msg})") from None
            try:
                yield make(row)
            except (TypeError, AttributeError, KeyError, ValueError) as error:
                raise ValueError(f"{path}: line {number} cannot be used ({error})") from None
