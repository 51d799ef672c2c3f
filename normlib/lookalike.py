"""Recognizes modules that compute exactly RMS norm, by trying them on the CPU against float64."""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from normlib import reference
from normlib.dispatch import FLOATING
from normlib.rms_norm import RMSNorm, rms_norm

# The dtype of a result, from x's and the weight's. torch.nn.RMSNorm follows "input", Llama's "promoted", T5's "weight".
RESULT_DTYPES: dict[str, Callable[[torch.dtype, torch.dtype], torch.dtype]] = {
    "input": lambda x, weight: x,
    "promoted": torch.promote_types,
    "weight": lambda x, weight: weight,
}

# A float32 forward or backward is a dozen roundings of 6e-8: the worst found, at widths 1, 2, 32 and 16384 over the 178
# classes of transformers 5.23 that are RMS norms, is 2.2e-7. An eps wrong by one part in 50 000 shows as 5e-6, and the
# n - 1 of an unbiased variance, at 16384, as 3e-5.
TOLERANCE = 5e-6

# Beside a 16-bit dtype only the formula is in question, whose steps may round too: x^2, mean, x_hat, product, result.
COARSE_ROUNDINGS = 8

# x is a normal number times these, where eps is nothing, and times sqrt(eps), where mean(x^2) is about eps.
SCALES = (1.0, 1e4)
ROWS = ((3,), (2, 2), (1, 2, 2))

_NARROW = (torch.float32, torch.bfloat16, torch.float16)
DTYPE_PAIRS = [(x, w) for x in _NARROW for w in _NARROW] + [(torch.float64, torch.float64)]

# Methods that a class may define beside private helpers: a converted module needs no others.
_EXPECTED = {"__init__", "forward", "extra_repr", "reset_parameters", "__repr__", "__init_subclass__"}
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
_MODULE_STATE = frozenset(vars(torch.nn.Module()))


class ConvertedRMSNorm(RMSNorm):
    """The class that `normlib.convert` gives a module that computes RMS norm with a weight, or 1 + weight.

    It differs from `normlib.RMSNorm` where x's dtype is not the weight's: the result has the dtype that the original
    gave, by `result_dtype`: "input", "promoted" or "weight". In 16 bits it rounds once, at the end, where Llama's class
    rounds twice (after the division and after the product): equal up to rounding, and never less accurate.
    """

    result_dtype = "input"

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """One tensor (*, *normalized_shape), under whatever name the original gave it; returns the same shape."""
        (x,) = (*args, *kwargs.values())
        weight, around = self.weight, self.zero_centred
        if x.dtype == weight.dtype or self.result_dtype == "input":
            return rms_norm(x, self.normalized_shape, weight, self.eps, zero_centred=around)
        common = torch.promote_types(x.dtype, weight.dtype)  # holds both exactly: only the result is rounded
        y = rms_norm(x.to(common), self.normalized_shape, weight.to(common), self.eps, zero_centred=around)
        return y.to(RESULT_DTYPES[self.result_dtype](x.dtype, weight.dtype))


@dataclass(frozen=True)
class Match:
    """A module computes RMS norm with this eps, and its result's dtype follows this rule of RESULT_DTYPES.

    `zero_centred`: its weight is stored around zero, as Gemma's is, and 1 + weight scales.
    """

    eps: float
    result_dtype: str
    zero_centred: bool = False


def why_no_candidate(module: torch.nn.Module) -> str | None:
    """Returns the reason why a module cannot be RMS norm, or None if it is a leaf with one 1-D weight and an eps."""
    names = [name for name, p in module._parameters.items() if p is not None]
    if any(True for _ in module.children()):
        return "it has modules inside"
    if any(True for _ in module.buffers(recurse=False)):
        return "it has buffers"
    if names != ["weight"]:
        return f"its parameters are {' and '.join(names)}, not one weight" if names else "it has no weight"
    if is_lazy(module.get_parameter("weight")):
        return "it is lazy and not initialised yet"
    if module.get_parameter("weight").dim() != 1:
        return f"its weight has {module.get_parameter('weight').dim()} dimensions, not one"
    if not _eps_candidates(module):
        return "it has no positive float attribute that could be its eps"
    return None


def examine(module: torch.nn.Module, known: dict[Any, Match | str]) -> Match | str:
    """Returns how a candidate computes RMS norm, or the reason why it does not or cannot be tried.

    Its class is tried on a copy with a random float32 weight of its own on the CPU: the module, its hooks, the global
    random numbers and the caller's modes stay untouched. `known` keeps answers, as a model repeats the same norm.
    """
    try:
        reason = _why_not_tried(module)
        if reason is not None:
            return reason
        key = (type(module), *sorted(_own_attributes(module).items()), len(module.get_parameter("weight")))
        if key not in known:
            with _undisturbed():
                known[key] = _try(module)
        return known[key]
    except Exception as error:  # of a class that somebody else wrote: anything
        first_line = (str(error).splitlines() or [""])[0]
        return f"trying it on the CPU raised {type(error).__name__}: {first_line}"


def _own_attributes(module: torch.nn.Module) -> dict[str, Any]:
    """Returns the instance's attributes except those that every module has."""
    return {k: v for k, v in vars(module).items() if k not in _MODULE_STATE}


def is_plain(value: object) -> bool:
    """Returns True for a number, a word, a dtype, a device, None, or a tuple of these."""
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(isinstance(v, _PLAIN) for v in value))


def _eps_candidates(module: torch.nn.Module) -> dict[str, float]:
    own = _own_attributes(module)
    return {k: float(v) for k, v in own.items() if isinstance(v, float) and 0.0 < v < math.inf}


def _why_not_tried(module: torch.nn.Module) -> str | None:
    """Returns the reason why a trial would not show all that the module does, or None."""
    own = _own_attributes(module)
    objects = [k for k, v in own.items() if not is_plain(v)]
    more = sorted(set(_further_methods(type(module))))
    weight = module.get_parameter("weight")
    if "forward" in own:
        return "something replaced its forward"
    if objects:
        return f"its attribute {objects[0]} is an object, which may change what it computes"
    if getattr(module, "bias", None) is not None:
        return "it has an attribute bias, which is normlib.RMSNorm's bias"
    if more:
        return f"its class defines {', '.join(more)} beside forward"
    parameters = list(inspect.signature(module.forward).parameters.values())
    if len(parameters) != 1 or parameters[0].kind not in (
        parameters[0].POSITIONAL_ONLY,
        parameters[0].POSITIONAL_OR_KEYWORD,
    ):
        return "its forward takes more than one argument"
    if weight.dtype not in FLOATING:
        return f"its weight is {_short(weight.dtype)}"
    return None


def _further_methods(kind: type) -> Iterator[str]:
    """Yields the names of a class's public methods, and of those that override torch.nn.Module's."""
    for base in kind.__mro__[: kind.__mro__.index(torch.nn.Module)]:
        for name, value in vars(base).items():
            reachable = hasattr(torch.nn.Module, name) or not name.startswith("_")
            if reachable and name not in _EXPECTED and hasattr(value, "__get__"):
                yield name


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    # A class whose forward is decorated with torch.compile runs as written: compiling every trial would take minutes
    # and use up the recompilations that PyTorch allows it. Nothing is compiled where that module is not loaded yet.
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else contextlib.nullcontext()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Context with gradients on and all other modes off; restores the caller's modes and random state."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.device("cpu"),
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
        _uncompiled(),
    ):
        warnings.simplefilter("ignore")  # PyTorch's about unequal dtypes, which are tried on purpose
        yield


def _normal(*shape: int, random: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=random, device="cpu", dtype=torch.float32)


def _try(module: torch.nn.Module) -> Match | str:
    n = len(module.get_parameter("weight"))
    random = torch.Generator("cpu").manual_seed(n)
    copy: torch.nn.Module = object.__new__(type(module))
    vars(copy).update(vars(torch.nn.Module()) | _own_attributes(module))
    copy._parameters["weight"] = torch.nn.Parameter(_normal(n, random=random))

    before = _held(copy)
    candidates = _eps_candidates(copy)
    errors = {(name, False): _errors(copy, eps, False, random) for name, eps in candidates.items()}
    after = _held(copy)
    if before.keys() != after.keys() or any(before[k] is not after[k] for k in before):
        return "its forward changes its own attributes"
    if all(value_error > TOLERANCE for value_error, _ in errors.values()):
        errors |= {(name, True): _errors(copy, eps, True, random) for name, eps in candidates.items()}
    name, zero_centred = min(errors, key=lambda k: errors[k])
    eps, (value_error, gradient_error) = candidates[name], errors[name, zero_centred]
    if value_error > TOLERANCE:
        return f"its output is not RMS norm's: relative error {value_error:.0e} with {name} as eps"
    if gradient_error > TOLERANCE:
        return f"its output is RMS norm's, but its gradients are not: relative error {gradient_error:.0e}"
    rule = _result_dtype(copy, eps, zero_centred, random)
    if rule not in RESULT_DTYPES:
        return rule
    copy.__class__ = ConvertedRMSNorm  # raises where instances have a layout of their own, as with __slots__
    return Match(eps, rule, zero_centred)


def _held(module: torch.nn.Module) -> dict[str, object]:
    """Returns everything that a module holds, except its mode, for comparison by identity."""
    parts = (vars(module), module._parameters, module._buffers, module._modules)
    return {name: value for part in parts for name, value in part.items() if name != "training"}


def _errors(module: torch.nn.Module, eps: float, zero_centred: bool, random: torch.Generator) -> tuple[float, float]:
    """Returns the largest relative errors of the output, and of the gradients of x and the weight.

    A gradient's error is relative to the terms of its sum: in a narrow row these cancel, and their rounding does not.
    """
    weight = module.get_parameter("weight")
    n = len(weight)
    effective = weight.detach().double() + float(zero_centred)
    values = gradients = 0.0
    for training, rows, scale in ((t, r, s) for t in (True, False) for r in ROWS for s in (*SCALES, math.sqrt(eps))):
        module.training = training
        x = (scale * _normal(*rows, n, random=random)).requires_grad_()
        dy = _normal(*rows, n, random=random)
        y = module.forward(x)
        if not isinstance(y, Tensor) or y.shape != x.shape:
            raise TypeError("the result is no tensor of the input's shape")
        truth = reference.rms_norm(x.detach(), (n,), effective, None, eps, dy)
        values = max(values, _error(y, truth["y"], truth["y"]))
        dx, dw = (
            torch.autograd.grad(y, (x, weight), dy.to(y.dtype), allow_unused=True) if y.requires_grad else (None, None)
        )
        rstd = truth["rstd"].reshape(*rows, 1)
        dx_error = _error(dx, truth["dx"], rstd * effective * dy)
        dw_error = _error(dw, truth["dw"], rstd * x.detach() * dy)
        gradients = max(gradients, dx_error, dw_error)
    return values, gradients


def _error(found: Tensor | None, truth: Tensor, size: Tensor) -> float:
    """Returns |found - truth| / |size|; infinity for a NaN or a missing gradient."""
    if found is None:
        return math.inf
    ratio = float((found.detach().double() - truth).norm() / size.norm())
    return math.inf if math.isnan(ratio) else ratio


def _result_dtype(module: torch.nn.Module, eps: float, zero_centred: bool, random: torch.Generator) -> str:
    """Returns the rule of RESULT_DTYPES that every pair of dtypes follows, or the reason why there is none."""
    weight = module.get_parameter("weight").detach()
    results = {}
    for pair in DTYPE_PAIRS:
        x, w = (t.to(dtype) for t, dtype in zip((_normal(3, len(weight), random=random), weight), pair, strict=True))
        module._parameters["weight"] = torch.nn.Parameter(w)
        y = module.forward(x)
        results[pair] = y.dtype
        truth = reference.rms_norm(x, w.shape, w, None, eps, zero_centred=zero_centred)["y"]
        error, unit = _error(y, truth, truth), max(torch.finfo(d).eps for d in (*pair, torch.float32))
        if error > COARSE_ROUNDINGS * unit:
            names = " beside a weight in ".join(_short(d) for d in pair)
            return f"its output is not RMS norm's for {names}: relative error {error:.0e}"
    for name, rule in RESULT_DTYPES.items():
        if all(rule(*pair) == dtype for pair, dtype in results.items()):
            return name
    return "its result's dtype is neither the input's, nor the weight's, nor what PyTorch promotes the two to"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
