"""What becomes of training when the norm's statistics are moving averages?"""

import torch
from torch import Tensor, nn

from bench.study import networks
from bench.study.claims import at
from bench.study.records import Points
from bench.study.setting import Setting
from bench.study.training import Outcome, curve, diverged, end, train

_RATES = (0.1, 1.0)


def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """For each learning rate the loss at the end and the norm of all weights; an MLP at every scale."""
    values: dict[str, float] = {}
    series: dict[str, Points] = {}
    reasons = []
    for lr in _RATES:
        torch.manual_seed(seed)
        losses, sizes = _trained(setting.mlp(condition), seed, setting, lr)
        values |= {at("loss", lr): end(losses), at("weight norm", lr): sizes[-1]}
        series[at("weight norm", lr)] = curve(sizes)
        if reason := diverged(losses):
            reasons.append(f"at lr {lr:g} {reason}")
    return Outcome(values, series, "; ".join(reasons))


def _trained(network: nn.Module, seed: int, setting: Setting, lr: float) -> tuple[list[float], list[float]]:
    """The losses, and the norm of all weights before each step."""
    weights, sizes = networks.matrices(network), list[float]()

    def observe(step: int, x: Tensor, y: Tensor, loss: float) -> None:
        sizes.append(float(nn.utils.get_total_norm(weights)))

    return train(network, setting.batches(seed), lr, observe), sizes
