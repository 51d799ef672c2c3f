"""Says which functions of the measuring modules no test has executed: run by `make coverage` on coverage.py's JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

# Functions that need a GPU, by file, each with the reason why no test without one executes it.
NOT_EXECUTED: dict[str, dict[str, str]] = {}


def main(report: Path) -> int:
    """Prints a line for each function that was not executed and has no reason, or has one and was executed."""
    files = json.loads(report.read_text(encoding="utf-8"))["files"]
    problems = []
    for file, known in files.items():
        allowed = NOT_EXECUTED.get(file, {})
        functions = {name: found["summary"] for name, found in known["functions"].items() if name}
        idle = {name for name, found in functions.items() if found["num_statements"] and not found["covered_lines"]}
        problems += [f"{file}: no test executes {name}" for name in sorted(idle - allowed.keys())]
        problems += [f"{file}: {name} is executed: take it off the list" for name in sorted(allowed.keys() - idle)]
        print(f"{len(functions) - len(idle)} of {len(functions)} functions of {file} are executed")
    print(*problems, sep="\n")
    return 1 if problems or not files else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
