"""`python -m bench`: lists the commands; each explains itself with --help."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import cli

# The first line of a command's module, such as "`python -m bench.compare A B`: what is slower in run B than in run A."
_COMMAND = re.compile(r"`python3? -m (bench\.\w+)[^`]*`: (.*)")


def commands() -> Iterator[tuple[str, str]]:
    """Returns each command and what it does, read from the docstring of its module without importing it."""
    folder = Path(__file__).parent
    for file in sorted([*folder.glob("*.py"), *folder.glob("*/__main__.py")]):
        doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        if found := _COMMAND.match(doc):
            yield found[1], found[2]


@cli.command("bench")
def main(argv: Sequence[str]) -> int:
    """Prints a line for each command."""
    cli.Parser(prog="python -m bench", description=__doc__).parse_args(argv)
    for name, about in commands():
        print(f"python -m {name:24}{about}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
