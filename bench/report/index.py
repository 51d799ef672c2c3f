"""A folder of runs -> index.html: every run and study with its headline, and every audit, the newest first."""

from pathlib import Path
from typing import Any

from bench.page import REPORT
from bench.page.formatting import day, plural, spoken
from bench.page.templating import scripts, style, templates
from bench.report import facts
from bench.report.sections.trust import completeness
from bench.report.sections.verdict import RunVerdict
from bench.report.tally import tally
from bench.results.load import UnreadableRun, load, ordered, read_environment
from bench.study import study

INDEX = "index.html"
AUDIT = "audit.html"  # beside the records of an audit, which are no run's


def write(folder: Path) -> Path:
    """Writes index.html into a folder of runs and returns its path. A folder without any run has an empty list."""
    runs = {path.parent for file in ("records.jsonl", study.FILE) for path in folder.glob(f"*/{file}")}
    entries = sorted(map(_entry, runs), key=lambda entry: (entry["started"], entry["name"]), reverse=True)
    path = folder / INDEX
    page = templates().get_template("index.html.j2")
    path.write_text(page.render(style=style(), scripts=scripts("theme"), entries=entries), encoding="utf-8")
    return path


def _entry(folder: Path) -> dict[str, Any]:
    """Returns what the list says about a folder; about one that cannot be read, its name and why."""
    audit = (folder / AUDIT).exists()
    page = AUDIT if audit else REPORT
    entry: dict[str, Any] = dict.fromkeys(("started", "device", "measured", "right", "speed", "problem"), "")
    entry |= {"name": folder.name, "page": page if (folder / page).exists() else "", "tone": "plain", "sentences": ()}
    describe = _audit if audit else _study if study.holds_study(folder) else _run
    try:
        environment = read_environment(folder)
        entry["device"] = environment["device_name"] or environment["device"] or ""
        entry["started"] = day(environment["started"]) or ""
        return entry | describe(folder)
    except UnreadableRun as error:
        return entry | {"problem": str(error).removeprefix(f"{folder}/")}


def _audit(folder: Path) -> dict[str, Any]:
    found = read_environment(folder)
    return {"started": day(found.get("taken")) or "", "measured": f"an audit of the kernels: {found['command']}"}


def _study(folder: Path) -> dict[str, Any]:
    found = study.load(folder)
    reproduced, *others = study.cards(found)
    return {
        "measured": study.asked(found),
        "right": f"{reproduced.value} claims reproduced",
        "tone": reproduced.tone,
        "sentences": [f"{card.title}: {card.detail}" for card in others if card.tone in ("bad", "caution")],
    }


def _run(folder: Path) -> dict[str, Any]:
    run = load(folder)
    verdict, (complete, completeness_sentence) = RunVerdict(run), completeness(run)
    accuracy = verdict.cards()[0]
    ops = ", ".join(map(spoken, ordered(run.cells["op"])))
    speed = {run.baseline: tally(run.against), "the best peer": tally(run.duels)}
    return {
        "measured": f"{ops}; {', '.join(ordered(run.cells['dtype']))}; {plural(len(run.cells), 'cell')}",
        "right": accuracy.value,
        "tone": accuracy.tone,
        "speed": "; ".join(f"against {name} {one.words}" for name, one in speed.items() if one) or "needs a GPU",
        "sentences": [*facts.model_sentences(run), *verdict.sentences()[-1:]],
        "problem": "" if complete else completeness_sentence,
    }
