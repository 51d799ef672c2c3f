"""Internal covariate shift where only products stand between a layer and those before it."""

from statistics import fmean

from bench.study.experiment import BN, COSINE, PLAIN, SANTURKAR, SHIFT, Experiment, Gate
from bench.study.training import StudyOutcome, StudySetting, curve, diverged

EXPERIMENT = Experiment(
    __name__,
    place=13,
    title="Internal covariate shift of a deep linear network",
    claim="Batch norm does not reduce internal covariate shift: the layers before turn a layer's gradient further.",
    source=SANTURKAR("section 2.2, figure 3"),
    conditions=(PLAIN, BN, "plain, lr 1e-6", "BN, lr 1e-6"),
    gates=(
        Gate("lr 1e-7: cosine(plain) > .8", lambda cosine: cosine > 0.8, (PLAIN, "cosine")),
        Gate("lr 1e-7: cosine(BN) < .5", lambda cosine: cosine < 0.5, (BN, "cosine")),
    ),
    figure=COSINE,
    also=(SHIFT,),
)
# Regression on a random linear map by full-batch gradient descent, as in Santurkar et al. (2018), section 2.2. The loss
# is a sum over all images and components, which is why their learning rates are as small as 1e-7.
_DEPTH, _FEATURES, _IMAGES, _STEPS = 25, 10, 10000, 20


def run(condition: str, seed: int, setting: StudySetting) -> StudyOutcome:
    """Returns means over steps and layers of the shift and of the cosine; the same at every scale."""
    import torch

    from bench.study import networks
    from bench.study.gradients import shift

    layer, _, rate = condition.partition(", lr ")
    lr = float(rate or 1e-7)
    x = torch.randn(_IMAGES, _FEATURES, device=setting.device)
    y = x @ torch.randn(_FEATURES, _FEATURES, device=setting.device)
    network = networks.deep_linear(_FEATURES, networks.norm(layer), _DEPTH).to(setting.device)
    descent = torch.optim.SGD(network.parameters(), lr)

    def loss() -> torch.Tensor:
        return torch.nn.functional.mse_loss(network(x), y, reduction="sum")

    shifts, losses = [], list[float]()
    while len(losses) < _STEPS and not diverged(losses):
        shifts.append(shift(network, loss, lr))
        now = loss()
        losses.append(now.item())
        descent.zero_grad()
        now.backward()
        descent.step()
    distances, cosines = map(list, zip(*shifts, strict=True))
    series = {"cosine": curve(cosines), "shift": curve(distances)}
    return StudyOutcome({"cosine": fmean(cosines), "shift": fmean(distances)}, series, diverged(losses))
