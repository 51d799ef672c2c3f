"""Does a network of sigmoids train?"""

from torch import nn

from bench.study.setting import Setting
from bench.study.training import Accuracies, Outcome, accuracy, diverged, train

# Ioffe and Szegedy (2015), section 4.1: three layers of 100.
_DEPTH, _WIDTH = 3, 100


def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """The test accuracy at the end; an MLP at every scale."""
    network = setting.mlp(condition, depth=_DEPTH, width=_WIDTH, activation=nn.Sigmoid)
    seen = Accuracies(network, setting.data, setting.scale.steps)
    losses = train(network, setting.batches(seed), setting.scale.lr, seen)
    values = {"test accuracy": accuracy(network, setting.data)}
    return Outcome(values, {"test accuracy": seen.curve()}, diverged(losses))
