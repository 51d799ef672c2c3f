"""Puts the report together: facts and figures into the templates, everything inside one file."""

from __future__ import annotations

from typing import Any

from bench.cases.case import MODES
from bench.page import formatting, machine, palette
from bench.page.figure import Gallery
from bench.page.templating import packed, scripts, style, templates
from bench.report import cells_table, facts, losses, sections, trust
from bench.report.definitions import DEFINITIONS, STATUS_WORDS
from bench.report.verdict import Verdict
from bench.results import thresholds
from bench.results.load import Run, ordered

# The sections in their order, with their names in the bar. Without a time on a GPU there is no speed to show.
SECTIONS = {
    "verdict": "Verdict",
    "throughput": "Throughput",
    "accuracy": "Accuracy",
    "losses": "Where we lose",
    "failed": "Not ok",
    "cells": "All cells",
    "trust": "Trust",
    "machine": "Machine",
    "method": "Method",
}


def html(run: Run) -> str:
    """The whole report as one HTML document."""
    return templates().get_template("report.html.j2").render(_context(run))


def _context(run: Run) -> dict[str, Any]:
    legend = palette.keys(run.providers)
    complete, completeness = trust.completeness(run)
    models = facts.models(run)
    table = cells_table.payload(run, legend)
    return {
        "run": run,
        "env": run.environment,
        "sections": {name: title for name, title in SECTIONS.items() if name != "throughput" or run.has_speed},
        "limits": thresholds,
        "subject": thresholds.SUBJECT,
        "style": style(),
        "scripts": scripts("theme", "copy", "packed", "distribution", "table"),
        "complete": complete,
        "completeness": completeness,
        "facts_line": _measured(run),
        "machine": machine.facts(run.environment),
        "verdict": Verdict(run),
        "models": [headline.sentence(run.baseline, thresholds.SUBJECT) for headline in models],
        "model_panels": sections.of_models(models, legend),
        "summary": facts.summary_rows(run),
        "legend": legend,
        "throughput": [sections.throughput(run, op, legend) for op in ordered(run.cells["op"])]
        if run.has_speed
        else [],
        "accuracy": [sections.accuracy(run, op, legend) for op in ordered(run.errors["op"])],
        "trusted": sections.trusted(run),
        "own_failures": losses.failures(run, thresholds.SUBJECT),
        "failures": losses.failures(run),
        "warnings": trust.warnings(run),
        "providers": facts.providers(run),
        "modes": MODES,
        "heat_ends": palette.HEAT_ENDS,
        "environment": machine.flat(run.environment),
        "table": table,
        "packed_table": packed(table),
        "gallery": Gallery(),
        "pack": packed,
        "definitions": DEFINITIONS,
        "status_words": STATUS_WORDS,
        "raw_file": "records.csv" if (run.folder / "records.csv").exists() else "records.jsonl",
    }


def _measured(run: Run) -> str:
    """What was measured, in one line."""
    cells = run.cells
    if not len(cells):
        return "No cell has a record."
    ops = ", ".join(formatting.spoken(op) for op in ordered(cells["op"]))
    return (
        f"{formatting.plural(len(cells), 'cell')}: {ops}; {', '.join(ordered(cells['dtype']))}; "
        f"{', '.join(ordered(cells['mode']))}; {formatting.plural(cells['provider'].nunique(), 'provider')} "
        f"({', '.join(run.providers)})."
    )
