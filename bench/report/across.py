"""Many runs -> who is fastest where, and how each provider's speed moved from run to run."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

import numpy as np
import pandas as pd

from bench.page import palette
from bench.page.chart import Chart, Scale, linear, slug
from bench.page.formatting import day, percent, plural, times
from bench.page.palette import Key
from bench.page.templating import Panel
from bench.results.load import LoadedRun, ordered

SPARE = 0.05  # a history whose speeds are all within it of each other is drawn no closer
LABELS = 6  # runs under a history; the others are told at their points


def leaderboard(runs: Sequence[LoadedRun]) -> list[dict[str, Any]]:
    """Returns a row for each device, operator and provider, from the newest run of both; the fastest first.

    `share` is the geometric mean of the fastest right time of a case over the provider's, over the cases it has.
    """
    newest: dict[tuple[str, str], LoadedRun] = {}
    for run in sorted(runs, key=_started):
        newest |= {(_device(run), op): run for op in set(run.timed["op"])}
    rows = []
    for (device, op), run in sorted(newest.items()):
        cells, timed = (frame[frame["op"] == op] for frame in (run.cells, run.timed))
        share = timed.groupby("case")["latency_us"].transform("min") / timed["latency_us"]
        found = []
        for name, part in share.groupby(timed["provider"]):
            status = cells.loc[cells["provider"] == name, "status"]
            found.append(
                {
                    "device": device,
                    "op": op,
                    "provider": name,
                    "share": geometric_mean(part),
                    "fastest": int((part == 1).sum()),
                    "worst": float(part.min()),
                    "cells": len(part),
                    "of": timed["case"].nunique(),
                    "wrong": int(status.isin(["wrong", "impossible"]).sum()),
                    "run": run.folder.name,
                }
            )
        found.sort(key=lambda row: (-row["share"], row["provider"]))
        rows += [{"rank": rank, **row} for rank, row in enumerate(found, 1)]
    return rows


@dataclass(frozen=True)
class HistoryStep:
    """A provider's speed in one run: `level` is that of its first run times all changes since."""

    place: int  # among the runs of the history
    level: float
    change: float  # the speed over that of the run before; 1 in the first
    low: float  # the 95% interval of the change, from those of the cells' medians
    high: float
    cells: int  # that both runs have

    @property
    def word(self) -> str:
        """`faster` or `slower` where the interval does not reach 1."""
        return "faster" if self.low > 1 else "slower" if self.high < 1 else ""


def steps(runs: Sequence[LoadedRun], provider: str) -> list[HistoryStep]:
    """Returns a provider's speed over runs in their order, from the cells that each has in common with the one before.

    The machine's own drift between two runs is in it: only bench.compare takes that away.
    """
    found: list[HistoryStep] = []
    before = None
    for place, run in enumerate(runs):
        cells = run.timed[run.timed["provider"] == provider].set_index(["cell", "eps"])
        if before is not None:
            times_before = before[["latency_us", "latency_us_low", "latency_us_high"]]
            pair = cells.merge(times_before, left_index=True, right_index=True, suffixes=("", "_before"))
            if not len(pair):
                continue
            logs = np.log(pair["latency_us_before"] / pair["latency_us"])
            widths = [
                np.log(pair["latency_us_high" + whose] / pair["latency_us_low" + whose]) for whose in ("", "_before")
            ]
            error = np.sqrt(sum((width / 3.92) ** 2 for width in widths).sum(skipna=False)) / len(pair)
            change, wide = float(np.exp(logs.mean())), float(np.exp(1.96 * error))
            found.append(HistoryStep(place, found[-1].level * change, change, change / wide, change * wide, len(pair)))
        elif len(cells):
            found.append(HistoryStep(place, 1.0, 1.0, 1.0, 1.0, len(cells)))
        before = cells if len(cells) else before
    return found


def histories(runs: Sequence[LoadedRun]) -> tuple[list[Panel], list[Key], list[str]]:
    """Returns a chart for each device, preset and set of operators with several runs, and the keys of its providers."""
    groups: dict[tuple[str, str, str], list[LoadedRun]] = defaultdict(list)
    for run in sorted(runs, key=_started):
        if run.has_speed:
            preset = str((run.environment["arguments"] or {}).get("preset") or "")
            groups[_device(run), preset, ", ".join(ordered(run.timed["op"]))].append(run)
    groups = {key: found for key, found in groups.items() if len(found) > 1}
    names = list(dict.fromkeys(name for found in groups.values() for run in found for name in run.providers))
    legend = palette.keys(names)
    return [_history(key, found, legend) for key, found in groups.items()], list(legend.values()), names


def _history(key: tuple[str, str, str], runs: list[LoadedRun], legend: dict[str, Key]) -> Panel:
    device, preset, ops = key
    lines = {name: found for name in legend if (found := steps(runs, name))}
    levels = pd.Series([step.level for found in lines.values() for step in found])
    spare = max(SPARE, 0.1 * (levels.max() - levels.min()))
    wanted = range(0, len(runs), -(-len(runs) // LABELS))
    ticks = [(float(place), str(runs[place].environment["started"])[:10]) for place in wanted]
    chart = Chart(
        slug("history", *key), Scale(-0.3, len(runs) - 0.7, ticks, "run"),
        linear(levels.min() - spare, levels.max() + spare, times, "speed over the first run"), width=640, height=260,
    )  # fmt: skip
    for name, found in lines.items():
        chart.line(legend[name], np.array([s.place for s in found]), np.array([s.level for s in found]))
        for step in found:
            said, env = times(step.level), runs[step.place].environment
            if step.place:
                ends = f"{times(step.low)} to {times(step.high)}, {plural(step.cells, 'cell')}"
                said += f", {times(step.change)} of the run before ({ends}) {step.word}".rstrip()
            commit = str(env["git_commit"] or "unknown")[:12]
            where = f"{runs[step.place].folder.name}, {day(env['started'])}, commit {commit}"
            chart.point(step.place, step.level, name, f"{said}; {where}")
            if step.word:
                x, y = float(chart.at_x(step.place)), float(chart.at_y(step.level))
                chart.text(
                    x, y + (-9 if step.word == "faster" else 17), "▲" if step.word == "faster" else "▼", "middle"
                )
    last = [(name, found[-1]) for name, found in lines.items() if found[-1].place == len(runs) - 1]
    changed = [f"{name} {step.word} by {percent(abs(step.change - 1))}" for name, step in last if step.word]
    note = f"In {runs[-1].folder.name}, since the run before: {', '.join(changed) or 'no change'}."
    title = " · ".join(part for part in (device, preset, ops) if part)
    return chart.panel(title, f"speed over {len(runs)} runs. {note}", note)


def _device(run: LoadedRun) -> str:
    return str(run.environment["device_name"] or run.environment["device"] or "unknown device")


def _started(run: LoadedRun) -> str:
    return str(run.environment["started"] or "")
