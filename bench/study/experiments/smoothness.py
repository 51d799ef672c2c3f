"""The change of the gradient along its own direction, over the distance gone."""

from statistics import fmean

from bench.study.experiment import BN, PLAIN, SANTURKAR, Experiment, Figure, Gate, of
from bench.study.training import StudyOutcome, StudySetting, curve

EXPERIMENT = Experiment(
    __name__,
    place=5,
    title="Effective smoothness",
    claim="With batch norm the gradient is smoother: its change over the distance gone is smaller.",
    source=SANTURKAR("section 3.2, figure 4c"),
    gates=(
        Gate(
            "effective smoothness(BN) < effective smoothness(plain)",
            lambda bn, plain: bn < plain,
            *of("effective smoothness", BN, PLAIN),
        ),
    ),
    figure=Figure("curves", "step", "largest change of gradient / distance", "smoothness", ("y",)),
)
# The plain network of ten layers does not move for hundreds of steps, in which it would count as smooth.
_DEPTH = 6


def run(condition: str, seed: int, setting: StudySetting) -> StudyOutcome:
    """Returns the mean over steps of the largest change of the gradient over the distance; an MLP of six layers."""
    from bench.study.gradients import change_of_gradient, look_along

    network = setting.network(condition, depth=_DEPTH)
    look = lambda x, y, gradient, gone: change_of_gradient(network, x, y, gradient) / gone if gone else 0.0
    band, reason = look_along(network, seed, setting, look)
    values = {"effective smoothness": fmean(band["high"])}
    return StudyOutcome(values, {"smoothness": curve(band["high"], band["x"])}, reason)
