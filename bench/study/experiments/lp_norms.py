"""Do networks that are normalized by another l_p norm train as fast as those with batch norm?"""

from math import inf
from statistics import fmean

from bench.study.setting import Setting
from bench.study.training import Outcome, curve, diverged, end, train

_LOSS = 0.5


def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """The steps until the loss of a batch is first below .5 (inf: never)."""
    network = setting.network(condition)
    losses = train(network, setting.batches(seed), setting.scale.lr)
    steps = next((step for step, loss in enumerate(losses) if loss < _LOSS), inf)
    values = {"steps to .5": steps, "auc": fmean(losses), "loss": end(losses)}
    return Outcome(values, {"loss": curve(losses)}, diverged(losses))
