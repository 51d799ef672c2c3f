"""What does batch norm bring, and at which learning rate? The published figures are those of scale `full`."""

from statistics import fmean

from bench.study.setting import Setting
from bench.study.training import Accuracies, Outcome, accuracy, curve, diverged, end, train


def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """auc, the loss at the end and the test accuracy, at the scale's learning rate or the condition's own."""
    layer, _, rate = condition.partition(", lr ")
    network = setting.network(layer)
    seen = Accuracies(network, setting.data, setting.scale.steps)
    losses = train(network, setting.batches(seed), float(rate or setting.scale.lr), seen)
    values = {"auc": fmean(losses), "loss": end(losses), "test accuracy": accuracy(network, setting.data)}
    return Outcome(values, {"loss": curve(losses), "test accuracy": seen.curve()}, diverged(losses))
