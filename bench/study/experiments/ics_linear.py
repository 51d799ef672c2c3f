"""How far does a step of the layers before turn the gradient of a layer, where nothing but products stands between?"""

from math import isfinite
from statistics import fmean

import torch
from torch.nn.functional import mse_loss

from bench.study import networks
from bench.study.experiments._shift import shift
from bench.study.layers import norm
from bench.study.setting import Setting
from bench.study.training import Outcome, curve

# Regression on a random linear map by full-batch gradient descent, as in Santurkar et al. (2018), section 2.2. The loss
# is a sum over all images and components, which is why their learning rates are as small as 1e-7.
_DEPTH, _FEATURES, _IMAGES, _STEPS = 25, 10, 10000, 20


def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """Means over steps and layers of the shift and of the cosine; the same at every scale."""
    layer, _, rate = condition.partition(", lr ")
    lr = float(rate or 1e-7)
    x = torch.randn(_IMAGES, _FEATURES, device=setting.device)
    y = x @ torch.randn(_FEATURES, _FEATURES, device=setting.device)
    network = networks.deep_linear(_FEATURES, norm(layer), _DEPTH).to(setting.device)
    descent = torch.optim.SGD(network.parameters(), lr)

    def loss() -> torch.Tensor:
        return mse_loss(network(x), y, reduction="sum")

    shifts, diverged = [], ""
    for step in range(_STEPS):
        shifts.append(shift(network, loss, lr))
        now = loss()
        if not isfinite(now.item()):
            diverged = f"the loss is not finite from step {step} on"
            break
        descent.zero_grad()
        now.backward()
        descent.step()
    distances, cosines = [seen.distance for seen in shifts], [seen.cosine for seen in shifts]
    series = {"cosine": curve(cosines), "shift": curve(distances)}
    return Outcome({"cosine": fmean(cosines), "shift": fmean(distances)}, series, diverged)
