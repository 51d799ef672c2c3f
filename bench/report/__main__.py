"""`python -m bench.report RUN_DIR...`: makes pages again from their records; without RUN_DIR the list of all runs."""

import sys
from collections.abc import Sequence
from pathlib import Path

from bench import cli
from bench.cli import BadArgument
from bench.report import render

REPORTS = Path("reports")


@cli.command("bench.report")
def main(arguments: Sequence[str]) -> int:
    """Returns 0 if all pages are written, 2 if a folder holds no readable run; the pages before it are written."""
    parser = cli.Parser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("run_dirs", type=Path, nargs="*", metavar="RUN_DIR", help="folder of a run or of a study")
    parser.add_argument("--figures", action="store_true", help="also leave every figure in figures/, as SVG")
    parser.add_argument(
        "--subject", metavar="NAME", help="the provider that the verdicts are about (default: the run's)"
    )
    parser.add_argument(
        "--index", type=Path, metavar="DIR", help=f"list the runs in DIR in index.html (default {REPORTS}, no RUN_DIR)"
    )
    given = parser.parse_args(arguments)
    if given.figures and not given.run_dirs:
        raise BadArgument("--figures", "needs a RUN_DIR whose figures are meant")
    for run_dir in given.run_dirs:
        print(_page(run_dir, given.figures, given.subject))
    folder = given.index or (None if given.run_dirs else REPORTS)
    if folder:
        if not folder.is_dir():
            what = "a file" if folder.exists() else "no folder"
            problem = f"{folder} is {what}; give the folder of runs, or RUN_DIR for one run's report"
            raise BadArgument("--index", problem)
        from bench.report import index

        print(index.write(folder))
    return 0


def _page(folder: Path, figures: bool, subject: str | None) -> Path:
    """Renders the page of a run or study; what loads and draws takes a second to import, so it is imported here."""
    from bench.results.load import UnreadableRun
    from bench.study import page, study

    if subject and study.holds_study(folder):
        raise BadArgument("--subject", f"{folder} holds a study, which is about no provider")
    try:
        return page.render(folder, figures) if study.holds_study(folder) else render(folder, figures, subject)
    except UnreadableRun as error:
        raise BadArgument("RUN_DIR", str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
