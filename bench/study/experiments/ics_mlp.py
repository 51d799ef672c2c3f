"""How far does a step of the layers before turn the gradient of a layer, in the network that learns images?"""

from statistics import fmean

from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.study.experiments._shift import Shift, shift
from bench.study.setting import Setting
from bench.study.training import Outcome, curve, diverged, train

# Steps of a run at which it is measured.
_LOOKS = 60


def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """Means over steps and layers of the shift and of the cosine."""
    network, lr = setting.network(condition), setting.scale.lr
    every = max(1, setting.scale.steps // _LOOKS)
    found: dict[int, Shift] = {}

    def observe(step: int, x: Tensor, y: Tensor, loss: float) -> None:
        if step % every == 0:
            found[step] = shift(network, lambda: cross_entropy(network(x), y), lr)

    losses = train(network, setting.batches(seed), lr, observe)
    distances, cosines = [seen.distance for seen in found.values()], [seen.cosine for seen in found.values()]
    series = {"shift": curve(distances, list(found)), "cosine": curve(cosines, list(found))}
    return Outcome({"shift": fmean(distances), "cosine": fmean(cosines)}, series, diverged(losses))
