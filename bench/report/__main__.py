"""`python -m bench.report RUN_DIR`: makes a run's report again from its records."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.report import UnreadableRun, render


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage above it."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Ends with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Renders the report; 0 when it is written, 2 when the folder holds no readable run."""
    parser = OneLineParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder with records.jsonl and environment.json")
    run_dir = parser.parse_args(arguments).run_dir
    try:
        path = render(run_dir)
    except UnreadableRun as error:
        print(f"{parser.prog}: RUN_DIR: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
