"""`python -m bench.report RUN_DIR...`: makes pages again from their records; without RUN_DIR the list of all runs."""

import sys
from pathlib import Path

from bench.cli import OneLineParser
from bench.report import render
from bench.results.load import UnreadableRun
from bench.study.study import holds_study

REPORTS = Path("reports")


def main(arguments: list[str] | None = None) -> int:
    """Renders; 0 when all is written, 2 when a folder holds no readable run (those before it are written)."""
    parser = OneLineParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("run_dirs", type=Path, nargs="*", metavar="RUN_DIR", help="folder of a run or of a study")
    parser.add_argument("--figures", action="store_true", help="also leave every figure in figures/, as SVG and PNG")
    parser.add_argument(
        "--index", type=Path, metavar="DIR", help=f"list the runs in DIR in index.html (default {REPORTS}, no RUN_DIR)"
    )
    given = parser.parse_args(arguments)
    if given.figures and not given.run_dirs:
        parser.error("--figures: needs a RUN_DIR whose figures are meant")
    try:
        for run_dir in given.run_dirs:
            if holds_study(run_dir):
                # Imported here because what draws takes a second to import.
                from bench.study.page import render as render_study

                print(render_study(run_dir, given.figures))
            else:
                print(render(run_dir, given.figures))
    except UnreadableRun as error:
        print(f"{parser.prog}: RUN_DIR: {error}", file=sys.stderr)
        return 2
    folder = given.index or (None if given.run_dirs else REPORTS)
    if folder:
        if not folder.is_dir():
            parser.error(f"--index: {folder} is no folder; give the folder of runs, or RUN_DIR for one run's report")
        from bench.report import index

        print(index.write(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
