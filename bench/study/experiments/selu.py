"""What becomes of the variance of activations in a deep network without a norm?"""

import torch
from torch import nn

from bench.study.setting import Setting
from bench.study.training import Outcome

# So many that what a layer loses or gains adds up; so wide that one draw of weights stands for all.
_DEPTH, _WIDTH, _INPUTS = 32, 256, 1024
_ACTIVATIONS = {"SELU": nn.SELU, "ReLU": nn.ReLU}


@torch.no_grad()
def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """The variance behind the last layer: standard normal inputs, LeCun's initialization, nothing is trained."""
    x = torch.randn(_INPUTS, _WIDTH, device=setting.device)
    activation = _ACTIVATIONS[condition]()
    variances = []
    for _ in range(_DEPTH):
        weight = torch.randn(_WIDTH, _WIDTH, device=setting.device) / _WIDTH**0.5
        x = activation(x @ weight)
        variances.append(float(x.var()))
    series = {"variance": {"x": [float(layer) for layer in range(1, _DEPTH + 1)], "y": variances}}
    return Outcome({"variance": variances[-1]}, series)
