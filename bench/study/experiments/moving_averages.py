"""Training with moving averages as the norm's statistics."""

from math import inf

from bench.study.experiment import BN, IOFFE, Experiment, Figure, Gate, of
from bench.study.training import Points, StudyOutcome, StudySetting, at, curve, diverged, end

EXPERIMENT = Experiment(
    __name__,
    place=11,
    title="Normalizing by moving averages while training",
    claim="Training blows up when the statistics are moving averages that no gradient passes through.",
    source=IOFFE("section 2"),
    conditions=(BN, "moving averages"),
    gates=(
        Gate(
            "lr 1: the loss is not finite, or lr .1: weight norm > 1.3 x BN's",
            lambda loss, moving, bn: loss == inf or moving > 1.3 * bn,
            ("moving averages", at("loss", 1)),
            *of(at("weight norm", 0.1), "moving averages", BN),
        ),
    ),
    figure=Figure("curves", "step", "norm of all weights at lr .1", at("weight norm", 0.1)),
)
_RATES = (0.1, 1.0)


def run(condition: str, seed: int, setting: StudySetting) -> StudyOutcome:
    """Returns for each learning rate the loss at the end and the norm of all weights; an MLP at every scale."""
    import torch

    from bench.study.networks import matrices

    values: dict[str, float] = {}
    series: dict[str, Points] = {}
    reasons = []
    for lr in _RATES:
        torch.manual_seed(seed)
        network = setting.mlp(condition)
        weights, sizes = matrices(network), list[float]()
        observe = lambda *_: sizes.append(float(torch.nn.utils.get_total_norm(weights)))  # noqa: B023
        losses = setting.train(network, seed, observe, lr=lr)
        values |= {at("loss", lr): end(losses), at("weight norm", lr): sizes[-1]}
        series[at("weight norm", lr)] = curve(sizes)
        if reason := diverged(losses):
            reasons.append(f"at lr {lr:g} {reason}")
    return StudyOutcome(values, series, "; ".join(reasons))
