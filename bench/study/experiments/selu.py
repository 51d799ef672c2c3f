"""The variance of activations in a deep network without a norm."""

from bench.study.experiment import Experiment, Figure, Gate, Source
from bench.study.training import StudyOutcome, StudySetting

EXPERIMENT = Experiment(
    __name__,
    place=12,
    title="SELU keeps the variance",
    claim="Activations pass through many SELU layers with mean 0 and variance 1, without a normalization.",
    source=Source("Klambauer, Unterthiner, Mayr and Hochreiter", 2017, "https://arxiv.org/abs/1706.02515", "theorem 1"),
    operators=(),
    conditions=("SELU", "ReLU"),
    gates=(
        Gate("variance(SELU) behind 32 layers in [.8, 1.2]", lambda found: 0.8 <= found <= 1.2, ("SELU", "variance")),
        Gate("variance(ReLU, LeCun's initialization) < 1e-3", lambda found: found < 1e-3, ("ReLU", "variance")),
    ),
    figure=Figure("curves", "layer", "variance of activations", "variance", ("y",)),
)
# Deep enough for what a layer loses or gains to add up; wide enough for one draw of weights to stand for all.
_DEPTH, _WIDTH, _INPUTS = 32, 256, 1024


def run(condition: str, seed: int, setting: StudySetting) -> StudyOutcome:
    """Returns the variance behind the last layer: standard normal inputs, LeCun's initialization, no training."""
    import torch

    x = torch.randn(_INPUTS, _WIDTH, device=setting.device)
    activation = getattr(torch.nn, condition)()
    variances = []
    for _ in range(_DEPTH):
        weight = torch.randn(_WIDTH, _WIDTH, device=setting.device) / _WIDTH**0.5
        x = activation(x @ weight)
        variances.append(float(x.var()))
    series = {"variance": {"x": [float(layer) for layer in range(1, _DEPTH + 1)], "y": variances}}
    return StudyOutcome({"variance": variances[-1]}, series)
