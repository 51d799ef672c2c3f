"""A study's records -> one HTML file that opens offline, in the style of the reports. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.page import FIGURES, REPORT, machine, palette, svg
from bench.page.formatting import plural
from bench.page.templating import packed, scripts, style, templates
from bench.results import thresholds
from bench.study import records, values_table, words
from bench.study.claims import BN, PLAIN
from bench.study.experiment import Experiment
from bench.study.figures import panels
from bench.study.study import Study, load

SECTIONS = {
    "verdict": "Verdict",
    "experiments": "Experiments",
    "values": "All values",
    "setting": "Setting",
    "method": "Method",
}
# Columns of an experiment's table of values: a sweep has one a setting, and they stand in the table of all values.
NAMES = 6
# What every experiment is compared with keeps its colour and shape, whoever else is there.
PLACES = {BN: 0, PLAIN: 1}

METHOD = (
    ("gate", "The inequality that a claim stands or falls by, fixed before the run; judged in every seed by itself."),
    ("reproduced", "Every gate holds in every seed, of which there are at least three; of a sweep one is enough."),
    ("not reproduced", "A gate fails in most seeds."),
    ("not decided", "Neither: a gate fails in a few seeds, a run failed, or there are too few seeds."),
    ("reported", "The claim has no gate: what came out is shown, and nothing is concluded."),
    ("∞", "A loss that diverged, or a number of steps after which a loss was still not reached."),
    ("figures", "A line is the median over the seeds that are still finite, the band around it their range. Of the "
     "bands of a landscape each end is a median. A cross is where a run diverged, or the edge where it had left."),
    ("loss, auc", "Mean cross-entropy in nats of training batches; an auc is its mean over all steps of a run."),
)  # fmt: skip


def render(folder: Path, figures: bool = False) -> Path:
    """Writes report.html into a study's folder and returns its path.

    With `figures` every figure is also left in figures/, as SVG and as PNG. Reads study.jsonl and environment.json.
    Raises UnreadableRun, with one line, where one of them is missing or broken; nothing is written then.
    """
    study = load(folder)
    with svg.files_in(folder / FIGURES if figures else None):
        html = templates().get_template("study.html.j2").render(_context(study))
    path = folder / REPORT
    path.write_text(html, encoding="utf-8")
    return path


def _context(study: Study) -> dict[str, Any]:
    return {
        "title": "Experiments of the literature on normalization, run again",
        "sections": SECTIONS,
        "style": style(),
        "scripts": scripts("theme", "copy", "packed", "table"),
        "limits": thresholds,
        "lead": f"{plural(len(study.experiments), 'experiment')}, {plural(len(study.runs), 'run')}. "
        "Each claim stands or falls by an inequality, its gate, that was fixed before.",
        "facts": words.setting(study),
        "banners": words.banners(study),
        "cards": words.cards(study),
        "experiments": [_experiment(study, experiment) for experiment in study.experiments],
        "machine": machine.facts(study.environment),
        "env": study.environment,
        "environment": machine.flat(study.environment),
        "packed_table": packed(values_table.payload(study)),
        "raw_file": records.FILE,
        "gallery": [],
        "pack": packed,
        "method": METHOD,
        "value": words.value,
        "spread": words.spread,
        "seeds_held": words.seeds_held,
        "tones": words.TONES,
    }


def _experiment(study: Study, experiment: Experiment) -> dict[str, Any]:
    runs = study.of(experiment)
    ran = {run.condition for run in runs}
    keys = palette.keys(list(dict.fromkeys((*PLACES, *experiment.conditions))), PLACES)
    legend = {name: keys[name] for name in experiment.conditions if name in ran}
    names = list(dict.fromkeys(name for run in runs for name in run.values))
    verdicts = study.verdicts[experiment.name]
    word = study.word(experiment)
    return {
        "is": experiment,
        "word": word or words.REPORTED,
        "tone": words.TONES[word],
        "why": words.why(verdicts),
        "verdicts": verdicts,
        "legend": legend.values(),
        "panels": panels(experiment, runs, legend),
        "endings": words.endings(runs),
        "seeds": sorted({run.seed for run in runs}),
        "of_seed": {(run.condition, run.seed, name): found for run in runs for name, found in run.values.items()},
        "names": names if len(names) <= NAMES else [],
        "spreads": words.spreads(runs),
    }
