"""How far does the gradient turn along itself?"""

from statistics import fmean

from torch import Tensor, nn

from bench.study.experiments._along_gradient import gradient_at, look_along, norm_of
from bench.study.setting import Setting
from bench.study.training import Outcome


def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """The mean over steps of the largest L2 distance between the gradient here and the gradient ahead."""
    seen = look_along(setting.network(condition), seed, setting, _distance)
    bands = {"distance of gradients": {"x": seen.steps, "low": seen.low, "high": seen.high}}
    return Outcome({"change of gradient": fmean(seen.high)}, bands, seen.diverged)


def _distance(network: nn.Module, x: Tensor, y: Tensor, gradient: list[Tensor], distance: float) -> float:
    ahead = gradient_at(network, x, y)
    return norm_of([a - b for a, b in zip(ahead, gradient, strict=True)])
