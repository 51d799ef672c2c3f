"""The page of a study: one HTML file that opens offline, in the style of the reports. Imports no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import writing
from bench.page import FIGURES, REPORT, machine, palette, svg
from bench.page.formatting import plural
from bench.page.templating import packed_table, scripts, style, templates
from bench.results import thresholds
from bench.study.experiment import BN, PLAIN, Experiment
from bench.study.figures import panels
from bench.study.records import FILE, StudyRun
from bench.study.study import SEEDS, SEEDS_OF_A_SWEEP, TONES, GateVerdict, Study, cards, load, spread, value

SECTIONS = {
    "verdict": "Verdict",
    "experiments": "Experiments",
    "values": "All values",
    "setting": "Setting",
    "method": "Method",
}
# Columns of an experiment's table of values: a sweep has one a setting, and they stand in the table of all values.
NAMES = 6
# The two conditions of most experiments keep their colour and shape in all of them.
PLACES = {BN: 0, PLAIN: 1}
# Columns of the table of all values, and those with numbers; the last is hidden at first.
COLUMNS = ("experiment", "condition", "seed", "status", "value", "figure", "seconds of the run")
NUMERIC = ("seed", "figure", "seconds of the run")
NO_NUMBER = 1e300  # stands for infinity, which JSON lacks: more than any figure
# By the names of normlib.backend_for.
BACKENDS = {"triton": "Triton kernels", "interpreter": "Triton's interpreter", "torch": "PyTorch's operators"}

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
    writing.write(path, html)
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
        "facts": _setting(study),
        "banners": _banners(study),
        "cards": cards(study),
        "experiments": [_experiment(study, experiment) for experiment in study.experiments],
        "machine": machine.facts(study.environment),
        "env": study.environment,
        "environment": machine.flat(study.environment),
        "packed_table": packed_table(_table(study)),
        "raw_file": FILE,
        "method": METHOD,
        "value": value,
        "tones": TONES,
    }


def _experiment(study: Study, experiment: Experiment) -> dict[str, Any]:
    runs, verdicts, word = study.of(experiment), study.verdicts[experiment.name], study.word(experiment)
    keys = palette.keys(list(dict.fromkeys((*PLACES, *experiment.conditions))), PLACES)
    legend = {run.condition: keys[run.condition] for run in runs}
    of_seed = {(run.condition, run.seed, name): figure for run in runs for name, figure in run.values.items()}
    found: dict[tuple[str, str], list[float]] = {}
    for (condition, _, name), figure in of_seed.items():
        found.setdefault((condition, name), []).append(figure)
    names = list(dict.fromkeys(name for _, name in found))
    return {
        "is": experiment,
        "word": word or "reported",
        "tone": TONES[word],
        "why": _why(verdicts),
        "verdicts": verdicts,
        "legend": legend.values(),
        "panels": panels(experiment, runs, legend),
        "endings": _endings(runs),
        "of_seed": of_seed,
        "names": names if len(names) <= NAMES else [],
        "spreads": {key: spread(figures) for key, figures in found.items()},
    }


def _why(verdicts: Sequence[GateVerdict]) -> str:
    """Explains an experiment's verdict: the gates that do not hold in every seed, and the count of the others."""
    if not verdicts:
        return "Reported, and not judged: no inequality decides this claim."
    missed = [verdict for verdict in verdicts if not all(verdict.outcomes.values())]
    parts = [f"“{verdict.gate.text}” holds in {verdict.seeds_held}" for verdict in missed]
    if others := len(verdicts) - len(missed):
        which = f"the {'other ' * bool(missed)}{'gate holds' if others == 1 else 'gates hold'}"
        parts.append(f"{which} in every seed")
    enough = SEEDS_OF_A_SWEEP if verdicts[0].experiment.sweep else SEEDS
    if any(verdict.word == "not decided" for verdict in verdicts if verdict not in missed):
        parts.append(f"it takes {enough} seeds to call that reproduced")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _endings(runs: Sequence[StudyRun]) -> list[str]:
    """Lists the conditions that diverged or failed, in how many of their runs, and why."""
    of_condition = Counter(run.condition for run in runs)
    alike: dict[tuple[str, str], Counter[str]] = {}
    for run in runs:
        if run.state != "ok":
            alike.setdefault((run.state, run.reason), Counter())[run.condition] += 1
    found = []
    for (state, reason), conditions in alike.items():
        counted = [f"{name} in {count} of {plural(of_condition[name], 'run')}" for name, count in conditions.items()]
        because = f": {reason.rstrip('.')}" if reason else ""
        found.append(f"{state.capitalize()}: {', '.join(counted)}{because}.")
    return found


def _setting(study: Study) -> list[tuple[str, str]]:
    """Returns the study's settings, a few words each; what was not recorded is left out."""
    env, chosen = study.environment, study.environment.get("study") or {}
    ran, s = str(env.get("layers") or ""), env.get("wall_seconds") or 0.0
    rows = [
        *((name.capitalize(), chosen.get(name)) for name in ("data", "network", "scale")),
        ("Seeds", len({run.seed for run in study.runs})),
        ("Layers by", BACKENDS.get(ran, ran)),
        ("Time", s and (f"{s:.0f} s" if s < 120 else f"{s / 60:.0f} min" if s < 7200 else f"{s / 3600:.1f} h")),
        ("Processes", env.get("processes")),
    ]
    return [(name, str(found)) for name, found in rows if found]


def _banners(study: Study) -> list[str]:
    """Returns the warnings above the verdicts."""
    env = study.environment
    found = ["The kernels ran in Triton's interpreter: the times of runs say nothing."] if env["interpreted"] else []
    if not env["complete"]:
        planned = env.get("runs_planned")
        of = f"{len(study.runs):,} of {plural(planned, 'planned run')}" if planned else plural(len(study.runs), "run")
        found.append(f"The study is not complete: it has {of}. python -m bench.study --resume runs the others.")
    return found


def _table(study: Study) -> dict[str, Any]:
    """Returns columns and rows for the page's script: a row for each value of a run, or one if it has none."""
    rows = [
        {
            "id": "/".join((*map(str, run.key), name)).rstrip("/"),
            "case": run.experiment,
            "why": run.reason,
            "is": [
                experiment.title,
                run.condition,
                [run.seed, str(run.seed)],
                run.state,
                name or None,
                _number(run.values[name]) if name else None,
                _number(run.seconds),
            ],
        }
        for experiment in study.experiments
        for run in study.of(experiment)
        for name in run.values or [""]
    ]
    columns = [{"title": t, "numeric": t in NUMERIC, "hidden": t == COLUMNS[-1]} for t in COLUMNS]
    return {"noun": "value", "columns": columns, "rows": rows}


def _number(found: float) -> list[Any] | None:
    if math.isnan(found):
        return None
    if math.isinf(found):
        return [math.copysign(NO_NUMBER, found), str(found)]
    return [float(f"{found:.7g}"), value(found)]
