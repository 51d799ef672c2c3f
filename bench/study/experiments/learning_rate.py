"""The learning rates over which a network trains."""

from math import log10

from bench.study.experiment import BN, IOFFE_SZEGEDY, PLAIN, Experiment, Figure, Gate
from bench.study.training import StudyOutcome, StudySetting, at, end

EXPERIMENT = Experiment(
    __name__,
    place=7,
    title="Learning rates",
    claim="Batch norm lets a network train at much higher learning rates.",
    source=IOFFE_SZEGEDY("section 3.3"),
    gates=(
        Gate("decades with loss < .1: BN >= 1.5", lambda decades: decades >= 1.5, (BN, "decades")),
        Gate("decades with loss < .1: plain <= .5", lambda decades: decades <= 0.5, (PLAIN, "decades")),
    ),
    figure=Figure("lines", "learning rate", "training loss at the end", "loss", ("x", "y")),
    sweep=True,
)
LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_LOSS = 0.1


def run(condition: str, seed: int, setting: StudySetting) -> StudyOutcome:
    """Returns the decades between the smallest and largest rate with a loss below .1 at the end (0: one or none)."""
    losses = {lr: end(setting.train(setting.network(condition), seed, lr=lr)) for lr in LEARNING_RATES}
    good = [lr for lr, loss in losses.items() if loss < _LOSS]
    values = {at("loss", lr): loss for lr, loss in losses.items()}
    values["decades"] = log10(max(good) / min(good)) if good else 0.0
    return StudyOutcome(values, {"loss": {"x": list(losses), "y": list(losses.values())}})
