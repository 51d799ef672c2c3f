"""Training from initial weights of several scales."""

from bench.study.experiment import BN, IOFFE_SZEGEDY, PLAIN, Experiment, Figure, Gate
from bench.study.training import StudyOutcome, StudySetting, at, end

EXPERIMENT = Experiment(
    __name__,
    place=8,
    title="Scale of the initial weights",
    claim="With batch norm training depends little on the scale of the initial weights.",
    source=IOFFE_SZEGEDY("section 3.3"),
    gates=(
        Gate("loss(BN) < .5 for initial weights x .01 to x 10", lambda loss: loss < 0.5, (BN, "largest loss")),
        Gate(
            "plain fails at x .1 and x 2: loss > 1",
            lambda smaller, larger: min(smaller, larger) > 1,
            (PLAIN, at("loss", 0.1)),
            (PLAIN, at("loss", 2)),
        ),
    ),
    figure=Figure("lines", "scale of the initial weights", "training loss at the end", "loss", ("x", "y")),
    sweep=True,
)
FACTORS = (0.01, 0.1, 0.5, 1.0, 2.0, 10.0)


def run(condition: str, seed: int, setting: StudySetting) -> StudyOutcome:
    """Returns the loss at the end for each factor on Glorot's initial weights, and the largest of them."""
    import torch

    from bench.study.networks import matrices

    losses = {}
    for factor in FACTORS:
        torch.manual_seed(seed)  # the same weights but for the factor
        network = setting.network(condition)
        with torch.no_grad():
            for weight in matrices(network):
                weight.mul_(factor)
        losses[factor] = end(setting.train(network, seed))
    values = {at("loss", factor): loss for factor, loss in losses.items()} | {"largest loss": max(losses.values())}
    return StudyOutcome(values, {"loss": {"x": list(losses), "y": list(losses.values())}})
