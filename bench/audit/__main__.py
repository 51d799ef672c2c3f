"""`python -m bench.audit`: counts the bytes that kernels move and compiles them, for GPUs that need not be here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cli, writing
from bench.audit.choices import audited, presets
from bench.audit.groups import Row
from bench.audit.limits import LIMITS
from bench.cases import sweep
from bench.cli import BadArgument

PROGRAM = "python -m bench.audit"
_NOTES = """\
exit status: 0 all is well; 1 a kernel spills, loads or stores fewer bits at a time than it could, or moves other bytes
than its plan declares; 2 unusable arguments, or a file cannot be written
"""


@dataclass(frozen=True)
class Asked:
    """The checked arguments of the command line."""

    ops: tuple[str, ...]
    targets: tuple[str, ...]
    presets: tuple[str, ...] | None
    out: Path | None
    simulate: bool

    @property
    def command(self) -> str:
        """The command that repeats the audit, without its output folder."""
        chosen = ("--preset", ",".join(self.presets)) if self.presets else ()
        simulated = ("--simulate",) if self.simulate else ()
        return " ".join((PROGRAM, "--op", ",".join(self.ops), "--arch", ",".join(self.targets), *chosen, *simulated))


@cli.command("bench.audit")
def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns its exit status (see --help)."""
    parser = cli.Parser(prog=PROGRAM, description=__doc__, epilog=_NOTES)
    parser.add_argument("--op", default="all", help="operators: bn, ln, rms, ... or all (default)")
    parser.add_argument("--arch", default=",".join(LIMITS), help=f"of {', '.join(LIMITS)} (default: all)")
    parser.add_argument("--preset", help="presets as of bench.run, or extra, or all (default: every model, and extra)")
    parser.add_argument(
        "--simulate",
        action="store_true",
        help="also what training is expected to reach on an H200 by its machine code (seconds a pass; needs sm_90, cc)",
    )
    parser.add_argument("--json", action="store_true", help="the records on stdout, one JSON object a line, no table")
    parser.add_argument("--out", metavar="DIR", help="writes records.jsonl, audit.html and environment.json there")
    given = parser.parse_args(argv)
    asked = _checked(given.op, given.arch, given.preset, given.out, given.simulate)

    import torch

    from bench.audit import calls as audited_calls
    from bench.audit import counters, page, terminal
    from bench.audit.expected import constants_of
    from bench.audit.fused import pairs
    from bench.audit.records import collect
    from bench.audit.speed import expectation, simulator
    from bench.measure import environment

    if environment.interpreting():  # and so does every kernel that has been imported: again, in a process that does not
        clean = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        return subprocess.run([sys.executable, "-m", "bench.audit", *argv], env=clean).returncode
    constants = {target: constants_of(target) for target in asked.targets}
    described = environment.collect(torch.device("cuda" if torch.cuda.is_available() else "cpu"), {})
    with _counting(asked.ops) as counts:
        calls = list(audited_calls.calls(asked.ops, asked.presets))
        simulated = {expectation.TARGET: ("fwd", "bwd")} if asked.simulate and simulator.compiler() else {}
        rows = [
            record.as_dict()
            for target in asked.targets
            for record in collect(target, calls, constants[target], simulated.get(target, ()))
        ]
        rows += [pair.as_dict() for target in asked.targets for pair in pairs(target, calls)]
        rows += counts()
    if asked.simulate:
        rows.append({"record": "note", "text": expectation.note(), "problems": []})
    rows += [known.as_dict() for known in constants.values() if known]
    rows += counters.collect(calls, rows)
    if given.json:
        for row in rows:
            print(_line(row))
    else:
        terminal.show(cli.console(200), rows)
    if asked.out:  # last: where that fails, what took minutes has been shown
        writing.write(asked.out / "records.jsonl", "".join(_line(row) + "\n" for row in rows))
        writing.write(asked.out / "audit.html", page.html(rows, asked.command))
        environment.write(asked.out, {**described, "command": asked.command, "taken": environment.now()})
    return 1 if any(row["problems"] for row in rows) else 0


def _line(row: Row) -> str:
    return json.dumps(row, separators=(",", ":"))


def _checked(op: str, arch: str, preset: str | None, out: str | None, simulate: bool) -> Asked:
    ops = sweep.chosen_operators("--op", op, audited())
    targets = cli.some_of("--arch", arch, LIMITS)
    if simulate and "sm_90" not in targets:
        raise BadArgument("--simulate", "simulates sm_90 only; give --arch sm_90, or none")
    names = None if preset is None else cli.some_of("--preset", preset, (*presets(ops), "all"))
    folder = None if out is None else Path(out)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadArgument("--out", f"{out!r} cannot be written: {error.strerror}; give a folder") from error
    return Asked(ops, targets, presets(ops) if names and "all" in names else names, folder, simulate)


@contextmanager
def _counting(ops: Sequence[str]) -> Iterator[Callable[[], Iterator[dict[str, Any]]]]:
    """The interpreter at work beside this process, which compiles; of a fused operator it runs the plain norm too.

    Within, what is yielded waits for it and gives its records.
    """
    from bench.audit.fused import UNFUSED

    plain = (UNFUSED[op][0] for op in ops if op in UNFUSED)
    command = [sys.executable, "-m", "bench.audit.counting", *dict.fromkeys((*ops, *plain))]
    # Into a file: behind a full pipe it would wait until somebody reads.
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        environ = {**os.environ, "TRITON_INTERPRET": "1"}
        with subprocess.Popen(command, env=environ, stdout=file, text=True) as process:

            def counts() -> Iterator[dict[str, Any]]:
                if process.wait():
                    raise RuntimeError("the interpreter failed to count; what it said is above")
                file.seek(0)
                yield from map(json.loads, file)

            yield counts


if __name__ == "__main__":
    sys.exit(main())
