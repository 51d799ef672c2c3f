"""A study that nobody ran: each verdict, runs that diverged and one that failed. Its figures describe no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import report_runs

from bench.study.records import StudyRun, append

STEPS = list(range(0, 100, 5))
RATES = [0.001, 0.01, 0.1, 1.0, 10.0]


def curve(name: str, ends_at: float, until: int = len(STEPS)) -> dict[str, Any]:
    """A series from 2.3 down to `ends_at`; from place `until` on it has diverged."""
    falling = [2.3 + (ends_at - 2.3) * place / (len(STEPS) - 1) for place in range(len(STEPS))]
    return {name: {"x": STEPS, "y": falling[:until] + [inf] * (len(STEPS) - until)}}


def run(
    experiment: str, condition: str, seed: int, values: Mapping[str, float], series: Mapping[str, Any], **rest: Any
) -> StudyRun:
    return StudyRun(experiment, condition, seed, values, series, seconds=1.5, **rest)


def runs() -> list[StudyRun]:
    """Reproduced, not reproduced, not decided, and not judged; every kind of figure."""
    made = []
    for seed in range(3):
        for condition, auc in {"plain": 0.9, "BN": 0.1, "noisy BN": 0.7}.items():  # not below half of plain's
            made.append(run("noisy_bn", condition, seed, {"auc": auc + 0.01 * seed}, curve("loss", auc / 2)))
        made.append(
            run("noisy_bn", "plain + noise", seed, {"loss": inf}, curve("loss", 40.0, until=9), state="diverged",
                reason="the loss is not finite from step 45 on")
        )  # fmt: skip
        for condition, width in {"plain": 2.9, "BN": 0.04}.items():
            band = {"x": STEPS, "low": [1.0] * len(STEPS), "high": [1.0 + width] * len(STEPS)}
            made.append(run("landscape", condition, seed, {"mean range": width}, {"loss range": band}))
        for condition, accuracy in {"plain": (0.5, 0.6, 0.9)[seed], "BN": 0.95}.items():  # in the third seed too near
            made.append(run("sigmoid", condition, seed, {"test accuracy": accuracy}, curve("test accuracy", accuracy)))
        for place, condition in enumerate(("plain", "plain + dropout", "BN", "BN + dropout")):
            made.append(run("dropout", condition, seed, {"test accuracy": 0.9 + 0.02 * place + 0.001 * seed}, {}))
    for condition, losses in {"plain": (2.3, 2.2, 2.0, inf, inf), "BN": (0.5, 0.05, 0.01, 0.02, 0.3)}.items():
        line = {"loss": {"x": RATES, "y": losses}}
        made.append(run("learning_rate", condition, 0, {"decades": 2.0 * (condition == "BN")}, line))
    made.append(run("predictiveness", "plain", 0, {}, {}, state="failed", reason="RuntimeError: out of memory"))
    made.append(run("predictiveness", "BN", 0, {"change of gradient": 1.0}, {}))
    return made


def environment(**changes: Any) -> dict[str, Any]:
    described = report_runs.environment("host_cpu", interpreted=False, conditions=None)
    described |= {
        "command": "python -m bench.study --seeds 3",
        "layers": "torch",
        "study": {"data": "digits", "scale": "pilot", "network": "mlp", "seeds": 3},
        "runs_planned": len(runs()),
        "wall_seconds": 150.0,
    }
    return described | changes


def write(folder: Path, made: Sequence[StudyRun], **described: Any) -> Path:
    """Writes a study's files and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "environment.json").write_text(json.dumps(environment(**described)))
    (folder / "study.jsonl").touch()
    for one in made:
        append(folder, one)
    return folder
