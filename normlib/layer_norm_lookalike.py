"""Recognizes modules that compute exactly layer norm or group norm, by trying them on the CPU against float64.

Also RMS norm over channels. `lookalike.py` has RMS norm over the last dimension, whose classes differ more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normlib import lookalike
from normlib.group_norm import GroupNorm
from normlib.layer_norm import LayerNorm
from normlib.swap import Swap

Truth = Callable[[Tensor, Tensor, Tensor | None, float], Tensor]


class ConvertedChannelNorm(LayerNorm):
    """The class that `normlib.convert` gives a module that computes layer norm over the channels of (N, C, *)."""

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """input: (N, C, *); returns the same shape and dtype. Nothing is copied where the channels are innermost."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class ConvertedChannelRMSNorm(lookalike.ConvertedRMSNorm):
    """The class that `normlib.convert` gives a module that computes RMS norm over the channels of (N, C, *)."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """x: (N, C, *); returns the same shape. Nothing is copied where the channels are innermost."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@dataclass(frozen=True)
class Form:
    """A norm that a module may compute: its formula, shapes with n in the place of None, and the class for it."""

    truth: Truth
    shapes: tuple[tuple[int | None, ...], ...]
    kind: type[nn.Module]
    op: str
    has_bias: bool = True


def _over_channels(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return norm(x.movedim(1, -1)).movedim(-1, 1)


_IMAGES = ((2, None, 3, 2), (1, None, 1, 4))
FORMS = (
    Form(
        lambda x, w, b, eps: F.layer_norm(x, w.shape, w, b, eps), ((3, None), (1, 2, 2, None)), LayerNorm, "layer_norm"
    ),
    Form(
        lambda x, w, b, eps: _over_channels(lambda t: F.layer_norm(t, w.shape, w, b, eps), x),
        *(_IMAGES, ConvertedChannelNorm, "layer_norm"),
    ),
    Form(lambda x, w, b, eps: F.group_norm(x, 1, w, b, eps), _IMAGES, GroupNorm, "group_norm"),
    Form(
        lambda x, w, _, eps: _over_channels(lambda t: F.rms_norm(t, w.shape, w, eps), x),
        *(_IMAGES, ConvertedChannelRMSNorm, "rms_norm", False),
    ),
)


def examine(module: nn.Module, wanted: frozenset[str], known: dict[Any, Any]) -> Swap | str:
    """Returns the swap to the norm that a module computes, or the reason why it stays: it is none of FORMS.

    As in `lookalike.examine`, a copy with random weights is tried, and `known` keeps answers.
    """
    try:
        reason = _why_no_candidate(module)
        if reason is not None:
            return reason
        n, names = len(module.get_parameter("weight")), tuple(module._parameters)
        own = {k: str(v) for k, v in lookalike._own_attributes(module).items()}
        key = (type(module), wanted, *sorted(own.items()), n, names, module._parameters.get("bias") is None)
        if key not in known:
            with lookalike._undisturbed():
                known[key] = _try(module, wanted)
        return known[key]
    except Exception as error:  # of a class that somebody else wrote: anything
        return f"trying it on the CPU raised {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _why_no_candidate(module: nn.Module) -> str | None:
    """Returns the reason why a trial would not show all that a module does, or None."""
    parameters = {name: p for name, p in module._parameters.items() if p is not None}
    own = lookalike._own_attributes(module)
    more = sorted(set(lookalike._further_methods(type(module))))
    if any(True for _ in module.children()) or any(True for _ in module.buffers(recurse=False)):
        return "it has modules or buffers inside"
    if not {"weight"} <= parameters.keys() <= {"weight", "bias"} or any(p.dim() != 1 for p in parameters.values()):
        return "its parameters are not one weight, or weight and bias, of one dimension"
    if len({len(p) for p in parameters.values()}) > 1 or len(parameters["weight"]) < 2:
        return "its weight and bias have not one length of at least two"
    if "forward" in own:
        return "something replaced its forward"
    for name, value in own.items():
        if not lookalike.is_plain(value):
            return f"its attribute {name} is an object, which may change what it computes"
    if more:
        return f"its class defines {', '.join(more)} beside forward"
    return None if lookalike._eps_candidates(module) else "it has no positive float attribute that could be its eps"


def _try(module: nn.Module, wanted: frozenset[str]) -> Swap | str:
    n = len(module.get_parameter("weight"))
    random = torch.Generator("cpu").manual_seed(n)
    copy: nn.Module = object.__new__(type(module))
    vars(copy).update(vars(nn.Module()) | lookalike._own_attributes(module))
    for name, parameter in module._parameters.items():
        drawn = None if parameter is None else nn.Parameter(lookalike._normal(n, random=random) + 1)
        copy._parameters[name] = drawn
    least = inf
    for form in FORMS:
        if form.op not in wanted or (not form.has_bias and copy._parameters.get("bias") is not None):
            continue
        if form.kind is GroupNorm and "bias" not in copy._parameters:
            continue
        for eps in set(lookalike._eps_candidates(module).values()):
            before = lookalike._held(copy)
            error = _error_of(copy, form, eps, random)
            after = lookalike._held(copy)
            if before.keys() != after.keys() or any(before[k] is not after[k] for k in before):
                return "its forward changes its own attributes"
            if error <= lookalike.TOLERANCE:
                return _swap(copy, form, eps, random)
            least = min(least, error)
    return f"its output or its gradients are neither layer norm's nor group norm's: relative error {least:.0e} at least"


def _swap(module: nn.Module, form: Form, eps: float, random: torch.Generator) -> Swap | str:
    """Returns the swap to the form's class, or the reason why it does not compute the same in other dtypes."""
    rule, n = _result_dtype(module, form, eps, random), len(module.get_parameter("weight"))
    if form.kind is ConvertedChannelRMSNorm and rule in lookalike.RESULT_DTYPES:
        of_rows = {"normalized_shape": (n,), "eps": eps, "elementwise_affine": True}
        return Swap(form.kind, of_rows | {"result_dtype": rule, "zero_centred": False})
    if rule != "input":
        return f"its result follows the {rule} dtype" if rule in lookalike.RESULT_DTYPES else rule
    if form.kind is GroupNorm:
        return Swap(GroupNorm, {"num_groups": 1, "num_channels": n, "eps": eps, "affine": True})
    return Swap(form.kind, {"normalized_shape": (n,), "eps": eps, "elementwise_affine": True})


def _error_of(module: nn.Module, form: Form, eps: float, random: torch.Generator) -> float:
    """Returns the largest relative error of outputs and gradients; infinity where it does not take such a shape."""
    weight, bias = module.get_parameter("weight"), module._parameters.get("bias")
    leaves = [p for p in (weight, bias) if p is not None]
    worst = 0.0
    for training, shape, scale in (
        (t, s, c) for t in (True, False) for s in form.shapes for c in (1.0, 1e4, sqrt(eps))
    ):
        module.training = training
        sizes = [len(weight) if size is None else size for size in shape]
        x = (scale * (lookalike._normal(*sizes, random=random) + 0.5)).requires_grad_()
        dy = lookalike._normal(*sizes, random=random)
        wide = [t.detach().double().requires_grad_() for t in (x, *leaves)]
        truth = form.truth(wide[0], wide[1], wide[2] if bias is not None else None, eps)
        try:
            y = module.forward(x)
            found = torch.autograd.grad(y, (x, *leaves), dy, allow_unused=True)
        except Exception:  # it wants another shape: not this form
            return inf
        if y.shape != x.shape or y.dtype != x.dtype:
            return inf
        exact = torch.autograd.grad(truth, wide, dy.double())
        # Gradients are sums of terms that may cancel, and their rounding does not.
        terms = [dy.norm() * weight.detach().norm() / scale, dy.norm(), dy.norm()]
        sizes_of = [truth, *(torch.maximum(e.norm(), t) for e, t in zip(exact, terms, strict=False))]
        for f, e, size in zip((y, *found), (truth, *exact), sizes_of, strict=True):
            worst = max(worst, lookalike._error(f, e.detach(), size.detach()))
    return worst


def _result_dtype(module: nn.Module, form: Form, eps: float, random: torch.Generator) -> str:
    """Returns the rule of RESULT_DTYPES that all pairs of dtypes follow that it takes, or the reason why none does."""
    shape = [len(module.get_parameter("weight")) if size is None else size for size in form.shapes[0]]
    kept, results = module._parameters, {}
    for pair in lookalike.DTYPE_PAIRS:
        x = lookalike._normal(*shape, random=random).to(pair[0])
        module._parameters = {k: p if p is None else nn.Parameter(p.detach().to(pair[1])) for k, p in kept.items()}
        weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
        try:
            y = module.forward(x)
        except Exception:
            if pair[0] == pair[1]:
                raise
            continue  # PyTorch's layer norm does not take every pair either
        finally:
            module._parameters = kept
        assert weight is not None
        truth = form.truth(x.double(), weight.double(), None if bias is None else bias.double(), eps).detach()
        results[pair] = y.dtype
        if lookalike._error(y, truth, truth) > lookalike.COARSE_ROUNDINGS * max(
            torch.finfo(dtype).eps for dtype in (*pair, torch.float32)
        ):
            return f"its output differs for {' beside a weight in '.join(map(lookalike._short, pair))}"
    for name, rule in lookalike.RESULT_DTYPES.items():
        if all(rule(*pair) == dtype for pair, dtype in results.items()):
            return name
    return "its result's dtype is neither the input's, nor the weight's, nor what PyTorch promotes the two to"
