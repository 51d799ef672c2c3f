"""Fixtures shared by the tests of reports."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from report_runs import write


@pytest.fixture
def run_dir(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run into a folder of the test's own and returns the folder."""
    return partial(write, tmp_path)
