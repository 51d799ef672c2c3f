"""Training of a network of sigmoids."""

from bench.study.experiment import BN, IOFFE_SZEGEDY, PLAIN, Experiment, Figure, Gate, of
from bench.study.training import StudyOutcome, StudySetting, curve, diverged

EXPERIMENT = Experiment(
    __name__,
    place=9,
    title="A sigmoid network",
    claim="Batch norm keeps saturating nonlinearities out of saturation, and such networks train.",
    source=IOFFE_SZEGEDY("section 4.1, figure 1"),
    gates=(
        Gate(
            "test accuracy(BN) - test accuracy(plain) > .2",
            lambda bn, plain: bn - plain > 0.2,
            *of("test accuracy", BN, PLAIN),
        ),
    ),
    figure=Figure("curves", "step", "test accuracy", "test accuracy"),
)
# Ioffe and Szegedy (2015), section 4.1: three layers of 100.
_DEPTH, _WIDTH = 3, 100
_LOOKS = 60  # accuracies a run


def run(condition: str, seed: int, setting: StudySetting) -> StudyOutcome:
    """Returns the test accuracy at the end; an MLP at every scale."""
    from torch.nn import Sigmoid

    network = setting.mlp(condition, depth=_DEPTH, width=_WIDTH, activation=Sigmoid)
    losses, seen = setting.watch(network, seed, lambda x, y: setting.accuracy(network), _LOOKS)
    values = {"test accuracy": setting.accuracy(network)}
    return StudyOutcome(values, {"test accuracy": curve(list(seen.values()), list(seen))}, diverged(losses))
