"""Does dropout add anything where there is batch norm?"""

from bench.study.setting import Setting
from bench.study.training import Outcome, accuracy, diverged, end, train

# Of a layer's activations; with .2 the plain network of ten layers does not train in 600 steps.
_SHARE = 0.1


def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """The loss at the end and the test accuracy."""
    layer, _, dropout = condition.partition(" + ")
    network = setting.network(layer, dropout=_SHARE if dropout else 0.0)
    losses = train(network, setting.batches(seed), setting.scale.lr)
    return Outcome({"loss": end(losses), "test accuracy": accuracy(network, setting.data)}, {}, diverged(losses))
