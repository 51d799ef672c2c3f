"""The experiments as data: what was claimed, by whom, and the inequalities that decide it. Imports no torch.

A loss is the mean cross-entropy in nats of training batches; an auc is a loss's mean over all steps of a run.
"""

from __future__ import annotations

from bench.study.experiment import Experiment, Figure, Gate, Source

PLAIN, BN = "plain", "BN"

# What is swept; values and series are named by these.
LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SCALES = (0.01, 0.1, 0.5, 1.0, 2.0, 10.0)
BATCHES = (2, 4, 8, 32)

_IOFFE_SZEGEDY = "Ioffe and Szegedy", 2015
_SANTURKAR = "Santurkar, Tsipras, Ilyas and Madry", 2018
_IOFFE = "Ioffe", 2017
_BN_URL, _SANTURKAR_URL, _RENORM_URL = (
    f"https://arxiv.org/abs/{n}" for n in ("1502.03167", "1805.11604", "1702.03275")
)

# Internal covariate shift, of a layer's gradient before and after the layers below have taken their step.
_SHIFT = Figure("curves", "step", "L2 distance of gradients before and after", "shift", ("y",))
_COSINE = Figure("curves", "step", "cosine of gradients before and after", "cosine")


def at(name: str, setting: float) -> str:
    """The name of a value taken at one setting of a sweep: `loss at 0.1`."""
    return f"{name} at {setting:g}"


EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        name="training",
        title="With and without batch norm",
        claim="With batch norm a network becomes more accurate, and bears a learning rate five times as large.",
        source=Source(*_SANTURKAR, "section 2, figure 1", _SANTURKAR_URL),
        operators=("batch_norm",),
        conditions=(PLAIN, BN, "plain, lr .5", "BN, lr .5"),
        gates=(),
        figure=Figure("curves", "step", "test accuracy", "test accuracy"),
    ),
    Experiment(
        name="noisy_bn",
        title="Noise behind batch norm",
        claim="Batch norm helps just as well when noise makes the distributions behind it unstable again.",
        source=Source(*_SANTURKAR, "section 2.1, figure 2", _SANTURKAR_URL),
        operators=("batch_norm", "noisy_batch_norm"),
        conditions=(PLAIN, BN, "noisy BN", "plain + noise"),
        gates=(
            Gate(
                "auc(noisy BN) < 1/2 auc(plain)",
                lambda v: v["noisy BN", "auc"] < v[PLAIN, "auc"] / 2,
                (("noisy BN", "auc"), (PLAIN, "auc")),
            ),
            Gate(
                "plain + the same noise does not train: loss > 1",
                lambda v: v["plain + noise", "loss"] > 1,
                (("plain + noise", "loss"),),
            ),
        ),
        figure=Figure("curves", "step", "training loss", "loss"),
    ),
    Experiment(
        name="landscape",
        title="Loss along the gradient",
        claim="With batch norm the loss changes less along the direction of the gradient.",
        source=Source(*_SANTURKAR, "section 3.2, figure 4a", _SANTURKAR_URL),
        operators=("batch_norm",),
        conditions=(PLAIN, BN),
        gates=(
            Gate(
                "mean range(BN) < 1/3 mean range(plain)",
                lambda v: v[BN, "mean range"] < v[PLAIN, "mean range"] / 3,
                ((BN, "mean range"), (PLAIN, "mean range")),
            ),
        ),
        figure=Figure("bands", "step", "loss over steps of 1/2 to 4 times the learning rate", "loss range", ("y",)),
    ),
    Experiment(
        name="predictiveness",
        title="Gradient predictiveness",
        claim="With batch norm the gradient changes less along its own direction, so that it predicts more.",
        source=Source(*_SANTURKAR, "section 3.2, figure 4b", _SANTURKAR_URL),
        operators=("batch_norm",),
        conditions=(PLAIN, BN),
        gates=(
            Gate(
                "change of gradient(BN) < 1/2 change of gradient(plain)",
                lambda v: v[BN, "change of gradient"] < v[PLAIN, "change of gradient"] / 2,
                ((BN, "change of gradient"), (PLAIN, "change of gradient")),
            ),
        ),
        figure=Figure("bands", "step", "L2 distance of gradients", "distance of gradients", ("y",)),
    ),
    Experiment(
        name="smoothness",
        title="Effective smoothness",
        claim="With batch norm the gradient is smoother: its change over the distance gone is smaller.",
        source=Source(*_SANTURKAR, "section 3.2, figure 4c", _SANTURKAR_URL),
        operators=("batch_norm",),
        conditions=(PLAIN, BN),
        gates=(
            Gate(
                "effective smoothness(BN) < effective smoothness(plain)",
                lambda v: v[BN, "effective smoothness"] < v[PLAIN, "effective smoothness"],
                ((BN, "effective smoothness"), (PLAIN, "effective smoothness")),
            ),
        ),
        figure=Figure("curves", "step", "largest change of gradient / distance", "smoothness", ("y",)),
    ),
    Experiment(
        name="lp_norms",
        title="Other normalizers",
        claim="Normalizing by another l_p norm, which fixes no variance, helps as batch norm does.",
        source=Source(*_SANTURKAR, "section 3.3", _SANTURKAR_URL),
        operators=("batch_norm", "lp_norm"),
        conditions=(PLAIN, BN, "l1", "l2", "linf"),
        gates=tuple(
            Gate(
                f"steps to loss .5({norm}) < 1/2 steps(plain)",
                lambda v, norm=norm: v[norm, "steps to .5"] < v[PLAIN, "steps to .5"] / 2,  # type: ignore[misc]
                ((norm, "steps to .5"), (PLAIN, "steps to .5")),
            )
            for norm in ("l1", "l2", "linf")
        ),
        figure=Figure("curves", "step", "training loss", "loss"),
    ),
    Experiment(
        name="learning_rate",
        title="Learning rates",
        claim="Batch norm lets a network train at much higher learning rates.",
        source=Source(*_IOFFE_SZEGEDY, "section 3.3", _BN_URL),
        operators=("batch_norm",),
        conditions=(PLAIN, BN),
        gates=(
            Gate("decades with loss < .1: BN >= 1.5", lambda v: v[BN, "decades"] >= 1.5, ((BN, "decades"),)),
            Gate("decades with loss < .1: plain <= .5", lambda v: v[PLAIN, "decades"] <= 0.5, ((PLAIN, "decades"),)),
        ),
        figure=Figure("lines", "learning rate", "training loss at the end", "loss", ("x", "y")),
        sweep=True,
    ),
    Experiment(
        name="initialization",
        title="Scale of the initial weights",
        claim="With batch norm training depends little on the scale of the initial weights.",
        source=Source(*_IOFFE_SZEGEDY, "section 3.3", _BN_URL),
        operators=("batch_norm",),
        conditions=(PLAIN, BN),
        gates=(
            Gate(
                "loss(BN) < .5 for initial weights x .01 to x 10",
                lambda v: v[BN, "largest loss"] < 0.5,
                ((BN, "largest loss"),),
            ),
            Gate(
                "plain fails at x .1 and x 2: loss > 1",
                lambda v: min(v[PLAIN, at("loss", 0.1)], v[PLAIN, at("loss", 2)]) > 1,
                ((PLAIN, at("loss", 0.1)), (PLAIN, at("loss", 2))),
            ),
        ),
        figure=Figure("lines", "scale of the initial weights", "training loss at the end", "loss", ("x", "y")),
        sweep=True,
    ),
    Experiment(
        name="sigmoid",
        title="A sigmoid network",
        claim="Batch norm keeps saturating nonlinearities out of saturation, and such networks train.",
        source=Source(*_IOFFE_SZEGEDY, "section 4.1, figure 1", _BN_URL),
        operators=("batch_norm",),
        conditions=(PLAIN, BN),
        gates=(
            Gate(
                "test accuracy(BN) - test accuracy(plain) > .2",
                lambda v: v[BN, "test accuracy"] - v[PLAIN, "test accuracy"] > 0.2,
                ((BN, "test accuracy"), (PLAIN, "test accuracy")),
            ),
        ),
        figure=Figure("curves", "step", "test accuracy", "test accuracy"),
    ),
    Experiment(
        name="small_batches",
        title="Small batches",
        claim="Batch norm loses accuracy in small batches; batch renormalization loses less, layer norm nothing.",
        source=Source(*_IOFFE, "section 4.2", _RENORM_URL),
        operators=("batch_norm", "batch_renorm", "layer_norm"),
        conditions=(BN, "batch renorm", "layer norm"),
        gates=(
            Gate(
                "batch 2: accuracy(BN) < accuracy(batch renorm) < accuracy(layer norm)",
                lambda v: (
                    v[BN, at("accuracy", 2)] < v["batch renorm", at("accuracy", 2)] < v["layer norm", at("accuracy", 2)]
                ),
                tuple((condition, at("accuracy", 2)) for condition in (BN, "batch renorm", "layer norm")),
            ),
            Gate(
                "batch 4: accuracy(BN) < accuracy(batch renorm)",
                lambda v: v[BN, at("accuracy", 4)] < v["batch renorm", at("accuracy", 4)],
                ((BN, at("accuracy", 4)), ("batch renorm", at("accuracy", 4))),
            ),
        ),
        figure=Figure("lines", "batch size", "test accuracy", "test accuracy", ("x",)),
        sweep=True,
    ),
    Experiment(
        name="moving_averages",
        title="Normalizing by moving averages while training",
        claim="Training blows up when the statistics are moving averages that no gradient passes through.",
        source=Source(*_IOFFE, "section 2", _RENORM_URL),
        operators=("batch_norm",),
        conditions=(BN, "moving averages"),
        gates=(
            Gate(
                "lr 1: the loss is not finite, or lr .1: weight norm > 1.3 x BN's",
                lambda v: (
                    v["moving averages", at("loss", 1)] == float("inf")
                    or v["moving averages", at("weight norm", 0.1)] > 1.3 * v[BN, at("weight norm", 0.1)]
                ),
                (
                    ("moving averages", at("loss", 1)),
                    ("moving averages", at("weight norm", 0.1)),
                    (BN, at("weight norm", 0.1)),
                ),
            ),
        ),
        figure=Figure("curves", "step", "norm of all weights at lr .1", at("weight norm", 0.1)),
    ),
    Experiment(
        name="selu",
        title="SELU keeps the variance",
        claim="Activations pass through many SELU layers with mean 0 and variance 1, without a normalization.",
        source=Source(
            "Klambauer, Unterthiner, Mayr and Hochreiter", 2017, "theorem 1", "https://arxiv.org/abs/1706.02515"
        ),
        operators=(),
        conditions=("SELU", "ReLU"),
        gates=(
            Gate(
                "variance(SELU) behind 32 layers in [.8, 1.2]",
                lambda v: 0.8 <= v["SELU", "variance"] <= 1.2,
                (("SELU", "variance"),),
            ),
            Gate(
                "variance(ReLU, LeCun's initialization) < 1e-3",
                lambda v: v["ReLU", "variance"] < 1e-3,
                (("ReLU", "variance"),),
            ),
        ),
        figure=Figure("curves", "layer", "variance of activations", "variance", ("y",)),
    ),
    Experiment(
        name="ics_linear",
        title="Internal covariate shift of a deep linear network",
        claim="Batch norm does not reduce internal covariate shift: the layers before turn a layer's gradient further.",
        source=Source(*_SANTURKAR, "section 2.2, figure 3", _SANTURKAR_URL),
        operators=("batch_norm",),
        conditions=(PLAIN, BN, "plain, lr 1e-6", "BN, lr 1e-6"),
        gates=(
            Gate("lr 1e-7: cosine(plain) > .8", lambda v: v[PLAIN, "cosine"] > 0.8, ((PLAIN, "cosine"),)),
            Gate("lr 1e-7: cosine(BN) < .5", lambda v: v[BN, "cosine"] < 0.5, ((BN, "cosine"),)),
        ),
        figure=_COSINE,
        also=(_SHIFT,),
    ),
    Experiment(
        name="ics_mlp",
        title="Internal covariate shift of an MLP",
        claim="Batch norm does not reduce internal covariate shift in a nonlinear network either.",
        source=Source(*_SANTURKAR, "section 2.2, figure 3", _SANTURKAR_URL),
        operators=("batch_norm",),
        conditions=(PLAIN, BN),
        gates=(),
        figure=_SHIFT,
        also=(_COSINE,),
    ),
    Experiment(
        name="dropout",
        title="Dropout beside batch norm",
        claim="Batch norm regularizes, and with it dropout can be left out.",
        source=Source(*_IOFFE_SZEGEDY, "section 3.4", _BN_URL),
        operators=("batch_norm",),
        conditions=(PLAIN, "plain + dropout", BN, "BN + dropout"),
        gates=(),
        figure=Figure("bars", "", "test accuracy", "test accuracy"),
    ),
    Experiment(
        name="activation_order",
        title="Before or behind the activation",
        claim="Batch norm belongs before the nonlinearity, whose inputs have the more stable distribution.",
        source=Source(*_IOFFE_SZEGEDY, "section 3.2", _BN_URL),
        operators=("batch_norm",),
        conditions=(PLAIN, "BN before", "BN behind"),
        gates=(),
        figure=Figure("curves", "step", "training loss", "loss"),
    ),
    Experiment(
        name="rms_norm",
        title="RMS norm in layer norm's place",
        claim="Leaving out the mean costs no accuracy and saves time.",
        source=Source("Zhang and Sennrich", 2019, "section 6", "https://arxiv.org/abs/1910.07467"),
        operators=("layer_norm", "rms_norm"),
        conditions=("layer norm", "RMS norm"),
        gates=(),
        figure=Figure("curves", "step", "training loss", "loss"),
    ),
)

BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}
