"""Batch norm before the activation, and behind it."""

from bench.study.experiment import IOFFE_SZEGEDY, PLAIN, Experiment, Figure
from bench.study.training import StudyOutcome, StudySetting, curve, diverged, summary

EXPERIMENT = Experiment(
    __name__,
    place=16,
    title="Before or behind the activation",
    claim="Batch norm belongs before the nonlinearity, whose inputs have the more stable distribution.",
    source=IOFFE_SZEGEDY("section 3.2"),
    conditions=(PLAIN, "BN before", "BN behind"),
    figure=Figure("curves", "step", "training loss", "loss"),
)


def run(condition: str, seed: int, setting: StudySetting) -> StudyOutcome:
    """Returns auc, the loss at the end and the test accuracy."""
    layer, _, place = condition.partition(" ")
    network = setting.network(layer, behind=place == "behind")
    losses = setting.train(network, seed)
    values = summary(losses) | {"test accuracy": setting.accuracy(network)}
    return StudyOutcome(values, {"loss": curve(losses)}, diverged(losses))
