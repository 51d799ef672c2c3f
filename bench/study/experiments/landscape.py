"""How far does the loss move along the gradient?"""

import math
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.study.experiments._along_gradient import look_along
from bench.study.setting import Setting
from bench.study.training import Outcome


def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """The mean over steps of the largest loss ahead less the smallest."""
    seen = look_along(setting.network(condition), seed, setting, _loss)
    ranges = [high - low for low, high in zip(seen.low, seen.high, strict=True)]
    bands = {"loss range": {"x": seen.steps, "low": seen.low, "high": seen.high}}
    return Outcome({"mean range": fmean(ranges)}, bands, seen.diverged)


@torch.no_grad()
def _loss(network: nn.Module, x: Tensor, y: Tensor, gradient: list[Tensor], distance: float) -> float:
    loss = cross_entropy(network(x), y).item()
    return loss if math.isfinite(loss) else math.inf
