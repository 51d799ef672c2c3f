"""What do small batches cost each norm?"""

import torch

from bench.study.claims import BATCHES, at
from bench.study.setting import Setting
from bench.study.training import Outcome, accuracy, train

# A network that trains whatever the batch: in ten layers the noise of two images' statistics leaves nothing.
_DEPTH = 3
# Times the scale's steps, for batches of two are seen 64 times as slowly.
_LONGER = 5
# The bounds that the paper ends with, from the first step on: its schedule reaches them after 40000.
_OPTIONS = {"batch renorm": {"rmax": 3.0, "dmax": 5.0}}


def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """The test accuracy for each batch size, after as many steps; an MLP at every scale."""
    found = {}
    for size in BATCHES:
        torch.manual_seed(seed)
        network = setting.mlp(condition, _OPTIONS.get(condition), depth=_DEPTH)
        train(network, setting.batches(seed, size=size, steps=_LONGER * setting.scale.steps), setting.scale.lr)
        found[size] = accuracy(network, setting.data)
    values = {at("accuracy", size): share for size, share in found.items()}
    return Outcome(values, {"test accuracy": {"x": list(found), "y": list(found.values())}})
