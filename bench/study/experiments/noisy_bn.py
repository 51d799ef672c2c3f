"""Does batch norm still help when noise behind it moves the distributions at every step?"""

from statistics import fmean

from bench.study.setting import Setting
from bench.study.training import Outcome, curve, diverged, end, train

_LAYER = {"plain + noise": "noise"}


def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """auc, and the loss at the end."""
    network = setting.network(_LAYER.get(condition, condition))
    losses = train(network, setting.batches(seed), setting.scale.lr)
    return Outcome({"auc": fmean(losses), "loss": end(losses)}, {"loss": curve(losses)}, diverged(losses))
