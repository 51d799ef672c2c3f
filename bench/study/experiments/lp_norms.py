"""Normalization by other l_p norms than batch norm's."""

from math import inf

from bench.study.experiment import BN, PLAIN, SANTURKAR, Experiment, Figure, Gate, of
from bench.study.training import StudyOutcome, StudySetting, curve, diverged, summary

EXPERIMENT = Experiment(
    __name__,
    place=6,
    title="Other normalizers",
    claim="Normalizing by another l_p norm, which fixes no variance, helps as batch norm does.",
    source=SANTURKAR("section 3.3"),
    operators=("batch_norm", "lp_norm"),
    conditions=(PLAIN, BN, "l1", "l2", "linf"),
    gates=tuple(
        Gate(
            f"steps to loss .5({norm}) < 1/2 steps(plain)",
            lambda steps, plain: steps < plain / 2,
            *of("steps to .5", norm, PLAIN),
        )
        for norm in ("l1", "l2", "linf")
    ),
    figure=Figure("curves", "step", "training loss", "loss"),
)
_LOSS = 0.5


def run(condition: str, seed: int, setting: StudySetting) -> StudyOutcome:
    """Returns the steps until the loss of a batch is first below .5 (inf: never), auc and the loss at the end."""
    losses = setting.train(setting.network(condition), seed)
    steps = next((step for step, loss in enumerate(losses) if loss < _LOSS), inf)
    return StudyOutcome({"steps to .5": steps} | summary(losses), {"loss": curve(losses)}, diverged(losses))
