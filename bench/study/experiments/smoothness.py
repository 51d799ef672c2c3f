"""How fast does the gradient change along itself?"""

from statistics import fmean

from torch import Tensor, nn

from bench.study.experiments._along_gradient import gradient_at, look_along, norm_of
from bench.study.setting import Setting
from bench.study.training import Outcome, curve

# The plain network of ten layers stands still for hundreds of steps, and what does not move is smooth.
_DEPTH = 6


def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """The mean over steps of the largest change of the gradient over the distance gone; an MLP of six layers."""
    seen = look_along(setting.network(condition, depth=_DEPTH), seed, setting, _ratio)
    series = {"smoothness": curve(seen.high, seen.steps)}
    return Outcome({"effective smoothness": fmean(seen.high)}, series, seen.diverged)


def _ratio(network: nn.Module, x: Tensor, y: Tensor, gradient: list[Tensor], distance: float) -> float:
    ahead = gradient_at(network, x, y)
    return norm_of([a - b for a, b in zip(ahead, gradient, strict=True)]) / distance if distance else 0.0
