"""The accuracy that each norm loses in small batches."""

from bench.study.experiment import BN, IOFFE, Experiment, Figure, Gate, of
from bench.study.training import StudyOutcome, StudySetting, at

EXPERIMENT = Experiment(
    __name__,
    place=10,
    title="Small batches",
    claim="Batch norm loses accuracy in small batches; batch renormalization loses less, layer norm nothing.",
    source=IOFFE("section 4.2"),
    operators=("batch_norm", "batch_renorm", "layer_norm"),
    conditions=(BN, "batch renorm", "layer norm"),
    gates=(
        Gate(
            "batch 2: accuracy(BN) < accuracy(batch renorm) < accuracy(layer norm)",
            lambda bn, renorm, layer: bn < renorm < layer,
            *of(at("accuracy", 2), BN, "batch renorm", "layer norm"),
        ),
        Gate(
            "batch 4: accuracy(BN) < accuracy(batch renorm)",
            lambda bn, renorm: bn < renorm,
            *of(at("accuracy", 4), BN, "batch renorm"),
        ),
    ),
    figure=Figure("lines", "batch size", "test accuracy", "test accuracy", ("x",)),
    sweep=True,
)
BATCHES = (2, 4, 8, 32)
# Three layers train with every batch size; in ten, the noise of two images' statistics leaves nothing to learn from.
_DEPTH = 3
# Times the scale's steps, because batches of two pass over the images 64 times as slowly.
_LONGER = 5
# The bounds that the paper ends with, from the first step on: its schedule reaches them after 40000.
_OPTIONS = {"batch renorm": {"rmax": 3.0, "dmax": 5.0}}


def run(condition: str, seed: int, setting: StudySetting) -> StudyOutcome:
    """Returns the test accuracy for each batch size, after as many steps; an MLP at every scale."""
    import torch

    found = {}
    for size in BATCHES:
        torch.manual_seed(seed)
        network = setting.mlp(condition, _OPTIONS.get(condition), depth=_DEPTH)
        setting.train(network, seed, size=size, steps=_LONGER * setting.scale.steps)
        found[size] = setting.accuracy(network)
    values = {at("accuracy", size): share for size, share in found.items()}
    return StudyOutcome(values, {"test accuracy": {"x": list(found), "y": list(found.values())}})
