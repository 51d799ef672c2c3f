"""Batch norm before the activation, or behind it?"""

from statistics import fmean

from bench.study.setting import Setting
from bench.study.training import Outcome, accuracy, curve, diverged, end, train


def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """auc, the loss at the end and the test accuracy."""
    layer, _, place = condition.partition(" ")
    network = setting.network(layer, behind=place == "behind")
    losses = train(network, setting.batches(seed), setting.scale.lr)
    values = {"auc": fmean(losses), "loss": end(losses), "test accuracy": accuracy(network, setting.data)}
    return Outcome(values, {"loss": curve(losses)}, diverged(losses))
