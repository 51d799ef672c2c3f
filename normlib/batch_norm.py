"""Batch normalization over all dimensions but the second (Ioffe and Szegedy 2015)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from normlib import reference
from normlib.backend import serves
from normlib.kernels import batch_norm as kernels
from normlib.kernels.layouts import dense
from normlib.kernels.numerics import statistics_dtype
from normlib.registration import differentiate, gradient_of, register

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]
Quadruple = tuple[Tensor, Tensor, Tensor, Tensor]
# What may stand behind the norm, or before it; None is nothing.
ACTIVATIONS = (None, "relu")


def _contiguous(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _like_input(x: Tensor) -> Tensor:
    """An empty result in the layout that the kernels give it: x's, where that is one of their two."""
    return torch.empty_like(dense(x)[0])


# ------------------------------------------------------------------------------------------------ the operators


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
    residual: Tensor | None = None,
    signs: Tensor | None = None,
) -> Triple:
    weight, bias = _contiguous(weight), _contiguous(bias)
    return kernels.batch_norm_forward(
        *(x, weight, bias, running_mean, running_var, momentum, eps),
        residual=residual,
        signs=signs,
        relu=relu,
        pre_relu=pre_relu,
    )


def _fake_train(x: Tensor, *_: Any) -> Triple:
    channels = x.shape[1]
    mean = x.new_empty((2, channels), dtype=statistics_dtype(x))
    return _like_input(x), mean, mean.new_empty((channels,))


def _eval(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    relu: bool = False,
    pre_relu: bool = False,
    residual: Tensor | None = None,
    signs: Tensor | None = None,
) -> Tensor:
    return kernels.batch_norm_eval_forward(
        *(x, _contiguous(weight), _contiguous(bias), running_mean.contiguous(), running_var.contiguous(), eps),
        residual=residual,
        signs=signs,
        relu=relu,
        pre_relu=pre_relu,
    )


def _fake_eval(x: Tensor, *_: Any) -> Tensor:
    return _like_input(x)


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
    signs: Tensor | None = None,
    dz: Tensor | None = None,
) -> Triple:
    found = kernels.batch_norm_backward(
        *(dy, x, mean.contiguous(), rstd.contiguous(), _contiguous(weight), eps, evaluating),
        need_dx=output_mask[0],
        need_sums=any(output_mask[1:]),
        bias=_contiguous(bias),
        signs=signs,
        dz=dz,
        relu=relu,
        pre_relu=pre_relu,
    )
    dx, dw, db = (
        t.to(like.dtype) if m and t is not None and like is not None else x.new_empty(0)
        for t, like, m in zip(found, (x, weight, bias), output_mask, strict=True)
    )
    return dx, dw, db


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    evaluating: bool,
    output_mask: list[bool],
    *_: Any,
) -> Triple:
    dx = _like_input(x) if output_mask[0] else x.new_empty(0)
    dw, db = (
        p.new_empty(p.shape) if m and p is not None else x.new_empty(0)
        for p, m in zip((weight, bias), output_mask[1:], strict=True)
    )
    return dx, dw, db


# With a residual: relu(norm + residual), whose signs are a result of their own, empty where they are not kept.


def _train_add_relu(
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
    signs = kernels.empty_signs(x) if keep_signs else None
    arguments = (weight, bias, running_mean, running_var, momentum, eps, True, pre_relu, residual, signs)
    y, mean, rstd = _train(x, *arguments)
    return y, _present(signs, x), mean, rstd


def _fake_train_add_relu(x: Tensor, residual: Tensor, *arguments: Any) -> Quadruple:
    y, mean, rstd = _fake_train(x)
    return y, _present(kernels.empty_signs(x) if arguments[-2] else None, x), mean, rstd


def _eval_add_relu(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    keep_signs: bool,
    pre_relu: bool,
) -> Pair:
    signs = kernels.empty_signs(x) if keep_signs else None
    arguments = (weight, bias, running_mean, running_var, eps, True, pre_relu, residual, signs)
    return _eval(x, *arguments), _present(signs, x)


def _fake_eval_add_relu(x: Tensor, residual: Tensor, *arguments: Any) -> Pair:
    return _fake_eval(x), _present(kernels.empty_signs(x) if arguments[-2] else None, x)


def _present(signs: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0, dtype=torch.uint8) if signs is None else signs


def _backward_add_relu(
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
    of_x, of_residual, *of_parameters = output_mask
    dz = _like_input(x) if of_residual else None
    mask = [of_x, *of_parameters]
    dx, dw, db = _backward(dy, x, mean, rstd, weight, bias, eps, evaluating, mask, True, pre_relu, signs, dz)
    return dx, x.new_empty(0) if dz is None else dz, dw, db


def _fake_backward_add_relu(dy: Tensor, x: Tensor, signs: Tensor, *arguments: Any) -> Quadruple:
    *given, output_mask, _ = arguments
    of_x, of_residual, *of_parameters = output_mask
    dx, dw, db = _fake_backward(dy, x, *given, [of_x, *of_parameters])
    return dx, _like_input(x) if of_residual else x.new_empty(0), dw, db


_PARAMETERS = "Tensor? weight, Tensor? bias"
_BUFFERS = "Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum"
_GIVEN = "Tensor running_mean, Tensor running_var"
_RELUS = "bool relu=False, bool pre_relu=False"

_batch_norm_train = register(
    f"batch_norm_train(Tensor x, {_PARAMETERS}, {_BUFFERS}, float eps, {_RELUS})"
    " -> (Tensor y, Tensor mean, Tensor rstd)",
    _train,
    _fake_train,
)
_batch_norm_eval = register(
    f"batch_norm_eval(Tensor x, {_PARAMETERS}, {_GIVEN}, float eps, {_RELUS}) -> Tensor",
    _eval,
    _fake_eval,
)
_batch_norm_backward = register(
    f"batch_norm_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, {_PARAMETERS}, float eps,"
    f" bool evaluating, bool[3] output_mask, {_RELUS}) -> (Tensor dx, Tensor dw, Tensor db)",
    _backward,
    _fake_backward,
)
_add_relu_train = register(
    f"batch_norm_add_relu_train(Tensor x, Tensor residual, {_PARAMETERS}, {_BUFFERS}, float eps,"
    " bool keep_signs, bool pre_relu) -> (Tensor y, Tensor signs, Tensor mean, Tensor rstd)",
    _train_add_relu,
    _fake_train_add_relu,
)
_add_relu_eval = register(
    f"batch_norm_add_relu_eval(Tensor x, Tensor residual, {_PARAMETERS}, {_GIVEN}, float eps,"
    " bool keep_signs, bool pre_relu) -> (Tensor y, Tensor signs)",
    _eval_add_relu,
    _fake_eval_add_relu,
)
_add_relu_backward = register(
    f"batch_norm_add_relu_backward(Tensor dy, Tensor x, Tensor signs, Tensor mean, Tensor rstd, {_PARAMETERS},"
    " float eps, bool evaluating, bool[4] output_mask, bool pre_relu)"
    " -> (Tensor dx, Tensor dresidual, Tensor dw, Tensor db)",
    _backward_add_relu,
    _fake_backward_add_relu,
)

# ----------------------------------------------------------------------------------------------- their derivatives


def _derive(ctx: Any, dy: Tensor) -> list[Tensor | None]:
    """(dx, dw, db) by what each input needs, from tensors saved as x, weight, bias, mean, rstd."""
    x, weight, bias, mean, rstd = ctx.saved_tensors
    needs = ctx.needs_input_grad
    mask = [needs[0], weight is not None and needs[1], bias is not None and needs[2]]
    found = _batch_norm_backward(dy, x, mean, rstd, weight, bias, ctx.eps, ctx.evaluating, mask, *ctx.relus)
    return [t if m else None for t, m in zip(found, mask, strict=True)]


# An operator's arguments come without those at the end that have their default.
def _save_train(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    x, weight, bias, _, _, _, ctx.eps, *ctx.relus = inputs
    ctx.evaluating = False
    ctx.save_for_backward(x, weight, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _derive_train(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_derive(ctx, dy), *[None] * 6


def _save_eval(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, running_mean, running_var, ctx.eps, *ctx.relus = inputs
    ctx.evaluating = True
    ctx.save_for_backward(x, weight, bias, running_mean, running_var)


def _derive_eval(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return *_derive(ctx, dy), *[None] * 5


def _derive_add_relu(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, signs, weight, bias, mean, rstd = ctx.saved_tensors
    of_x, of_residual, of_weight, of_bias, *rest = ctx.needs_input_grad
    mask = [of_x, of_residual, weight is not None and of_weight, bias is not None and of_bias]
    found = _add_relu_backward(dy, x, signs, mean, rstd, weight, bias, ctx.eps, ctx.evaluating, mask, ctx.pre_relu)
    return *(t if m else None for t, m in zip(found, mask, strict=True)), *[None] * len(rest)


def _save_add_relu_train(ctx: Any, inputs: tuple[Any, ...], output: Quadruple) -> None:
    x, _, weight, bias, _, _, _, ctx.eps, _, ctx.pre_relu = inputs
    ctx.evaluating = False
    ctx.save_for_backward(x, output[1], weight, bias, *output[2:])
    ctx.mark_non_differentiable(*output[1:])


def _save_add_relu_eval(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
    x, _, weight, bias, running_mean, running_var, ctx.eps, _, ctx.pre_relu = inputs
    ctx.evaluating = True
    ctx.save_for_backward(x, output[1], weight, bias, running_mean, running_var)
    ctx.mark_non_differentiable(output[1])


def _truth(statistics: tuple[Tensor | None, ...], x: Tensor, *arguments: Any) -> dict[str, Tensor]:
    """Float64's formula, of given statistics or, in training, none."""
    if statistics[0] is None:
        return reference.batch_norm(x, *arguments)
    return reference.batch_norm_eval(x, *statistics, *arguments)  # type: ignore[arg-type]


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    dy, x, mean, rstd, weight, bias, ctx.eps, ctx.evaluating, ctx.mask, *ctx.relus = inputs
    statistics = (mean, rstd) if ctx.evaluating else (None, None)
    ctx.save_for_backward(dy, x, weight, bias if any(ctx.relus) else None, *statistics)


def _derive_backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    dy, x, weight, bias, *statistics = ctx.saved_tensors

    def gradients(dy: Tensor, x: Tensor, weight: Tensor | None) -> list[Tensor | None]:
        truth = _truth(statistics, x, weight, bias, ctx.eps, dy, None, *ctx.relus)
        return [truth[k] if m else None for k, m in zip(("dx", "dw", "db"), ctx.mask, strict=True)]

    ddy, dx, dw = gradient_of(gradients, (dy, x, weight), upstream)
    return ddy, dx, None, None, dw, *[None] * 6


def _save_backward_add_relu(ctx: Any, inputs: tuple[Any, ...], output: Quadruple) -> None:
    dy, x, signs, mean, rstd, weight, _, ctx.eps, ctx.evaluating, ctx.mask, ctx.pre_relu = inputs
    ctx.save_for_backward(dy, x, signs, mean, rstd, weight)


def _derive_backward_add_relu(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    dy, x, signs, mean, rstd, weight = ctx.saved_tensors
    statistics = (mean, rstd) if ctx.evaluating else (None, None)
    with torch.no_grad():  # the signs as ones and zeros: the residual's gradient where dy is one
        alone = (None, None, ctx.eps, ctx.evaluating, [False, True, False, False], ctx.pre_relu)
        passed = _add_relu_backward(torch.ones_like(dy), x, signs, mean, rstd, *alone)[1]

    def gradients(dy: Tensor, x: Tensor, weight: Tensor | None) -> list[Tensor | None]:
        dz = torch.where(passed == 0, 0.0, dy)
        truth = _truth(statistics, x, weight, None, ctx.eps, dz, None, False, ctx.pre_relu)
        return [truth[k] if m else None for k, m in zip(("dx", "dz", "dw", "db"), ctx.mask, strict=True)]

    ddy, dx, dw = gradient_of(gradients, (dy, x, weight), upstream)
    return ddy, dx, None, None, None, dw, *[None] * 5


differentiate(_batch_norm_train, _derive_train, _save_train)
differentiate(_batch_norm_eval, _derive_eval, _save_eval)
differentiate(_batch_norm_backward, _derive_backward, _save_backward)
differentiate(_add_relu_train, _derive_add_relu, _save_add_relu_train)
differentiate(_add_relu_eval, _derive_add_relu, _save_add_relu_eval)
differentiate(_add_relu_backward, _derive_backward_add_relu, _save_backward_add_relu)

# -------------------------------------------------------------------------------------------------- for models


def _fits(x: Tensor, channel_vectors: tuple[Tensor | None, ...], training: bool, momentum: float, eps: float) -> bool:
    """Whether the kernels can take these arguments; if not, PyTorch computes it, or says what is wrong."""
    if not (serves(x, *channel_vectors) and isinstance(momentum, (float, int)) and isinstance(eps, (float, int))):
        return False
    running_mean, running_var = channel_vectors[2:]
    return (
        x.dim() >= 2
        and x.shape[1] > 0
        and all(v is None or (v.dim() == 1 and v.shape[0] == x.shape[1]) for v in channel_vectors)
        and (running_mean is None) == (running_var is None)
        and all(v is None or v.is_contiguous() for v in (running_mean, running_var))
        and (eps > 0.0 and x.numel() > x.shape[1] if training else eps >= 0.0 and running_mean is not None)
    )


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

    What stands around the norm runs in its kernels: `activation="relu"` gives relu(norm), with a residual of input's
    shape, dtype and device relu(norm + residual); `pre_activation="relu"` normalizes relu(input). They are computed in
    float32 (float64 for float64), rounded once, and no activation is saved for them: of a residual's sum one bit an
    element. ReLU and its gradient treat zero and NaN as PyTorch does, by the value before that rounding. Another
    activation, a residual without one and one that is not like input raise ValueError.

    Ioffe and Szegedy, "Batch normalization" (2015), algorithms 1 and 2.
    """
    _check_around(input, activation, residual, pre_activation)
    relu, pre_relu = activation is not None, pre_activation is not None
    buffers = (running_mean, running_var)
    fits = _fits(input, (weight, bias, *buffers), training, momentum, eps)
    if not (fits and (residual is None or serves(residual))):
        x = input.relu() if pre_relu else input
        y = torch.nn.functional.batch_norm(x, *buffers, weight, bias, training, momentum, eps)
        y = y if residual is None else y + residual
        return y.relu() if relu else y
    scalars = (momentum, eps) if training else (eps,)
    arguments = (weight, bias, *buffers, *scalars)
    if residual is None:
        if not training:
            return cast(Tensor, _batch_norm_eval(input, *arguments, relu, pre_relu))
        return cast(Tensor, _batch_norm_train(input, *arguments, relu, pre_relu)[0])
    derived = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (input, residual, weight, bias)
    )
    operator = _add_relu_train if training else _add_relu_eval
    return cast(Tensor, operator(input, residual, *arguments, derived, pre_relu)[0])


def _check_around(input: Tensor, activation: str | None, residual: Tensor | None, pre_activation: str | None) -> None:
    for name, value in (("activation", activation), ("pre_activation", pre_activation)):
        if value not in ACTIVATIONS:
            raise ValueError(f"{name} must be None or 'relu', not {value!r}")
    if residual is None:
        return
    if activation is None:
        raise ValueError("a residual is added before an activation: it needs activation='relu'")
    if (residual.shape, residual.dtype, residual.device) != (input.shape, input.dtype, input.device):
        wanted, found = (f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in (input, residual))
        raise ValueError(f"residual must have input's shape, dtype and device, {wanted}; got {found}")


def step(module: Any, spread: str = "running_var") -> tuple[tuple[Tensor | None, Tensor | None], bool, float]:
    """What a module's forward begins with: ((running_mean, running_var), training, momentum), its batch counted.

    `spread` is what it has in running_var's place.
    """
    tracking = module.training and module.track_running_stats
    momentum = 0.0 if module.momentum is None else module.momentum
    if tracking and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if module.momentum is None:  # a cumulative average
            momentum = 1.0 / float(module.num_batches_tracked)
    buffers = (module.running_mean, getattr(module, spread))
    given = buffers if not module.training or module.track_running_stats else (None, None)
    return given, module.training or (buffers[0] is None and buffers[1] is None), momentum


class _BatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    # Also of a module that was made as another class.
    activation: str | None = None
    pre_activation: str | None = None

    def __init__(
        self, *args: Any, activation: str | None = None, pre_activation: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        _check_around(torch.empty(0), activation, None, pre_activation)
        self.activation, self.pre_activation = activation, pre_activation

    def extra_repr(self) -> str:
        around = {"activation": self.activation, "pre_activation": self.pre_activation}
        said: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return said + "".join(f", {k}={v!r}" for k, v in around.items() if v is not None)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """input, and residual if the module has an activation: (N, C, *); returns the same shape, dtype and layout."""
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        buffers, training, momentum = step(self)
        return batch_norm(
            input,
            *buffers,
            self.weight,
            self.bias,
            training,
            momentum,
            self.eps,
            activation=self.activation,
            residual=residual,
            pre_activation=self.pre_activation,
        )


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` on the Triton kernels: same arguments, parameters, buffers and state_dict.

    `activation` and `pre_activation`, and a residual in the call, are those of `functional.batch_norm`.
    """


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` on the Triton kernels: same arguments, parameters, buffers and state_dict.

    `activation` and `pre_activation`, and a residual in the call, are those of `functional.batch_norm`.
    """


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` on the Triton kernels: same arguments, parameters, buffers and state_dict.

    `activation` and `pre_activation`, and a residual in the call, are those of `functional.batch_norm`.
    """
