"""Does RMS norm do what layer norm does, and faster?"""

import time
from itertools import pairwise
from statistics import fmean, median

import torch
from torch import Tensor

from bench.measure import environment
from bench.study.setting import Setting
from bench.study.training import Outcome, accuracy, curve, diverged, end, train


def run(condition: str, seed: int, setting: Setting) -> Outcome:
    """auc, the loss at the end, the test accuracy and the median milliseconds of a step; an MLP at every scale.

    On a CPU they are the processor's, for other runs go on beside this one; the interpreter's would say nothing.
    """
    network, times = setting.mlp(condition), list[float]()
    gpu = setting.device.type == "cuda"

    def observe(step: int, x: Tensor, y: Tensor, loss: float) -> None:
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() if gpu else time.process_time())

    losses = train(network, setting.batches(seed), setting.scale.lr, observe)
    values = {"auc": fmean(losses), "loss": end(losses), "test accuracy": accuracy(network, setting.data)}
    if not environment.interpreting():
        values["ms a step"] = 1e3 * median(later - sooner for sooner, later in pairwise(times))
    return Outcome(values, {"loss": curve(losses)}, diverged(losses))
