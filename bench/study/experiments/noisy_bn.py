"""Batch norm with noise behind it, which moves the distributions at every step."""

from bench.study.experiment import BN, PLAIN, SANTURKAR, Experiment, Figure, Gate
from bench.study.training import StudyOutcome, StudySetting, curve, diverged, summary

EXPERIMENT = Experiment(
    __name__,
    place=2,
    title="Noise behind batch norm",
    claim="Batch norm helps just as well when noise makes the distributions behind it unstable again.",
    source=SANTURKAR("section 2.1, figure 2"),
    operators=("batch_norm", "noisy_batch_norm"),
    conditions=(PLAIN, BN, "noisy BN", "plain + noise"),
    gates=(
        Gate("auc(noisy BN) < 1/2 auc(plain)", lambda bn, plain: bn < plain / 2, ("noisy BN", "auc"), (PLAIN, "auc")),
        Gate("plain + the same noise does not train: loss > 1", lambda loss: loss > 1, ("plain + noise", "loss")),
    ),
    figure=Figure("curves", "step", "training loss", "loss"),
)


def run(condition: str, seed: int, setting: StudySetting) -> StudyOutcome:
    """Returns auc, and the loss at the end."""
    losses = setting.train(setting.network("noise" if condition == "plain + noise" else condition), seed)
    return StudyOutcome(summary(losses), {"loss": curve(losses)}, diverged(losses))
