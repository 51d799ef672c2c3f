"""The change of the gradient along its own direction."""

from statistics import fmean

from bench.study.experiment import BN, PLAIN, SANTURKAR, Experiment, Figure, Gate, of
from bench.study.training import StudyOutcome, StudySetting

EXPERIMENT = Experiment(
    __name__,
    place=4,
    title="Gradient predictiveness",
    claim="With batch norm the gradient changes less along its own direction, so that it predicts more.",
    source=SANTURKAR("section 3.2, figure 4b"),
    gates=(
        Gate(
            "change of gradient(BN) < 1/2 change of gradient(plain)",
            lambda bn, plain: bn < plain / 2,
            *of("change of gradient", BN, PLAIN),
        ),
    ),
    figure=Figure("bands", "step", "L2 distance of gradients", "distance of gradients", ("y",)),
)


def run(condition: str, seed: int, setting: StudySetting) -> StudyOutcome:
    """Returns the mean over steps of the largest L2 distance between the gradient here and the gradient ahead."""
    from bench.study.gradients import change_of_gradient, look_along

    network = setting.network(condition)
    look = lambda x, y, gradient, distance: change_of_gradient(network, x, y, gradient)
    band, reason = look_along(network, seed, setting, look)
    return StudyOutcome({"change of gradient": fmean(band["high"])}, {"distance of gradients": band}, reason)
