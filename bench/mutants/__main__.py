"""`python -m bench.mutants`: plants bugs in the kernels, one at a time, and tells which cell of the gate notices each.

exit status: 0 every one was caught; 1 one survived, or the real kernels fail; 2 unusable arguments; 130 Ctrl-C
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench import cli
from bench.cli import BadArgument
from bench.mutants import catalogue
from bench.mutants.planting import Mutant

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bench.mutants.gate import Gate, Outcome


@cli.command("bench.mutants")
def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns its exit status (see --help)."""
    about, _, notes = (__doc__ or "").partition("\n\n")
    parser = cli.Parser(prog="python -m bench.mutants", description=about, epilog=notes)
    parser.add_argument("--only", metavar="NAMES", help="these mutants, separated by commas")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    given = parser.parse_args(argv)
    by_name = {mutant.name: mutant for mutant in catalogue.MUTANTS}
    names = tuple(by_name) if given.only is None else cli.values("--only", given.only)
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise BadArgument("--only", f"no mutant is called {', '.join(map(repr, unknown))}; --list names them all")
    chosen = [by_name[name] for name in names]
    console = cli.console(220, markup=False)
    if given.list:
        console.print(_listing(chosen))
        return 0
    return _run(console, chosen)


def _run(console: Console, mutants: Sequence[Mutant]) -> int:
    from rich.console import Console
    from rich.progress import track

    from bench.measure import devices

    device, _ = devices.choose(None)

    # From here on triton may be imported.
    from bench.mutants.gate import Gate

    began, gate, progress = time.monotonic(), Gate(device), Console(stderr=True)
    broken = _broken(gate, mutants)
    if broken:
        console.print("the real kernels fail the gate, so that nothing is proved by a mutant that fails:", *broken)
        return 1
    outcomes = [
        gate.hunt(mutant)
        for mutant in track(mutants, "hunting", console=progress, transient=True, disable=not progress.is_terminal)
    ]
    console.print(_table(outcomes))
    survivors = [outcome.mutant.name for outcome in outcomes if outcome.record is None]
    console.print(
        f"{len(outcomes)} mutants, {len(outcomes) - len(survivors)} caught, {len(survivors)} survived,"
        f" on {device.type} in {time.monotonic() - began:.0f} s"
    )
    if survivors:
        console.print("survived:", ", ".join(survivors), style="bold red")
    return 1 if survivors else 0


def _broken(gate: Gate, mutants: Sequence[Mutant]) -> list[str]:
    """Returns the cells of these mutants that the kernels fail as they are, each a line."""
    from bench.mutants.gate import cases_of
    from bench.mutants.planting import planted

    with planted():
        records = {case: gate.measure(case) for case in cases_of(mutants)}
    return [f"\n{case.label}: {r.status}: {r.reason}" for case, r in records.items() if r.status != "ok"]


def _listing(mutants: Sequence[Mutant]) -> Table:
    from rich.table import Table

    table = Table("mutant", "kernels/", "function", "what is planted", box=None, pad_edge=False)
    for mutant in mutants:
        table.add_row(mutant.name, f"{mutant.file}.py", mutant.within, mutant.about)
    return table


def _table(outcomes: Sequence[Outcome]) -> Table:
    from rich.table import Table

    table = Table("mutant", "kernels/", "what is planted", "verdict", "cell", "figure", box=None, pad_edge=False)
    table.add_column("cells", justify="right")
    for outcome in outcomes:
        mutant, record = outcome.mutant, outcome.record
        found = ("survived", "", "") if record is None else (record.status, record.case.label, outcome.figure)
        style = "bold red" if record is None else ""
        table.add_row(mutant.name, f"{mutant.file}.py", mutant.about, *found, str(outcome.cells), style=style)
    return table


if __name__ == "__main__":
    sys.exit(main())
