"""Accuracy with and without batch norm, at two learning rates. The published figures are those of scale `full`."""

from bench.study.experiment import BN, PLAIN, SANTURKAR, Experiment, Figure
from bench.study.training import StudyOutcome, StudySetting, curve, diverged, summary

EXPERIMENT = Experiment(
    __name__,
    place=1,
    title="With and without batch norm",
    claim="With batch norm a network becomes more accurate, and bears a learning rate five times as large.",
    source=SANTURKAR("section 2, figure 1"),
    conditions=(PLAIN, BN, "plain, lr .5", "BN, lr .5"),
    figure=Figure("curves", "step", "test accuracy", "test accuracy"),
)
_LOOKS = 60  # accuracies a run


def run(condition: str, seed: int, setting: StudySetting) -> StudyOutcome:
    """Returns auc, the loss at the end and the test accuracy, at the scale's learning rate or the condition's own."""
    layer, _, rate = condition.partition(", lr ")
    network, lr = setting.network(layer), float(rate or setting.scale.lr)
    losses, seen = setting.watch(network, seed, lambda x, y: setting.accuracy(network), _LOOKS, lr)
    values = summary(losses) | {"test accuracy": setting.accuracy(network)}
    series = {"loss": curve(losses), "test accuracy": curve(list(seen.values()), list(seen))}
    return StudyOutcome(values, series, diverged(losses))
