"""A folder of runs -> index.html: every run and study with its headline, and every audit, the newest first."""

from pathlib import Path
from typing import Any

from bench import writing
from bench.page import REPORT, chart
from bench.page.formatting import day, plural, spoken
from bench.page.templating import packed, scripts, style, templates
from bench.report import across, facts
from bench.report.sections.trust import completeness
from bench.report.sections.verdict import RunVerdict
from bench.report.tally import tally
from bench.results.load import UnreadableRun, load, ordered, read_environment
from bench.study import study

INDEX = "index.html"
AUDIT = "audit.html"  # beside the records of an audit, which are no run's


def write(folder: Path) -> Path:
    """Writes index.html into a folder of runs and returns its path. A folder without any run has an empty list."""
    found = {path.parent for file in ("records.jsonl", study.FILE) for path in folder.glob(f"*/{file}")}
    entries, runs = [], []
    for one in found:
        entry = _entry(one)
        if run := entry.pop("loaded", None):
            runs.append(run)
        entries.append(entry)
    entries.sort(key=lambda entry: (entry["started"], entry["name"]), reverse=True)
    histories, legend, names = across.histories(runs)
    leaders = across.leaderboard(runs)
    gallery: list[Any] = []
    titles = {
        "runs": "All runs",
        "leaders": "Leaderboard" if leaders else "",
        "history": "History" if histories else "",
    }
    page = (
        templates()
        .get_template("index.html.j2")
        .render(
            style=style(),
            scripts=scripts("theme", "packed", "sortable", "charts"),
            sections={name: title for name, title in titles.items() if title},
            entries=entries,
            leaders=leaders,
            histories=histories,
            legend=legend,
            markers=chart.markers(legend),
            gallery=gallery,
            points=lambda panels: packed({"providers": names, "panels": [chart.columns(one, names) for one in panels]}),
        )
    )
    path = folder / INDEX
    writing.write(path, page)
    return path


def _entry(folder: Path) -> dict[str, Any]:
    """Returns what the list says about a folder; about one that cannot be read, its name and why."""
    audit = (folder / AUDIT).exists()
    page = AUDIT if audit else REPORT
    entry: dict[str, Any] = dict.fromkeys(("started", "device", "measured", "subject", "right", "speed", "problem"), "")
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
        "subject": run.subject,
        "loaded": run,
        "right": accuracy.value,
        "tone": accuracy.tone,
        "speed": "; ".join(f"against {name} {one.words}" for name, one in speed.items() if one) or "needs a GPU",
        "sentences": [*facts.model_sentences(run), *verdict.sentences()[-1:]],
        "problem": "" if complete else completeness_sentence,
    }
