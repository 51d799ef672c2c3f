"""Cells of every provider that are not ok."""

from bench.report.sections import Section
from bench.report.sections.losses import failures

SECTION = Section(60, "Not ok", lambda run: {"failures": failures(run.cells)})
