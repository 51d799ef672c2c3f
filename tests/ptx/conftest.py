"""A process that compiles, in which kernels are executed, and the summary of what was found."""

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

# The findings that the summary counts, by their kinds.
COUNTED = {"wrong": "wrong", "race": "races", "deadlock": "deadlocks", "order": "orders with other bits"}


@pytest.fixture(scope="session")
def compiling():
    """Calls a function in a process without TRITON_INTERPRET, which must be unset when triton is imported."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process, pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        process.submit(len, ()).result()  # starts it
        patch.undo()
        yield lambda function, *given: process.submit(function, *given).result()


def pytest_terminal_summary(terminalreporter):
    """Prints how many cases there were, and of each kind of finding in how many of them it was made."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, ())]
    cases = [value for report in reports for name, value in report.user_properties if name == "ptx"]
    if cases:
        made = Counter(kind for kinds in cases for kind in kinds)
        others = sum(n for kind, n in made.items() if kind not in COUNTED)
        counts = [f"{made[kind]} {name}" for kind, name in COUNTED.items()]
        terminalreporter.write_line(f"PTX: {len(cases)} cases, {', '.join(counts)}, {others} with other faults")
