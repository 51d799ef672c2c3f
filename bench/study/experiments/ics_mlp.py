"""Internal covariate shift in the network that learns images."""

from statistics import fmean

from bench.study.experiment import COSINE, SANTURKAR, SHIFT, Experiment
from bench.study.training import StudyOutcome, StudySetting, curve, diverged

EXPERIMENT = Experiment(
    __name__,
    place=14,
    title="Internal covariate shift of an MLP",
    claim="Batch norm does not reduce internal covariate shift in a nonlinear network either.",
    source=SANTURKAR("section 2.2, figure 3"),
    figure=SHIFT,
    also=(COSINE,),
)
_LOOKS = 60  # steps of a run at which the shift is measured


def run(condition: str, seed: int, setting: StudySetting) -> StudyOutcome:
    """Returns means over steps and layers of the shift and of the cosine."""
    from torch.nn.functional import cross_entropy

    from bench.study.gradients import shift

    network = setting.network(condition)
    look = lambda x, y: shift(network, lambda: cross_entropy(network(x), y), setting.scale.lr)
    losses, seen = setting.watch(network, seed, look, _LOOKS)
    distances, cosines = map(list, zip(*seen.values(), strict=True))
    series = {"shift": curve(distances, list(seen)), "cosine": curve(cosines, list(seen))}
    return StudyOutcome({"shift": fmean(distances), "cosine": fmean(cosines)}, series, diverged(losses))
