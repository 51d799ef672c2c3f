"""RMS norm in the place of layer norm, and the time of a step."""

import time
from itertools import pairwise
from statistics import median

from bench.study.experiment import Experiment, Figure, Source
from bench.study.training import StudyOutcome, StudySetting, curve, diverged, summary

EXPERIMENT = Experiment(
    __name__,
    place=17,
    title="RMS norm in layer norm's place",
    claim="Leaving out the mean costs no accuracy and saves time.",
    source=Source("Zhang and Sennrich", 2019, "https://arxiv.org/abs/1910.07467", "section 6"),
    operators=("layer_norm", "rms_norm"),
    conditions=("layer norm", "RMS norm"),
    figure=Figure("curves", "step", "training loss", "loss"),
)


def run(condition: str, seed: int, setting: StudySetting) -> StudyOutcome:
    """Returns auc, the loss at the end, the test accuracy and the median milliseconds of a step; always of an MLP.

    On a CPU the times are the processor's, because other runs go on beside this one; the interpreter's say nothing.
    """
    import torch

    from bench.measure import environment

    network, times = setting.mlp(condition), list[float]()
    gpu = setting.device.type == "cuda"

    def observe(step: int, x: torch.Tensor, y: torch.Tensor) -> None:
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() if gpu else time.process_time())

    losses = setting.train(network, seed, observe)
    values = summary(losses) | {"test accuracy": setting.accuracy(network)}
    if not environment.interpreting():
        values["ms a step"] = 1e3 * median(later - sooner for sooner, later in pairwise(times))
    return StudyOutcome(values, {"loss": curve(losses)}, diverged(losses))
