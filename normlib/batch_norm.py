"""Batch normalization over all dimensions but the second (Ioffe and Szegedy 2015)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from normlib import reference
from normlib.dispatch import (
    CustomOperator,
    LazyModule,
    Quadruple,
    Triple,
    backward_operator,
    by_mask,
    check_residual,
    contiguous,
    derive_again,
    derive_by,
    like_input,
    serves,
)
from normlib.kernels.host import statistics_dtype
from normlib.statistics_norm import replaced

kernels = LazyModule("normlib.kernels.batch_norm.launch")

BUFFERS = ("running_mean", "running_var")
_GIVEN: dict[str, Any] = {"mean": "running_mean", "rstd": "running_var", "evaluating": True}


def _train(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    relu: bool = False,
    pre_relu: bool = False,
) -> Triple:
    vectors = (contiguous(weight), contiguous(bias), running_mean, running_var)
    return kernels.batch_norm_forward(x, *vectors, momentum, eps, relu=relu, pre_relu=pre_relu)


def fake_train(x: Tensor, *_: Any) -> Triple:
    """Returns empty (y, mean (2, C), rstd (C,)) of x (N, C, *)."""
    channels = x.shape[1]
    mean = x.new_empty((2, channels), dtype=statistics_dtype(x))
    return like_input(x), mean, mean.new_empty((channels,))


def _eval(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    relu: bool = False,
    pre_relu: bool = False,
) -> Tensor:
    vectors = (contiguous(weight), contiguous(bias), running_mean.contiguous(), running_var.contiguous())
    return kernels.batch_norm_eval_forward(x, *vectors, eps, relu=relu, pre_relu=pre_relu)


def fake_eval(x: Tensor, *_: Any) -> Tensor:
    """Returns an empty y."""
    return like_input(x)


def _backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    evaluating: bool,
    output_mask: list[bool],
    relu: bool = False,
    pre_relu: bool = False,
) -> Triple:
    found = kernels.batch_norm_backward(
        *(dy, x, mean.contiguous(), rstd.contiguous(), contiguous(weight), eps, evaluating),
        need_dx=output_mask[0],
        need_sums=any(output_mask[1:]),
        bias=contiguous(bias),
        relu=relu,
        pre_relu=pre_relu,
    )
    return cast(Triple, by_mask(found, (x, weight, bias), output_mask))


def _formula(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    evaluating: bool,
    relu: bool = False,
    pre_relu: bool = False,
) -> dict[str, Tensor]:
    around = (weight, bias, eps, dy, None, relu, pre_relu)
    return reference.batch_norm_eval(x, mean, rstd, *around) if evaluating else reference.batch_norm(x, *around)


_batch_norm_train = CustomOperator("batch_norm_train", _train, fake_train, mutates=BUFFERS)
_batch_norm_eval = CustomOperator("batch_norm_eval", _eval, fake_eval)
_batch_norm_backward = backward_operator("batch_norm_backward", _backward)
derive_by(_batch_norm_train, _batch_norm_backward, evaluating=False)
derive_by(_batch_norm_eval, _batch_norm_backward, results=("y",), **_GIVEN)
derive_again(_batch_norm_backward, _formula)


# relu(batch norm + residual). With keep_signs the sum's signs are kept for backward, a bit an element.


def _add_relu_train(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    keep_signs: bool,
    pre_relu: bool,
) -> Quadruple:
    signs = _empty_signs(x, keep_signs)
    vectors = (contiguous(weight), contiguous(bias), running_mean, running_var)
    around: dict[str, Any] = {"residual": residual, "signs": signs if keep_signs else None, "pre_relu": pre_relu}
    y, mean, rstd = kernels.batch_norm_forward(x, *vectors, momentum, eps, relu=True, **around)
    return y, signs, mean, rstd


def _add_relu_eval(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    keep_signs: bool,
    pre_relu: bool,
) -> tuple[Tensor, Tensor]:
    signs = _empty_signs(x, keep_signs)
    vectors = (contiguous(weight), contiguous(bias), running_mean.contiguous(), running_var.contiguous())
    around: dict[str, Any] = {"residual": residual, "signs": signs if keep_signs else None, "pre_relu": pre_relu}
    return kernels.batch_norm_eval_forward(x, *vectors, eps, relu=True, **around), signs


def _empty_signs(x: Tensor, keep_signs: bool) -> Tensor:
    return kernels.empty_signs(x) if keep_signs else x.new_empty(0, dtype=torch.uint8)


def _fake_add_relu_train(x: Tensor, residual: Tensor, *arguments: Any) -> Quadruple:
    y, mean, rstd = fake_train(x)
    return y, _empty_signs(x, arguments[-2]), mean, rstd


def _fake_add_relu_eval(x: Tensor, residual: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return like_input(x), _empty_signs(x, arguments[-2])


def _add_relu_backward(
    dy: Tensor,
    x: Tensor,
    signs: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    evaluating: bool,
    output_mask: list[bool],
    pre_relu: bool,
) -> Quadruple:
    dz = like_input(x) if output_mask[1] else None
    dx, dw, db = kernels.batch_norm_backward(
        *(dy, x, mean.contiguous(), rstd.contiguous(), contiguous(weight), eps, evaluating),
        need_dx=output_mask[0],
        need_sums=any(output_mask[2:]),
        signs=signs,
        dz=dz,
        relu=True,
        pre_relu=pre_relu,
    )
    return cast(Quadruple, by_mask((dx, dz, dw, db), (x, x, weight, bias), output_mask))


def _add_relu_formula(
    dy: Tensor,
    x: Tensor,
    signs: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    eps: float,
    evaluating: bool,
    pre_relu: bool,
) -> dict[str, Tensor]:
    with torch.no_grad():  # the signs as ones and zeros: the residual's gradient where dy is one
        only_dz = (None, None, eps, evaluating, [False, True, False, False], pre_relu)
        passed = _batch_norm_add_relu_backward(torch.ones_like(dy), x, signs, mean, rstd, *only_dz)[1]
    dz = torch.where(passed == 0, 0.0, dy)
    return _formula(dz, x, mean, rstd, weight, None, eps, evaluating, False, pre_relu)


_batch_norm_add_relu_train = CustomOperator(
    "batch_norm_add_relu_train", _add_relu_train, _fake_add_relu_train, mutates=BUFFERS
)
_batch_norm_add_relu_eval = CustomOperator("batch_norm_add_relu_eval", _add_relu_eval, _fake_add_relu_eval)
_batch_norm_add_relu_backward = backward_operator(
    "batch_norm_add_relu_backward", _add_relu_backward, of=("x", "x", "weight", "bias")
)
_ADDED = ("x", "residual", "weight", "bias")
derive_by(
    _batch_norm_add_relu_train,
    _batch_norm_add_relu_backward,
    results=("y", "signs", "mean", "rstd"),
    of=_ADDED,
    evaluating=False,
)
derive_by(_batch_norm_add_relu_eval, _batch_norm_add_relu_backward, results=("y", "signs"), of=_ADDED, **_GIVEN)
derive_again(_batch_norm_add_relu_backward, _add_relu_formula, results=("dx", "dz", "dw", "db"))


def fits(x: Tensor, channel_vectors: tuple[Tensor | None, ...], training: bool, momentum: float, eps: float) -> bool:
    """Returns True if the kernels can take x, its (weight, bias, running_mean, running_var) and these numbers."""
    if not (
        serves(x, *channel_vectors)
        and isinstance(momentum, (float, int))
        and isinstance(eps, (float, int))
        and x.dim() >= 2
        and x.shape[1] > 0
    ):
        return False
    channels = x.shape[1:2]
    for v in channel_vectors:  # a loop: it is faster than all() with a generator
        if v is not None and v.shape != channels:
            return False
    running_mean, running_var = channel_vectors[2:]
    if (running_mean is None) != (running_var is None):
        return False
    if running_mean is not None and not (running_mean.is_contiguous() and cast(Tensor, running_var).is_contiguous()):
        return False
    return eps > 0.0 and x.numel() > x.shape[1] if training else eps >= 0.0 and running_mean is not None


def step(module: Any, spread: str = "running_var") -> tuple[tuple[Tensor | None, Tensor | None], bool, float]:
    """Counts a module's batch; returns ((running_mean, running_var) to use, if batch statistics are used, momentum).

    `spread` names the buffer that the module has in place of running_var.
    """
    training, tracking, momentum = module.training, module.track_running_stats, module.momentum
    buffers = (module.running_mean, getattr(module, spread))
    if training and tracking and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if momentum is None:  # a cumulative average
            momentum = 1.0 / float(module.num_batches_tracked)
    own = training or (buffers[0] is None and buffers[1] is None)
    return buffers if not training or tracking else (None, None), own, 0.0 if momentum is None else momentum


# What may be computed before or after the norm in its kernels.
ACTIVATIONS = (None, "relu")


def _least_eps() -> float:
    """Returns the smallest eps that this PyTorch's batch norm takes in evaluation: 0, or above it as in 2.11."""
    try:
        torch.nn.functional.batch_norm(torch.zeros(1, 1), torch.zeros(1), torch.ones(1), eps=0.0)
    except ValueError:
        return math.ulp(0.0)
    return 0.0


LEAST_EPS = _least_eps()


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    pre_activation: str | None = None,
) -> Tensor:
    """Normalizes each channel over the batch and all positions: `torch.nn.functional.batch_norm`.

    input: (N, C, *) in float32, float16, bfloat16 or float64, contiguous or channels-last (kept in the result);
    weight, bias, running_mean, running_var: (C,) in input's dtype, or float32 beside a 16-bit input. In training the
    batch's statistics are used (the biased variance), and the running buffers, if given, move by `momentum` towards
    them (the unbiased variance); otherwise the running buffers are used. Returns input's shape and dtype. Bad shapes,
    dtypes and eps raise what PyTorch raises, before any buffer changes.

    The kernels also compute what surrounds the norm: `activation="relu"` gives relu(norm), or, with a residual of
    input's shape, dtype and device, relu(norm + residual); `pre_activation="relu"` normalizes relu(input). All is
    computed in float32 (float64 for float64) and rounded once. No activation is saved for backward; of a sum with a
    residual one bit an element is. ReLU and its gradient treat zero and NaN as PyTorch does, by the value before
    rounding. ValueError for another activation, a residual without an activation and a residual unlike input.

    Ioffe and Szegedy, "Batch normalization" (2015), algorithms 1 and 2.
    """
    if activation is not None or residual is not None or pre_activation is not None:
        _check_around(input, activation, residual, pre_activation)
    relu, pre_relu = activation is not None, pre_activation is not None
    buffers = (running_mean, running_var)
    vectors = (weight, bias, running_mean, running_var)
    if not (
        fits(input, vectors, training, momentum, eps) and eps >= LEAST_EPS and (residual is None or serves(residual))
    ):
        x = input.relu() if pre_relu else input
        y = torch.nn.functional.batch_norm(x, *buffers, weight, bias, training, momentum, eps)
        y = y if residual is None else y + residual
        return y.relu() if relu else y
    if residual is None:
        if not training:
            return cast(Tensor, _batch_norm_eval(input, *vectors, eps, relu, pre_relu))
        return cast(Tensor, _batch_norm_train(input, *vectors, momentum, eps, relu, pre_relu)[0])
    keep_signs = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (input, residual, weight, bias)
    )
    if not training:
        return cast(Tensor, _batch_norm_add_relu_eval(input, residual, *vectors, eps, keep_signs, pre_relu)[0])
    return cast(Tensor, _batch_norm_add_relu_train(input, residual, *vectors, momentum, eps, keep_signs, pre_relu)[0])


def _check_around(input: Tensor, activation: str | None, residual: Tensor | None, pre_activation: str | None) -> None:
    for name, value in (("activation", activation), ("pre_activation", pre_activation)):
        if value not in ACTIVATIONS:
            raise ValueError(f"{name} must be None or 'relu', not {value!r}")
    if residual is not None:
        if activation is None:
            raise ValueError("a residual is added before an activation: it needs activation='relu'")
        check_residual(input, residual)


class _BatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    # Class attributes too, for modules whose class was exchanged by normlib.convert.
    activation: str | None = None
    pre_activation: str | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        pre_activation: str | None = None,
    ) -> None:
        later = {} if bias else {"bias": False}  # PyTorch 2.13 has it
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **later)
        _check_around(torch.empty(0), activation, None, pre_activation)
        self.activation, self.pre_activation = activation, pre_activation

    @property
    def beyond(self) -> str | None:
        """Returns "activation" for a layer that has one, else None."""
        return "activation" if self.activation or self.pre_activation else None

    @property
    def eps(self) -> float:
        """The value added to the variance; TypeError for a layer with an activation.

        A tool that replaces batch norms by their class, or fuses them, reads it, and would drop the activation.
        """
        if self.beyond is not None:
            raise replaced(self, self.beyond)
        return cast(float, self.__dict__["eps"])

    @eps.setter
    def eps(self, value: float) -> None:
        self.__dict__["eps"] = self.__dict__["_eps"] = value

    def extra_repr(self) -> str:
        around = {"activation": self.activation, "pre_activation": self.pre_activation}
        said: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return said + "".join(f", {k}={v!r}" for k, v in around.items() if v is not None)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """input, and residual if the module has an activation: (N, C, *); returns the same shape, dtype and layout."""
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        buffers, training, momentum = step(self)
        # PyTorch 2.11's torch.compile takes own["eps"] for a call of the property, and recurses. A module whose class
        # was exchanged by other means than normlib.convert has no _eps.
        own = self.__dict__
        return batch_norm(
            input,
            *buffers,
            self.weight,
            self.bias,
            training,
            momentum,
            own["_eps"] if "_eps" in own else own["eps"],
            activation=self.activation,
            residual=residual,
            pre_activation=self.pre_activation,
        )

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, residual: Tensor | None = None) -> Tensor: ...


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` on the Triton kernels: same arguments, parameters, buffers and state_dict.

    num_features: C of the inputs (N, C) or (N, C, L); eps: added to the variance; momentum: by which the running
    statistics move, None for a cumulative average; affine: with a weight, and with a bias unless `bias` is False;
    track_running_stats: with running statistics, which evaluation uses.

    activation: "relu" returns relu(norm(x)), and called with a residual like x relu(norm(x) + residual);
    pre_activation: "relu" normalizes relu(x). Dtypes, errors and the formula: `normlib.functional.batch_norm`.

        norm = normlib.BatchNorm2d(64, activation="relu")
        y = norm(x, residual=shortcut)
    """


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` on the Triton kernels, for (N, C, H, W); arguments as for `BatchNorm1d`."""


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` on the Triton kernels, for (N, C, D, H, W); arguments as for `BatchNorm1d`."""
