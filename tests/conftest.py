"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before Triton is imported."""

import os
from collections import Counter

# Before torch is imported, for this process and those that tests start: the tests run side by side, one on each core,
# and threads that compete for a core cost small operators several times their work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# pytest looks for hooks and fixtures here.
from repetition import _repetition, pytest_addoption, pytest_configure, pytest_generate_tests  # noqa: F401

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    from interpreter import find_once

    find_once()


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU, and this machine has none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


def pytest_terminal_summary(terminalreporter):
    """Prints the sums of record_property values whose name has "samples" in it: how much a green run covers."""
    passed = terminalreporter.stats.get("passed", ())
    counts = Counter()
    for name, count in (p for report in passed for p in report.user_properties if "samples" in p[0]):
        counts[name] += count
    for name, count in sorted(counts.items()):
        terminalreporter.write_line(f"{count:6} {name}")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def device():
    """Where the kernels run: a GPU, or the CPU by the interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
