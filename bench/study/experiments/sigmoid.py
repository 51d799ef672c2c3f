"""Does a network of sigmoids train?"""

from torch import Tensor, nn

from bench.study.setting import Setting
from bench.study.training import Outcome, accuracy, curve, diverged, train

# Ioffe and Szegedy (2015), section 4.1: three layers of 100.
_DEPTH, _WIDTH = 3, 100
# Accuracies a run.
_LOOKS = 60


def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """The test accuracy at the end; an MLP at every scale."""
    network = setting.mlp(condition, depth=_DEPTH, width=_WIDTH, activation=nn.Sigmoid)
    every, found = max(1, setting.scale.steps // _LOOKS), {}

    def observe(step: int, x: Tensor, y: Tensor, loss: float) -> None:
        if step % every == 0:
            found[step] = accuracy(network, setting.data)

    losses = train(network, setting.batches(seed), setting.scale.lr, observe)
    values = {"test accuracy": accuracy(network, setting.data)}
    return Outcome(values, {"test accuracy": curve(list(found.values()), list(found))}, diverged(losses))
