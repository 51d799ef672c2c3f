"""Can the figures be believed: warnings in words, noise by provider, the state of the machine before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.page.formatting import DASH, number, percent, plural
from bench.report import facts
from bench.results.load import Run, ordered
from bench.results.thresholds import ABOVE_ROOF, NOISY_SPREAD, SUBJECT


def completeness(run: Run) -> tuple[bool, str]:
    """Whether every planned cell has a record, and a sentence on it."""
    complete, planned = run.environment["complete"], run.environment["cells_planned"]
    have = len(run.records) if complete else int((run.cells["status"] != "skipped").sum())
    of = f"{have:,} of {plural(planned, 'planned cell')}" if isinstance(planned, int) else plural(have, "cell")
    endings = {
        "interrupt": "It was interrupted by hand",
        "time budget": "It was stopped by its time budget",
        "error": "It was stopped by an error",
        "a lost rank": "One of its processes was lost",
        "SIGTERM": "It was ended by SIGTERM, as torchrun does where one of its processes is lost",
        "SIGHUP": "It was ended by SIGHUP, as a terminal does that is closed",
        "the loss of torchrun": "It lost torchrun, which had started it",
    }
    if complete:
        if isinstance(planned, int) and have < planned:
            return False, f"The run says that it is complete, but the records hold {of}."
        return True, f"The run is complete: {of}."
    ending = endings.get(str(run.environment["stopped_by"] or ""), "It has not finished, or ended without saying why")
    return False, f"The run is not complete. {ending}, having measured {of}."


def warnings(run: Run) -> list[str]:
    """Reasons to believe the figures less, one sentence each."""
    env, cells = run.environment, run.cells
    timed = cells[cells["timed"]]
    found = []
    if not completeness(run)[0]:
        found.append(completeness(run)[1])
    if env["git_dirty"]:
        found.append("The checkout held uncommitted changes, so the commit alone does not give this code.")
    if len(timed):
        noisy = timed[timed["spread"] > NOISY_SPREAD]
        if len(noisy):
            worst = noisy.loc[noisy["spread"].idxmax()]
            found.append(
                f"{plural(len(noisy), 'timed cell')} of {len(timed):,} scatter by more than {percent(NOISY_SPREAD)} "
                f"(p90 less p10, over the median); the widest is {worst['provider']} on {worst['label']} with "
                f"{percent(worst['spread'])}."
            )
        above = timed[timed["roofline_fraction"] > ABOVE_ROOF]
        if len(above):
            top = above.loc[above["roofline_fraction"].idxmax()]
            found.append(
                f"{plural(len(above), 'timed cell')} move data faster than the measured copy (up to "
                f"{percent(top['roofline_fraction'])}, {top['provider']} on {top['label']}): "
                "the data stayed in a cache, or the bytes are miscounted."
            )
        held = timed[timed["throttle"] != ""]
        if len(held):
            reasons = sorted({reason.strip() for text in held["throttle"] for reason in text.split(",")})
            found.append(
                f"{plural(len(held), 'timed cell')} of {len(timed):,} ran while the GPU's clocks were held down "
                f"({', '.join(reasons)}), and taking the samples again did not help."
            )
        spent = timed[timed["stopped"] == "budget"]
        if len(spent):
            found.append(
                f"{plural(len(spent), 'timed cell')} of {len(timed):,} ran out of time before the noise was low enough."
            )
        if not env["copy_gbps"]:
            found.append("The copy bandwidth was not measured, so no fraction of it can be given.")
        without = timed[(timed["provider"] == SUBJECT) & timed["speedup"].isna()]
        if len(without):
            found.append(
                f"{plural(len(without), 'timed cell')} of {SUBJECT} have no time of {run.baseline} beside them."
            )
    if changed := [row.name for row in conditions(run) if row.changed and row.name in LASTING]:
        found.append(f"Not the same before and after the run: {', '.join(changed)}.")
    clocks = ordered(set(cells.loc[cells["latency_us"].notna(), "clock"]))
    if len(timed) and len(clocks) > 1:
        found.append(f"Times were taken by more than one clock: {', '.join(clocks)}.")
    missing = {n: p.get("unavailable") for n, p in facts.providers(run).items() if p.get("unavailable")}
    if missing:
        found.append(f"Not served here: {'; '.join(f'{name} ({why})' for name, why in sorted(missing.items()))}.")
    return found


@dataclass(frozen=True)
class Condition:
    """One property of the machine, before the run and after it."""

    name: str
    before: str
    after: str
    changed: bool


# What has no reason to change while a run goes on; clocks, heat and load have.
LASTING = ("driver", "git commit", "git dirty", "max sm clock mhz", "max mem clock mhz", "power limit w")


def conditions(run: Run) -> list[Condition]:
    """The environment before and after the run, row by row; nothing where it was not recorded."""
    both = run.environment["conditions"]
    before, after = (both.get(side) if isinstance(both, dict) else None for side in ("before", "after"))
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return []
    return [
        Condition(
            name=name.replace("_", " "),
            before=_written(before.get(name)),
            after=_written(after.get(name)),
            changed=before.get(name) != after.get(name),
        )
        for name in dict.fromkeys((*before, *after))
    ]


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value, 4) if isinstance(value, int | float) else str(value or DASH)


@dataclass(frozen=True)
class Noise:
    """How well one provider's cells were timed. Spread is p90 less p10, over the median."""

    provider: str
    cells: int
    samples: float  # median
    least: float  # samples of the cell with fewest
    spread: float  # median
    widest: float
    error: float  # median of the standard error
    noisy: int
    budget: int  # cells whose sampling ran out of time
    retaken: int  # samples
    held: int  # cells whose clocks were held down


def noise(run: Run) -> list[Noise]:
    """One row a provider that was timed on a GPU."""
    timed = run.cells[run.cells["timed"]]
    return [_noise(name, part) for name in run.providers if len(part := timed[timed["provider"] == name])]


def _noise(name: str, part: pd.DataFrame) -> Noise:
    samples = pd.to_numeric(part["samples"])
    return Noise(
        provider=name,
        cells=len(part),
        samples=float(samples.median()),
        least=float(samples.min()),
        spread=float(part["spread"].median()),
        widest=float(part["spread"].max()),
        error=float(pd.to_numeric(part["noise"]).median()),
        noisy=int((part["spread"] > NOISY_SPREAD).sum()),
        budget=int((part["stopped"] == "budget").sum()),
        retaken=int(pd.to_numeric(part["retaken"]).fillna(0).sum()),
        held=int((part["throttle"] != "").sum()),
    )
