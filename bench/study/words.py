"""What a study came to, in sentences and figures for its page. Imports no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median

from bench.page.formatting import DASH, number, plural
from bench.page.templating import Card
from bench.study.experiment import Experiment
from bench.study.records import Run
from bench.study.study import Study
from bench.study.verdict import SEEDS, SEEDS_OF_A_SWEEP, Spread, Verdict, Word

TONES: dict[Word | None, str] = {
    "reproduced": "good",
    "not reproduced": "bad",
    "not decided": "caution",
    None: "plain",
}
REPORTED = "reported"  # what an experiment without a gate comes to


def value(found: float | None) -> str:
    """A value of a run: infinite is what diverged or was never reached, and a dash what is not there."""
    return DASH if found is None or math.isnan(found) else number(found) if math.isfinite(found) else "∞"


def spread(of: Spread) -> str:
    """`0.946 (0.91 to 0.98)`: median and range over the seeds."""
    alone = of.low == of.high or math.isnan(of.median)
    return value(of.median) if alone else f"{value(of.median)} ({value(of.low)} to {value(of.high)})"


def spreads(runs: Sequence[Run]) -> dict[tuple[str, str], str]:
    """Median and range of every value over the seeds, by condition and name."""
    found: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for name, figure in run.values.items():
            found.setdefault((run.condition, name), []).append(figure)
    return {key: spread(Spread(*key, median(of), min(of), max(of))) for key, of in found.items()}


def seeds_held(verdict: Verdict) -> str:
    """In how many seeds a gate holds: `2 of 3 seeds, in 1 a run failed or is missing`."""
    outcomes = Counter(verdict.outcomes.values())
    text = f"{outcomes[True]} of {plural(len(verdict.outcomes), 'seed')}"
    return f"{text}, in {outcomes[None]} a run failed or is missing" if outcomes[None] else text


def why(verdicts: Sequence[Verdict]) -> str:
    """An experiment's verdict in plain words: the gates that it does not hold by, or that it holds by all."""
    if not verdicts:
        return "Reported, and not judged: no inequality decides this claim."
    missed = [verdict for verdict in verdicts if not all(verdict.outcomes.values())]
    parts = [f"“{verdict.gate.text}” holds in {seeds_held(verdict)}" for verdict in missed]
    if others := len(verdicts) - len(missed):
        which = f"the {'other ' * bool(missed)}{'gate holds' if others == 1 else 'gates hold'}"
        parts.append(f"{which} in every seed")
    enough = SEEDS_OF_A_SWEEP if verdicts[0].experiment.sweep else SEEDS
    if any(verdict.word == "not decided" for verdict in verdicts if verdict not in missed):
        parts.append(f"it takes {enough} seeds to call that reproduced")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def cards(study: Study) -> list[Card]:
    """The counts that come first."""
    judged = [experiment for experiment in study.experiments if study.verdicts[experiment.name]]
    found = []
    words: tuple[Word, ...] = ("reproduced", "not reproduced", "not decided")
    for word in words:
        having = study.having(word)
        tone = TONES[word] if having else "plain"
        found.append(Card(word.capitalize(), f"{len(having)} of {len(judged)}", _titles(having), tone))
    found.append(Card("Reported, not judged", str(len(study.having(None))), _titles(study.having(None))))
    diverged = [run for run in study.runs if run.state == "diverged"]
    failed = [run for run in study.runs if run.state == "failed"]
    found.append(
        Card(
            "Runs that diverged",
            f"{len(diverged)} of {len(study.runs)}",
            "That is an answer too. Settings of a sweep that diverged are crosses in its figure.",
        )
    )
    if failed:
        found.append(Card("Runs that failed", f"{len(failed)} of {len(study.runs)}", failed[0].reason, "bad"))
    return found


def _titles(experiments: Sequence[Experiment]) -> str:
    return ", ".join(experiment.title for experiment in experiments) or "None."


def endings(runs: Sequence[Run]) -> list[str]:
    """Which conditions diverged or failed, in how many of their runs, and why; nothing where all went well."""
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


def asked(study: Study) -> str:
    """What the study is, in a line."""
    return f"the literature's claims: {plural(len(study.experiments), 'experiment')}, {plural(len(study.runs), 'run')}"


# What ran the layers, as normlib.backend_for calls it.
BACKENDS = {"triton": "Triton kernels", "interpreter": "Triton's interpreter", "torch": "PyTorch's operators"}


def setting(study: Study) -> list[tuple[str, str]]:
    """What was run on what, in a few words each; what was not recorded is left out."""
    env = study.environment
    chosen = env.get("study") or {}
    ran, seconds = str(env.get("layers") or ""), env.get("wall_seconds")
    rows = [
        ("Data", chosen.get("data")),
        ("Network", chosen.get("network")),
        ("Scale", chosen.get("scale")),
        ("Seeds", len(study.seeds) or None),
        ("Layers by", BACKENDS.get(ran, ran)),
        ("Time", took(seconds) if seconds else None),
        ("Processes", env.get("processes") or None),
    ]
    return [(name, str(found)) for name, found in rows if found]


def took(seconds: float) -> str:
    """Seconds, minutes or hours, whichever fits."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def banners(study: Study) -> list[str]:
    """What a reader must know before the verdicts."""
    env = study.environment
    found = ["The kernels ran in Triton's interpreter: the times of runs say nothing."] if env["interpreted"] else []
    if not env["complete"]:
        planned = env.get("runs_planned")
        of = f"{len(study.runs):,} of {plural(planned, 'planned run')}" if planned else plural(len(study.runs), "run")
        found.append(f"The study is not complete: it has {of}. python -m bench.study --resume runs the others.")
    return found
