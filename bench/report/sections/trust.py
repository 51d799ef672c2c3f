"""Reasons to trust the figures, or not: warnings, noise by provider, the state of the machine before and after."""

from typing import Any

import pandas as pd

from bench.page import palette
from bench.page.chart import slug
from bench.page.formatting import number, percent, plural
from bench.page.templating import Panel
from bench.report import facts
from bench.report.figures import clocks
from bench.report.sections import Section
from bench.results.load import LoadedRun, ordered
from bench.results.numbers import DASH, present
from bench.results.thresholds import ABOVE_ROOF, NOISY_SPREAD

# Conditions that should not change during a run, as clocks, heat and load do.
LASTING = ("driver", "git commit", "git dirty", "max sm clock mhz", "max mem clock mhz", "power limit w")
# What is drawn over the run: the record's field, its words, its unit, and the key of its limit among the conditions.
OVER_THE_RUN = (
    ("sm_clock_mhz", "SM clock", "MHz", "max_sm_clock_mhz"),
    ("mem_clock_mhz", "memory clock", "MHz", "max_mem_clock_mhz"),
    ("power_w", "power", "W", "power_limit_w"),
    ("temperature_c", "temperature", "°C", ""),
)
ENDINGS = {
    "interrupt": "It was interrupted by hand",
    "time budget": "It was stopped by its time budget",
    "error": "It was stopped by an error",
    "a lost rank": "One of its processes was lost",
    "SIGTERM": "It was ended by SIGTERM, as torchrun does where one of its processes is lost",
    "SIGHUP": "It was ended by SIGHUP, as a terminal does that is closed",
    "the loss of torchrun": "It lost torchrun, which had started it",
}


def completeness(run: LoadedRun) -> tuple[bool, str]:
    """Returns whether every planned cell has a record, and a sentence that says so."""
    complete, planned = run.environment["complete"], run.environment["cells_planned"]
    have = len(run.records) if complete else sum(record.status != "skipped" for record in run.records)
    of = f"{have:,} of {plural(planned, 'planned cell')}" if isinstance(planned, int) else plural(have, "cell")
    if complete and isinstance(planned, int) and have < planned:
        return False, f"The run says that it is complete, but the records hold {of}."
    if complete:
        return True, f"The run is complete: {of}."
    ending = ENDINGS.get(str(run.environment["stopped_by"] or ""), "It has not finished, or ended without saying why")
    return False, f"The run is not complete. {ending}, having measured {of}."


def warnings(run: LoadedRun) -> list[str]:
    """Returns reasons to believe the figures less, one sentence each."""
    env, timed = run.environment, run.timed
    complete, sentence = completeness(run)
    found = [] if complete else [sentence]
    if env["git_dirty"]:
        found.append("The checkout held uncommitted changes, so the commit alone does not give this code.")
    if len(timed):
        found += _timing_warnings(run, timed)
    if changed := [row["name"] for row in conditions(run) if row["changed"] and row["name"] in LASTING]:
        found.append(f"Not the same before and after the run: {', '.join(changed)}.")
    clocks = ordered(set(run.cells.loc[run.cells["latency_us"].notna(), "clock"]))
    if len(timed) and len(clocks) > 1:
        found.append(f"Times were taken by more than one clock: {', '.join(clocks)}.")
    missing = {n: p.get("unavailable") for n, p in facts.providers(run).items() if p.get("unavailable")}
    if missing:
        found.append(f"Not served here: {'; '.join(f'{name}: {why}' for name, why in sorted(missing.items()))}.")
    return found


def _timing_warnings(run: LoadedRun, timed: pd.DataFrame) -> list[str]:
    """Returns the warnings about the times of a run that has some."""

    def count(which: pd.Series) -> str:
        return f"{plural(int(which.sum()), 'timed cell')} of {len(timed):,}"

    found = []
    if (noisy := timed["spread"] > NOISY_SPREAD).any():
        worst = timed.loc[timed["spread"].idxmax()]
        found.append(
            f"{count(noisy)} scatter by more than {percent(NOISY_SPREAD)} (p90 less p10, over the median); "
            f"the widest is {worst['provider']} on {worst['label']} with {percent(worst['spread'])}."
        )
    if (above := timed["roofline_fraction"] > ABOVE_ROOF).any():
        top = timed.loc[timed["roofline_fraction"].idxmax()]
        found.append(
            f"{plural(int(above.sum()), 'timed cell')} move data faster than the measured copy (up to "
            f"{percent(top['roofline_fraction'])}, {top['provider']} on {top['label']}): "
            "the data stayed in a cache, or the bytes are miscounted."
        )
    if (held := timed["throttle"] != "").any():
        reasons = sorted({reason.strip() for text in timed.loc[held, "throttle"] for reason in text.split(",")})
        found.append(
            f"{count(held)} ran while the GPU's clocks were held down ({', '.join(reasons)}), and taking the samples "
            "again did not help."
        )
    if (spent := timed["stopped"] == "budget").any():
        found.append(f"{count(spent)} ran out of time before the noise was low enough.")
    if run.environment["baseline"] == "":
        found.append("No provider is the baseline, so there are no speedups against one; --baseline names it.")
    if not run.environment["copy_gbps"]:
        found.append("The copy bandwidth was not measured, so no fraction of it can be given.")
    if without := int(((timed["provider"] == run.subject) & timed["speedup"].isna()).sum()):
        found.append(f"{plural(without, 'timed cell')} of {run.subject} have no time of {run.baseline} beside them.")
    return found


def conditions(run: LoadedRun) -> list[dict[str, Any]]:
    """Returns the state of the machine before and after the run, row by row; nothing where it was not recorded."""
    before, after = _state(run, "before"), _state(run, "after")
    if before is None or after is None:
        return []
    return [
        {
            "name": name.replace("_", " "),
            "before": _written(before.get(name)),
            "after": _written(after.get(name)),
            "changed": before.get(name) != after.get(name),
        }
        for name in dict.fromkeys((*before, *after))
    ]


def _state(run: LoadedRun, when: str) -> dict[str, Any] | None:
    both = run.environment["conditions"]
    state = both.get(when) if isinstance(both, dict) else None
    return state if isinstance(state, dict) else None


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value, 4) if isinstance(value, int | float) else str(value or DASH)


def noise(run: LoadedRun) -> list[dict[str, Any]]:
    """Returns a row a provider that was timed on a GPU; `held` counts cells whose clocks were held down."""
    parts = {name: run.timed[run.timed["provider"] == name] for name in run.providers}
    return [
        {
            "provider": name,
            "cells": len(part),
            "samples": pd.to_numeric(part["samples"]).median(),
            "least": float(pd.to_numeric(part["samples"]).min()),
            "spread": part["spread"].median(),
            "widest": part["spread"].max(),
            "error": pd.to_numeric(part["noise"]).median(),
            "noisy": int((part["spread"] > NOISY_SPREAD).sum()),
            "budget": int((part["stopped"] == "budget").sum()),
            "retaken": int(pd.to_numeric(part["retaken"]).fillna(0).sum()),
            "held": int((part["throttle"] != "").sum()),
        }
        for name, part in parts.items()
        if len(part)
    ]


def over_the_run(run: LoadedRun) -> list[Panel]:
    """Returns the GPU's clocks, power and heat, one value a timed cell."""
    limits, panels = _state(run, "before") or {}, []
    for column, title, unit, limit in OVER_THE_RUN:
        drawn = run.timed.assign(**{column: pd.to_numeric(run.timed[column])})
        if drawn[column].notna().any():
            top = limits.get(limit)
            at = float(top) if present(top) else None
            note = f"The dashed line is the limit, {number(top, 4)} {unit}." if at else ""
            panels.append(clocks.over_the_run(drawn, column, unit, at, slug("run", column), title, note))
    return panels


SECTION = Section(
    70,
    "Trust",
    lambda run: {
        "warnings": warnings(run),
        "noise": noise(run),
        "panels": over_the_run(run),
        "conditions": conditions(run),
        "legend": palette.keys(run.providers),
    },
)
