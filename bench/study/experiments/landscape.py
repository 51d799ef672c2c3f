"""The range of the loss along the gradient."""

from math import inf, isfinite
from statistics import fmean

from bench.study.experiment import BN, PLAIN, SANTURKAR, Experiment, Figure, Gate, of
from bench.study.training import StudyOutcome, StudySetting

EXPERIMENT = Experiment(
    __name__,
    place=3,
    title="Loss along the gradient",
    claim="With batch norm the loss changes less along the direction of the gradient.",
    source=SANTURKAR("section 3.2, figure 4a"),
    gates=(
        Gate("mean range(BN) < 1/3 mean range(plain)", lambda bn, plain: bn < plain / 3, *of("mean range", BN, PLAIN)),
    ),
    figure=Figure("bands", "step", "loss over steps of 1/2 to 4 times the learning rate", "loss range", ("y",)),
)


def run(condition: str, seed: int, setting: StudySetting) -> StudyOutcome:
    """Returns the mean over steps of the largest loss ahead less the smallest."""
    import torch
    from torch.nn.functional import cross_entropy

    from bench.study.gradients import look_along

    network = setting.network(condition)

    @torch.no_grad()
    def loss(x: torch.Tensor, y: torch.Tensor, gradient: list[torch.Tensor], distance: float) -> float:
        found = cross_entropy(network(x), y).item()
        return found if isfinite(found) else inf

    band, reason = look_along(network, seed, setting, loss)
    ranges = [high - low for low, high in zip(band["low"], band["high"], strict=True)]
    return StudyOutcome({"mean range": fmean(ranges)}, {"loss range": band}, reason)
