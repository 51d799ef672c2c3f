"""Over which learning rates does a network train?"""

from math import log10

from bench.study.claims import LEARNING_RATES, at
from bench.study.setting import Setting
from bench.study.training import Outcome, end, train

_LOSS = 0.1


def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """The decades from the smallest to the largest learning rate with a loss below .1 at the end (0: one or none)."""
    losses = {}
    for lr in LEARNING_RATES:
        losses[lr] = end(train(setting.network(condition), setting.batches(seed), lr))
    good = [lr for lr, loss in losses.items() if loss < _LOSS]
    values = {at("loss", lr): loss for lr, loss in losses.items()}
    values["decades"] = log10(max(good) / min(good)) if good else 0.0
    return Outcome(values, {"loss": {"x": list(losses), "y": list(losses.values())}})
