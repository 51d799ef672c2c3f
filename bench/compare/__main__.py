"""`python -m bench.compare A B`: what is slower, faster, newly wrong or less accurate in run B than in run A."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import cli, writing
from bench.cli import BadArgument
from bench.compare.comparison import FAIL_ON, REGRESSIONS, THRESHOLD, Comparison

PAGE = "compare.html"
_NOTES = f"""\
A cell is SLOWER or FASTER where the whole interval of its change is beyond the threshold, SAME where a change of 5%
(or of twice the threshold) is out of the question, else UNCLEAR. Intervals come from the samples, and hold for all
cells together: the chance of any false alarm in a comparison is 1%. What all providers of a case share is taken for
the machine's doing. Only times of a GPU's clock are compared; without them only errors are.

--fail-on: {", ".join(REGRESSIONS)}, or none; default {",".join(FAIL_ON)}. `wrong` is a cell that was ok and now is
wrong, impossible, unsupported, out of memory, out of time or crashed. The cells of --subject count, and what changed of
the others is told; where the runs have no cell of the subject, all count. --provider NAMES looks only at those.

exit status: 0 nothing of --fail-on; 1 a regression; 2 unusable arguments, no run, or no cell in common
"""


@cli.command("bench.compare")
def main(arguments: Sequence[str]) -> int:
    """Runs the command line and returns its exit status (see --help)."""
    given = _parser().parse_args(arguments)
    # Here, because numpy, jinja2 and rich take long to import, which a bad argument need not wait for.
    from bench.compare.judging import Incomparable, compare
    from bench.compare.terminal import plain, show
    from bench.results.load import UnreadableRun

    try:
        comparison = compare(given.a, given.b, given.threshold, given.provider, given.subject)
    except (Incomparable, UnreadableRun) as error:
        raise BadArgument("A or B", str(error)) from error
    page = _write(comparison, given.out)
    failed = comparison.regressed(given.fail_on)
    if given.json:
        json.dump({**plain(comparison), "page": page, "regressed": failed}, sys.stdout, indent=1)
        print()
    else:
        console = cli.console(160)
        show(console, comparison)
        console.print(f"page: {page}", markup=False, soft_wrap=True)
    return 1 if failed else 0


def _write(comparison: Comparison, out: Path | None) -> str:
    """Writes the page and returns where it is, or why there is none: B's folder may be write-protected."""
    from bench.compare.page import html

    path = out or comparison.b / PAGE
    try:
        writing.write(path, html(comparison))
    except OSError as error:
        if out:
            raise BadArgument("--out", f"{str(path)!r} cannot be written: {error.strerror}") from None
        return f"none, for {path} cannot be written ({error.strerror}); --out names another place"
    return str(path)


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python -m bench.compare",
        description=__doc__,
        epilog=_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("a", type=Path, metavar="A", help="folder of the run that B is compared with")
    parser.add_argument("b", type=Path, metavar="B", help="folder of the run that is judged")
    parser.add_argument(
        "--threshold", type=_share, default=THRESHOLD, metavar="X%", help="least change that counts (default 0.5%%)"
    )
    parser.add_argument(
        "--provider", type=_names, default=(), metavar="NAMES", help="providers to look at (default all)"
    )
    parser.add_argument("--subject", metavar="NAME", help="whose changes decide the exit status (default that of B)")
    parser.add_argument("--fail-on", type=_regressions, default=FAIL_ON, metavar="WHAT", help="see below")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"the page (default {PAGE} in B's folder)")
    parser.add_argument("--json", action="store_true", help="print every cell as JSON in the table's place")
    return parser


def _share(text: str) -> float:
    """Returns 0.03 for `3%` or `0.03`."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share from 0% to below 100%; write 3% or 0.03")
    return share


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError("empty; give names separated by commas")
    return names


def _regressions(text: str) -> tuple[str, ...]:
    names = () if text == "none" else _names(text)
    for name in names:
        if name not in REGRESSIONS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(REGRESSIONS)}; or give none")
    return names


if __name__ == "__main__":
    sys.exit(main())
