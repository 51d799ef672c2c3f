"""Batch normalization over everything but the channels, in training and with running statistics.

x is (batch, channels, *spatial): `56x56` is 2-D, `4x8x8` 3-D, `7` 1-D, and `1`, a single position, is the (batch,
channels) input of BatchNorm1d. `nhwc` is channels-last at any rank: the channels are adjacent in memory. Weight, bias
and running statistics are float32 whatever x's dtype is, as in mixed-precision training (and cuDNN takes no other).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from bench.cases.case import Case
from bench.cases.operators import Inputs, Operator, Reference, channels_of, ratio
from bench.cases.presets import Preset, grid, preset

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LAYOUTS = ("nchw", "nhwc")
# Of operators whose norm is tried beside them in every dtype.
SMOKE = preset(
    "a tiny ragged shape in every dtype and layout, and one of powers of two: errors within seconds, without a GPU",
    grid(LAYOUTS, batch=3, channels=13, spatial="7x7"),
    grid(LAYOUTS, ("bf16",), batch=4, channels=64, spatial="4x4"),
)
MOMENTUM = Operator.momentum
_SPATIAL = re.compile(r"[1-9]\d*(x[1-9]\d*){0,2}")


class BatchNorm(Operator):
    """Training forward and backward with running statistics, and evaluation."""

    name = "batch_norm"
    short = "bn"
    axes: tuple[str, ...] = ("batch", "channels", "spatial")
    layouts: tuple[str, ...] = LAYOUTS
    modes: tuple[str, ...] = ("fwd", "bwd", "fwd_bwd", "eval")
    eps = 1e-5
    statistics_dim = 1
    float32_parameters = True
    running: Mapping[str, str] = {"running_mean": "mean", "running_var": "var_unbiased"}
    relu = False
    rowwise: Collection[str] = ("eval",)
    sweeps: Mapping[str, Preset] = {
        "smoke": preset(
            "small shapes of every plan, most of them ragged: errors in every dtype and layout, without a GPU",
            grid(LAYOUTS, batch=3, channels=13, spatial="7x7"),
            grid(LAYOUTS, batch=4, channels=64, spatial="4x4"),
            grid(("nchw",), batch=3, channels=13, spatial="3x7"),
        ),
        "quick": preset(
            "ResNet-50's first, a middle and last norm in both layouts, forward and backward: two minutes on a GPU",
            grid(LAYOUTS, ("fp16",), batch=32, channels=64, spatial="112x112"),
            grid(("nchw",), ("fp32",), batch=32, channels=256, spatial="14x14"),
            grid(("nhwc",), ("fp16", "bf16"), batch=32, channels=256, spatial="14x14"),
            grid(LAYOUTS, ("fp16",), batch=32, channels=2048, spatial="7x7"),
            modes=("fwd", "bwd"),
        ),
        "full": preset(
            "the stages of a convolutional net, and what is off the beaten track, in every dtype and both layouts",
            grid(LAYOUTS, batch=(32, 256), channels=(64, 128), spatial=("56x56", "112x112")),
            grid(LAYOUTS, batch=(32, 256), channels=(256, 512), spatial=("14x14", "28x28")),
            grid(LAYOUTS, batch=(32, 256), channels=(1024, 2048), spatial="7x7"),
            # Nothing divides anything; one image; volumes; sequences.
            grid(LAYOUTS, batch=33, channels=65, spatial="17x17"),
            grid(LAYOUTS, batch=1, channels=64, spatial="224x224"),
            grid(LAYOUTS, batch=8, channels=64, spatial="16x32x32"),
            grid(LAYOUTS, batch=32, channels=512, spatial="1024"),
            # (batch, channels) has one layout only.
            grid(("nchw",), batch=8192, channels=1024, spatial="1"),
        ),
    }

    def shape(self, axes: Mapping[str, int | str]) -> tuple[int, ...]:
        """(batch, channels, *spatial); raises ValueError for a spatial that is none, or one value a channel."""
        shape = image_shape(axes)
        if shape[0] * prod(shape[2:]) == 1:
            raise ValueError("training needs more than one value a channel: raise batch or spatial")
        return shape

    def truth(self, case: Case, inputs: Inputs) -> Reference:
        from normlib import reference

        x, weight, bias, dy, mean, var = (
            inputs[n] for n in ("x", "weight", "bias", "dy", "running_mean", "running_var")
        )
        residual = inputs.get("residual")
        found = reference.batch_norm(x, weight, bias, case.eps, dy, residual, relu=self.relu)
        evaluated = reference.batch_norm_eval(x, mean, var, weight, bias, case.eps, None, residual, relu=self.relu)
        return found | {"y_eval": evaluated["y"], "dresidual": found["dz"]}

    def arguments(self, case: Case) -> dict[str, Any]:
        return {"training": case.mode != "eval", "momentum": self.momentum, "eps": case.eps}

    def saved_values(self, case: Case) -> int:
        return 2 * case.shape[1]


class BatchRenorm(BatchNorm):
    """Batch renormalization, in training against running statistics, and with them in evaluation.

    Running statistics lie where a training leaves them, a deviation or so from the batch's: so r and d are of every
    size, mostly within their limits and sometimes beyond, whatever the size of x.
    """

    name = "batch_renorm"
    short = "brn"
    eps = 1e-3
    saved = ("mean", "rstd", "r", "d")
    running: Mapping[str, str] = {"running_mean": "mean", "running_std": "std"}
    momentum = 0.01  # the paper's alpha
    rmax, dmax = 3.0, 5.0  # the end of the paper's schedules

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """Batch norm's inputs, with a running_mean near x's own and running_std in place of running_var."""
        import torch

        from bench.cases.random_inputs import RandomInputs

        found = super().inputs(replace(case, op="batch_norm"), device, seed)
        draw, channels = RandomInputs(replace(case, op=f"{case.op} statistics"), device, seed), case.shape[1]
        x = found["x"].double().nan_to_num(0.0, 0.0, 0.0)
        dims = [d for d in range(x.dim()) if d != self.statistics_dim]
        variance, mean = torch.var_mean(x, dims, correction=0)
        std = (variance + case.eps).sqrt()
        # A d of three standard deviations passes dmax once in ten channels, an r of 1/4 to 4 rmax once in five.
        found["running_std"] = (std * draw.uniform((channels,), -2.0, 2.0).exp2()).float()
        found["running_mean"] = (mean + 3 * found["running_std"] * draw.normal((channels,))).float()
        return found

    def truth(self, case: Case, inputs: Inputs) -> Reference:
        from normlib import reference

        x, mean, std, weight, bias = (inputs[n] for n in ("x", "running_mean", "running_std", "weight", "bias"))
        scalars = self.momentum, case.eps, self.rmax, self.dmax
        found = reference.batch_renorm(x, mean, std, weight, bias, *scalars, inputs["dy"])
        return found | {"y_eval": reference.batch_renorm_eval(x, mean, std, weight, bias)["y"]}

    def arguments(self, case: Case) -> dict[str, Any]:
        return {**super().arguments(case), "rmax": self.rmax, "dmax": self.dmax}

    def amplification(self, inputs: Inputs, reference: Reference) -> dict[str, float]:
        """Batch norm's, where the bias is bias + weight d, and dw sums x_hat r and d apart: either pair may cancel."""
        import torch

        channel = channels_of(inputs["x"])
        weight, bias = (inputs[name].double().view(channel) for name in ("weight", "bias"))
        d = reference["d"].view(channel)
        shift, y = bias + weight * d, reference["y"]
        apart = torch.hypot((y - shift) / weight, d.expand_as(y))
        found = super().amplification(inputs, {**reference, "y": apart * weight + bias})
        terms = torch.hypot(y - shift, shift.expand_as(y))
        return found | {"y": max(ratio(terms, y, self.statistics_dim), 1.0)}


class NoisyBatchNorm(BatchNorm):
    """Batch norm with noise behind it in training, of a seed that is one of the inputs; evaluation is batch norm's.

    The truth is float64 arithmetic on the same random words: what is judged is how words became numbers, and the norm.
    Mean and standard deviation of the noise are one for the layer.
    """

    name = "noisy_batch_norm"
    short = "nbn"
    ranges = (0.5, 1.25, 0.1, 0.1)  # the paper's, and the function's defaults: limits and spreads of mean and std

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        """Batch norm's inputs, and a seed of one int64."""
        import torch

        from bench.cases.random_inputs import RandomInputs

        generator = RandomInputs(replace(case, op=f"{case.op} seed"), device, seed).generator
        drawn = torch.randint(2**63 - 1, (), generator=generator, device=device)
        return {**super().inputs(replace(case, op="batch_norm"), device, seed), "seed": drawn}

    def truth(self, case: Case, inputs: Inputs) -> Reference:
        """Batch norm's, with y and the gradients those of the noisy y."""
        from normlib import reference

        x, weight, bias = (inputs[name] for name in ("x", "weight", "bias"))
        noisy = reference.noisy_batch_norm(x, inputs["seed"], weight, bias, case.eps, False, self.ranges, inputs["dy"])
        return super().truth(case, inputs) | noisy

    def amplification(self, inputs: Inputs, reference: Reference) -> dict[str, float]:
        """Batch norm's, with the noisy dy; y has three terms, s x_hat weight, s bias and m."""
        import torch

        from normlib.philox import noise_of

        s, m = noise_of(inputs["x"], inputs["seed"], False, list(self.ranges), torch.float64)
        bias = inputs["bias"].double().view(channels_of(s))
        plain = (reference["y"] - m) / s
        found = super().amplification({**inputs, "dy": s * inputs["dy"]}, {**reference, "y": plain})
        terms = torch.stack([s * (plain - bias), s * bias, m]).norm(dim=0)
        return found | {"y": max(ratio(terms, reference["y"], self.statistics_dim), 1.0)}


class SequenceBatchNormOperator(BatchNorm):
    """Batch norm of sequences over all their steps: x is (time, batch, hidden), its features the channels.

    A padded or packed batch has fewer steps, and is nothing else to the kernels.
    """

    name = "sequence_batch_norm"
    short = "seq_bn"
    axes = ("time", "batch", "hidden")
    layouts = ("tnh",)
    statistics_dim = parameter_dim = 2
    sweeps: Mapping[str, Preset] = {
        "smoke": preset(
            "two tiny shapes, one ragged: errors in every dtype within seconds, without a GPU",
            grid(layouts, time=9, batch=5, hidden=37),
            grid(layouts, ("fp32", "bf16"), time=8, batch=4, hidden=64),
        ),
        "quick": preset(
            "short and long utterances in widths of recurrent nets, forward and backward: two minutes on a GPU",
            grid(layouts, ("fp16",), time=(50, 800), batch=32, hidden=(800, 1760, 2560)),
            grid(layouts, ("fp32",), time=800, batch=32, hidden=1760),
            modes=("fwd", "bwd"),
        ),
        "full": preset(
            "few and many steps, one sequence and many, hidden sizes on and off the powers of two, every dtype",
            grid(layouts, time=(50, 400, 1600), batch=(1, 32, 64), hidden=(256, 1000, 1024, 1760, 2560)),
        ),
    }

    def shape(self, axes: Mapping[str, int | str]) -> tuple[int, ...]:
        """(time, batch, hidden); raises ValueError for a single step of a single sequence."""
        time, batch, hidden = (int(axes[name]) for name in self.axes)
        if time * batch == 1:
            raise ValueError("training needs more than one value a feature: raise time or batch")
        return time, batch, hidden

    # The inputs and the truth are batch norm's of the steps, (time * batch, hidden).

    def inputs(self, case: Case, device: torch.device, seed: int) -> Inputs:
        return _reshaped(BATCH_NORM.inputs(_of_steps(case), device, seed), case.shape)

    def truth(self, case: Case, inputs: Inputs) -> Reference:
        return _reshaped(super().truth(case, _reshaped(inputs, (-1, case.shape[-1]))), case.shape)

    def amplification(self, inputs: Inputs, reference: Reference) -> dict[str, float]:
        steps = (-1, inputs["x"].shape[-1])
        return BATCH_NORM.amplification(_reshaped(inputs, steps), _reshaped(reference, steps))

    def bytes_moved(self, case: Case) -> int:
        return BATCH_NORM.bytes_moved(_of_steps(case))


def _of_steps(case: Case) -> Case:
    return replace(case, op="batch_norm", shape=(prod(case.shape[:-1]), case.shape[-1]), layout="nchw")


def _reshaped(tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The tensors with the activations in another shape."""
    return {name: t if t.dim() == 1 else t.reshape(shape) for name, t in tensors.items()}


def image_shape(axes: Mapping[str, int | str]) -> tuple[int, ...]:
    """(batch, channels, *spatial); raises ValueError for a spatial that is none."""
    spatial = str(axes["spatial"])
    if not _SPATIAL.fullmatch(spatial):
        raise ValueError(f"spatial must look like 7, 56x56 or 4x8x8 (1 for a (batch, channels) input), not {spatial!r}")
    sizes = () if spatial == "1" else tuple(map(int, spatial.split("x")))
    return int(axes["batch"]), int(axes["channels"]), *sizes


BATCH_NORM = BatchNorm()
OPERATORS: tuple[Operator, ...] = (BATCH_NORM, BatchRenorm(), NoisyBatchNorm(), SequenceBatchNormOperator())
