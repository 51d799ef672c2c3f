"""A folder of runs -> index.html: every run and study with its headline, and every audit, the newest first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bench.page import REPORT
from bench.page.formatting import day, plural, spoken, times
from bench.page.templating import scripts, style, templates
from bench.report import facts
from bench.report.sections.trust import completeness
from bench.report.sections.verdict import RunVerdict
from bench.results.load import LoadedRun, UnreadableRun, load, ordered
from bench.study import study

INDEX = "index.html"
AUDIT = "audit.html"  # beside the records of an audit, which are no run's


@dataclass(frozen=True)
class Entry:
    """One run in a line; of one that cannot be read, the folder and why."""

    name: str
    page: str = ""  # where there is one to go to
    started: str = ""
    device: str = ""
    measured: str = ""
    right: str = ""
    tone: str = "plain"
    speed: str = ""
    sentences: tuple[str, ...] = ()
    problem: str = ""


def write(folder: Path) -> Path:
    """Writes index.html into a folder of runs and returns its path. A folder without any run has an empty list."""
    entries = sorted(map(_entry, _runs(folder)), key=lambda entry: (entry.started, entry.name), reverse=True)
    path = folder / INDEX
    page = templates().get_template("index.html.j2")
    path.write_text(page.render(style=style(), scripts=scripts("theme"), entries=entries), encoding="utf-8")
    return path


def _runs(folder: Path) -> list[Path]:
    files = ("records.jsonl", study.FILE)
    return sorted({path.parent for file in files for path in folder.glob(f"*/{file}")})


def _entry(run_dir: Path) -> Entry:
    if (run_dir / AUDIT).exists():
        return _audit(run_dir)
    if study.holds_study(run_dir):
        return _study(run_dir)
    page = REPORT if (run_dir / REPORT).exists() else ""
    try:
        run = load(run_dir)
    except UnreadableRun as error:
        return Entry(run_dir.name, page, problem=str(error).removeprefix(f"{run_dir}/"))
    verdict = RunVerdict(run)
    accuracy, (complete, sentence) = verdict.cards()[0], completeness(run)
    return Entry(
        name=run_dir.name,
        page=page,
        started=day(run.environment["started"]) or "",
        device=str(run.environment["device_name"] or run.environment["device"] or ""),
        measured=_measured(run),
        right=accuracy.value,
        tone=accuracy.tone,
        speed=_speed(run),
        sentences=(*facts.model_sentences(run), *verdict.sentences()[-1:]),
        problem="" if complete else sentence,
    )


def _audit(folder: Path) -> Entry:
    try:
        found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        started, command = day(found["taken"]) or "", str(found["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return Entry(folder.name, AUDIT, problem="environment.json cannot be read")
    return Entry(folder.name, AUDIT, started, measured=f"an audit of the kernels: {command}")


def _study(folder: Path) -> Entry:
    page = REPORT if (folder / REPORT).exists() else ""
    try:
        found = study.load(folder)
    except UnreadableRun as error:
        return Entry(folder.name, page, problem=str(error).removeprefix(f"{folder}/"))
    reproduced, *others = study.cards(found)
    return Entry(
        name=folder.name,
        page=page,
        started=day(found.environment["started"]) or "",
        device=str(found.environment["device_name"] or found.environment["device"] or ""),
        measured=study.asked(found),
        right=f"{reproduced.value} claims reproduced",
        tone=reproduced.tone,
        sentences=tuple(f"{card.title}: {card.detail}" for card in others if card.tone in ("bad", "caution")),
    )


def _measured(run: LoadedRun) -> str:
    ops = ", ".join(map(spoken, ordered(run.cells["op"])))
    return f"{ops}; {', '.join(ordered(run.cells['dtype']))}; {plural(len(run.cells), 'cell')}"


def _speed(run: LoadedRun) -> str:
    against = ((run.baseline, run.ours["speedup"]), ("the best peer", run.duels["ratio"]))
    found = [f"{times(mean)} of {name}" for name, ratios in against if (mean := facts.geomean(ratios)) is not None]
    return ", ".join(found) or "needs a GPU"
