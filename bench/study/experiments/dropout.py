"""Dropout beside batch norm."""

from bench.study.experiment import BN, IOFFE_SZEGEDY, PLAIN, Experiment, Figure
from bench.study.training import StudyOutcome, StudySetting, diverged, end

EXPERIMENT = Experiment(
    __name__,
    place=15,
    title="Dropout beside batch norm",
    claim="Batch norm regularizes, and with it dropout can be left out.",
    source=IOFFE_SZEGEDY("section 3.4"),
    conditions=(PLAIN, "plain + dropout", BN, "BN + dropout"),
    figure=Figure("bars", "", "test accuracy", "test accuracy"),
)
# Of a layer's activations; with .2 the plain network of ten layers does not train in 600 steps.
_SHARE = 0.1


def run(condition: str, seed: int, setting: StudySetting) -> StudyOutcome:
    """Returns the loss at the end and the test accuracy."""
    layer, _, dropout = condition.partition(" + ")
    network = setting.network(layer, dropout=_SHARE if dropout else 0.0)
    losses = setting.train(network, seed)
    values = {"loss": end(losses), "test accuracy": setting.accuracy(network)}
    return StudyOutcome(values, {}, diverged(losses))
