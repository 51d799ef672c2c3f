"""Does training depend on the scale of the initial weights?"""

import torch

from bench.study import networks
from bench.study.claims import SCALES, at
from bench.study.setting import Setting
from bench.study.training import Outcome, end, train


def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """The loss at the end for each factor on Glorot's initial weights, and the largest of them."""
    losses = {}
    for factor in SCALES:
        torch.manual_seed(seed)  # the same weights but for the factor
        network = setting.network(condition)
        networks.scale(network, factor)
        losses[factor] = end(train(network, setting.batches(seed), setting.scale.lr))
    values = {at("loss", factor): loss for factor, loss in losses.items()} | {"largest loss": max(losses.values())}
    return Outcome(values, {"loss": {"x": list(losses), "y": list(losses.values())}})
