"""Dispatch: the tensors that kernels serve, registration of operators with PyTorch, and their derivatives."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from normlib.kernels.host import INTERPRETED, dense

Function = Callable[..., Any]
Triple = tuple[Tensor, Tensor, Tensor]
Quadruple = tuple[Tensor, Tensor, Tensor, Tensor]


class LazyModule(ModuleType):
    """A module of `kernels/`, imported at its first use: Triton takes longer to import than all of normlib."""

    # Not __getattr__, which is called after Python has looked in vain: ten times as long, in every launch.
    def __getattribute__(self, name: str) -> Any:
        return getattr(_imported(object.__getattribute__(self, "__dict__")), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_imported(object.__getattribute__(self, "__dict__")), name, value)


def _imported(own: dict[str, Any]) -> ModuleType:
    """Returns the module that a lazy one with these attributes stands for."""
    if "module" not in own:
        own["module"] = import_module(own["__name__"])
    return cast(ModuleType, own["module"])


CPU_RUNS_KERNELS = INTERPRETED
# The dtypes of x, and for each those of its parameters: x's own, or float32 beside a 16-bit x.
_PARAMETERS = {
    torch.float32: (torch.float32,),
    torch.float16: (torch.float16, torch.float32),
    torch.bfloat16: (torch.bfloat16, torch.float32),
    torch.float64: (torch.float64,),
}
FLOATING = tuple(_PARAMETERS)


class _Registered:
    """The operators that PyTorch knows, with what it calls for each of them and each dispatch key.

    PyTorch takes an operator once in a process. normlib may be imported again, by a notebook's autoreload or after it
    was deleted from sys.modules: the functions are replaced then, for layers that were made before as well.
    """

    def __init__(self) -> None:
        self.library = torch.library.Library("normlib", "DEF")
        self.schemas: dict[str, str] = {}
        self.functions: dict[tuple[str, str], Function] = {}

    def define(self, name: str, schema: str) -> None:
        """Defines an operator; RuntimeError where it is defined with another schema."""
        if name not in self.schemas:
            self.library.define(name + schema)
        elif self.schemas[name] != schema:
            raise RuntimeError(f"normlib::{name} has other arguments than when it was first imported: restart Python")
        self.schemas[name] = schema

    def put(self, name: str, key: str, function: Function) -> None:
        """Makes `function` what PyTorch calls for an operator and a dispatch key, or for "fake"."""
        functions, known = self.functions, (name, key) in self.functions
        functions[name, key] = function
        if known:
            return

        def call(*args: Any, **kwargs: Any) -> Any:
            return functions[name, key](*args, **kwargs)

        if key == "fake":
            torch.library.register_fake(f"normlib::{name}", call, lib=self.library)
        else:
            self.library.impl(name, call, key)


# The namespace of the operators lives as long as the process does.
_REGISTERED: _Registered = vars(torch.ops.normlib).get("_registered") or _Registered()
vars(torch.ops.normlib)["_registered"] = _REGISTERED


def backend_for(tensor: Tensor) -> str:
    """Returns `triton` for CUDA and ROCm tensors, else `interpreter` (CPU, with TRITON_INTERPRET=1) or `torch`."""
    if tensor.is_cuda:
        return "triton"
    return "interpreter" if CPU_RUNS_KERNELS and tensor.is_cpu else "torch"


def serves(x: Tensor, *parameters: Tensor | None) -> bool:
    """Returns True if the kernels can take x with these parameters.

    If not, PyTorch computes the norm, or raises its own error.
    """
    if type(x) is Tensor and x.is_cpu and not CPU_RUNS_KERNELS:  # first, so that such a call costs as much as PyTorch's
        return False
    return suits(x, *parameters) and (x.is_cuda or (CPU_RUNS_KERNELS and x.is_cpu))


def suits(x: Tensor, *parameters: Tensor | None) -> bool:
    """Returns True if the operators take x with these parameters, on any device."""
    if not _is_plain(x) or x.dtype not in _PARAMETERS or transforming():
        return False
    device, dtypes = x.device, _PARAMETERS[x.dtype]
    for p in parameters:  # a loop: all() with a generator takes three times as long, in every call
        if p is not None and not (_is_plain(p) and p.dtype in dtypes and p.device == device):
            return False
    return True


def transforming() -> bool:
    """Returns True in torch.func's transforms, forward-mode AD and ONNX export.

    They have rules for PyTorch's own operators only.
    """
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        # PyTorch imports its exporter when it is first asked for; until then nothing is being exported.
        or ("torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export())
    )


def _is_plain(tensor: Tensor) -> bool:
    """Returns True for a tensor with strided storage of its own: not sparse, nested or a wrapper such as DTensor."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) and (
        not isinstance(tensor, Tensor) or is_traceable_wrapper_subclass(tensor)
    ):
        return False
    return tensor.layout is torch.strided and not tensor.is_nested


def like_input(x: Tensor) -> Tensor:
    """Returns an empty result for x (N, C, *), in the layout in which the kernels write it."""
    return torch.empty_like(dense(x)[0])


def contiguous(vector: Tensor | None) -> Tensor | None:
    """Returns a vector as the kernels take it."""
    return None if vector is None else vector.contiguous()


def check_residual(input: Tensor, residual: Tensor) -> None:
    """Raises ValueError unless the residual has input's shape, dtype and device."""
    if (residual.shape, residual.dtype, residual.device) != (input.shape, input.dtype, input.device):
        wanted, found = (f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in (input, residual))
        raise ValueError(f"residual must have input's shape, dtype and device, {wanted}; got {found}")


class CustomOperator:
    """`normlib::name`: `run` computes it on CPU (interpreted) and GPU tensors, `fake` returns its empty results.

    The schema follows from run's annotations; `mutates` names the arguments that it writes to.
    """

    def __init__(self, name: str, run: Function, fake: Function, mutates: Sequence[str] = ()) -> None:
        _REGISTERED.define(name, torch.library.infer_schema(run, mutates_args=mutates))
        for key, function in (("CPU", run), ("CUDA", run), ("fake", fake)):
            _REGISTERED.put(name, key, function)
        self.name = name
        self.overload: Any = getattr(torch.ops.normlib, name).default
        arguments = self.overload._schema.arguments
        self.names = [a.name for a in arguments]
        self.defaults = tuple(a.default_value for a in arguments)
        self.written = [self.names.index(n) for n in mutates]
        self.autograd: Function | None = None
        self.has_autocast_rule = False

    def __call__(self, *args: Any) -> Any:
        """Calls the operator; in eager mode its autograd function directly, without the dispatcher."""
        if (
            torch.compiler.is_compiling()
            or self.autograd is None
            or torch.is_inference_mode_enabled()
            or args[0].is_inference()
            or (self.has_autocast_rule and torch._C._is_any_autocast_enabled())
            or torch._C._get_tracing_state()
            or torch._C._len_torch_function_stack()
        ):
            return self.overload(*args)
        return self.autograd(*args)

    def whole(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the arguments with trailing defaults, which PyTorch leaves out."""
        return args + self.defaults[len(args) :]

    def holds_tensor(self, name: str) -> bool:
        """Returns True if the argument of this name is a tensor or None."""
        return "Tensor" in str(self.overload._schema.arguments[self.names.index(name)].type)


def refuse_gradient(function: str, name: str, value: Any) -> None:
    """Raises PyTorch's error where a gradient is asked for by an argument that the function has none by."""
    if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"The function '{function}' is not differentiable with respect to argument '{name}'. "
            "This input cannot have requires_grad True."
        )


def differentiate(operator: CustomOperator, save: Function, backward: Function, constants: Sequence[str] = ()) -> None:
    """Gives an operator its derivative; `save(ctx, inputs, output)` keeps what `backward(ctx, *upstream)` needs.

    `constants` names the tensors that it has no derivative by: RuntimeError if one of them requires a gradient. An
    output without a gradient has None in `upstream`; `backward` is not called where all of them are None.

    This replaces torch.library.register_autograd, which takes no operator that writes to its arguments, and which drops
    the tangents of forward-mode AD without a word. Here both forward-mode AD and torch.func's transforms of the bare
    operator raise NotImplementedError; in `normlib.functional` PyTorch's formulas serve them.
    """
    overload, written = operator.overload, operator.written
    constants_at = [operator.names.index(n) for n in constants]
    refusal = f"{overload.name()} has no rule for {{}}; normlib.functional and the layers do"

    def run(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*args)

    # One function, not forward and setup_context: with two, PyTorch inspects forward's signature in every call.
    def forward(ctx: Any, *args: Any) -> Any:
        # No zeros are allocated and filled for outputs that have no gradient, such as the statistics.
        ctx.set_materialize_grads(False)
        output = run(*args)
        save(ctx, operator.whole(args), output)
        return output

    def derive(ctx: Any, *upstream: Any) -> Any:
        count = len(ctx.needs_input_grad)
        if all(gradient is None for gradient in upstream):
            return (None,) * count
        return tuple(backward(ctx, *upstream)[:count])

    def jvp(*_: Any) -> Any:
        raise NotImplementedError(refusal.format("forward-mode AD"))

    statics = {"forward": forward, "backward": derive, "jvp": jvp}
    derived: Any = type(overload.name(), (torch.autograd.Function,), {k: staticmethod(v) for k, v in statics.items()})
    # Function.apply without its Python part, which looks through all arguments for functorch's tensors.
    apply = super(torch.autograd.Function, derived).apply

    def autograd(*args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            raise NotImplementedError(refusal.format("torch.func transforms"))
        recorded = torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
        if recorded:
            for i in constants_at:
                refuse_gradient(operator.name, operator.names[i], args[i])
        output = apply(*args) if recorded or forward_ad._current_level >= 0 else run(*args)
        if written:
            changed = [args[i] for i in written if args[i] is not None]
            torch.autograd.graph.increment_version(changed)
        return output

    _REGISTERED.put(operator.name, "Autograd", autograd)
    operator.autograd = autograd


def derive_by(
    operator: CustomOperator,
    backward: CustomOperator,
    results: Sequence[str] = ("y", "mean", "rstd"),
    of: Sequence[str] = ("x", "weight", "bias"),
    **given: Any,
) -> None:
    """Differentiates an operator's first result by another operator, `backward`.

    backward returns the gradients `of` the named arguments; it takes dy, and `output_mask`, a bool for each of them:
    True where it is needed. Its other arguments are the operator's arguments and `results` of the same names, except
    those that are `given`: a value, a function of x, or the name (a str) of another argument or result.
    """
    known = [*operator.names, *results]
    kept = {n: known.index(given[n] if isinstance(given.get(n), str) else n) for n in backward.names if n in known}
    kept |= {n: known.index(other) for n, other in given.items() if isinstance(other, str)}
    constants = {n: value for n, value in given.items() if not isinstance(value, str)}
    for n in constants:
        kept.pop(n, None)
    tensors, others = ([n for n in kept if backward.holds_tensor(n) == held] for held in (True, False))
    tensors_at, others_at = ([kept[n] for n in names] for names in (tensors, others))
    mask_at, count = [operator.names.index(n) for n in of], len(operator.names)
    # The place of each argument of backward among (dy, mask, *tensors, *others, *constants).
    order = [["dy", "output_mask", *tensors, *others, *constants].index(n) for n in backward.names]

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        values = (*inputs, *outputs)
        ctx.save_for_backward(*[values[i] for i in tensors_at])
        ctx.others = [values[i] for i in others_at]
        ctx.others += [c(inputs[0]) if callable(c) else c for c in constants.values()]
        ctx.mark_non_differentiable(*outputs[1:])

    def derive(ctx: Any, dy: Tensor, *_: Tensor) -> list[Tensor | None]:
        needs = ctx.needs_input_grad
        mask = [needs[i] for i in mask_at]
        values = (dy, mask, *ctx.saved_tensors, *ctx.others)
        found: list[Tensor | None] = [None] * count
        for i, wanted, gradient in zip(mask_at, mask, backward(*[values[i] for i in order]), strict=True):
            found[i] = gradient if wanted else None
        return found

    differentiate(operator, save, derive, [n for n in operator.names if n not in of and operator.holds_tensor(n)])


def derive_again(backward: CustomOperator, formula: Function, results: Sequence[str] = ("dx", "dw", "db")) -> None:
    """Differentiates a backward operator by a formula for the gradients that it returns.

    formula takes some of backward's arguments, by name, and returns a dict with `results`, computed with PyTorch's
    operators, so that they can be differentiated any number of times. It is differentiated by dy, x, weight and dz, as
    far as it takes them.
    """
    taken = list(inspect.signature(formula).parameters)
    tensors = [n for n in taken if backward.holds_tensor(n)]
    variables = [n for n in tensors if n in ("dy", "x", "weight", "dz")]

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        given = dict(zip(backward.names, inputs, strict=True))
        ctx.save_for_backward(*[given[n] for n in tensors])
        ctx.others = {n: given[n] for n in taken if n not in tensors}
        ctx.mask = given["output_mask"]

    def derive(ctx: Any, *upstream: Tensor | None) -> list[Tensor | None]:
        """Returns the vector-Jacobian product of the formula with `upstream`."""
        saved = dict(zip(tensors, ctx.saved_tensors, strict=True))
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            for name in variables:
                if saved[name] is not None and not saved[name].requires_grad:
                    saved[name] = saved[name].detach().requires_grad_()
            truth = formula(**saved, **ctx.others)
            pairs = [(truth[k], u) for k, m, u in zip(results, ctx.mask, upstream, strict=True) if m and u is not None]
            wanted = [n for n in variables if saved[n] is not None]
            outputs, weights = [o for o, _ in pairs], [u.to(o.dtype) for o, u in pairs]
            leaves = [saved[n] for n in wanted]
            found = torch.autograd.grad(outputs, leaves, weights, allow_unused=True, create_graph=create_graph)
        gradients = dict(zip(wanted, found, strict=True))
        return [gradients.get(n) for n in backward.names]

    differentiate(backward, save, derive)


def backward_operator(
    name: str, run: Function, of: Sequence[str] = ("x", "weight", "bias"), empty: Function = like_input
) -> CustomOperator:
    """Registers an operator that returns the gradients `of` these arguments, as `by_mask` does.

    `empty(x)` returns an empty dx.
    """
    names = list(inspect.signature(run).parameters)

    def fake(*args: Any) -> tuple[Tensor, ...]:
        given = dict(zip(names, args, strict=False))

        def gradient(n: str, wanted: bool) -> Tensor:
            t = given[n]
            if t is None or not wanted:
                return cast(Tensor, given["x"].new_empty(0))
            return cast(Tensor, empty(t) if n == "x" else t.new_empty(t.shape))

        return tuple(gradient(n, m) for n, m in zip(of, given["output_mask"], strict=True))

    return CustomOperator(name, run, fake)


def by_mask(
    gradients: Sequence[Tensor | None], like: Sequence[Tensor | None], output_mask: Sequence[bool]
) -> tuple[Any, ...]:
    """Returns the gradients in the dtypes of `like`, and an empty tensor for each that output_mask does not ask for."""
    x, found = cast(Tensor, like[0]), []
    for g, t, m in zip(gradients, like, output_mask, strict=True):
        if not m or g is None or t is None:
            found.append(x.new_empty(0))
        else:
            found.append(g if g.dtype == t.dtype else g.to(t.dtype))
    return tuple(found)


def dtypes_by_mask(
    weight: Tensor | None, bias: Tensor | None, output_mask: Sequence[bool]
) -> tuple[torch.dtype | None, torch.dtype | None]:
    """Returns the dtypes of dw and db, None for one that output_mask, of (x, weight, bias), does not ask for."""
    _, of_weight, of_bias = output_mask
    return (
        weight.dtype if weight is not None and of_weight else None,
        bias.dtype if bias is not None and of_bias else None,
    )


def autocast_as_pytorch(operator: CustomOperator) -> None:
    """Makes an operator compute in float32 under CUDA autocast if PyTorch's operator of that name does.

    For RMS norm 2.13 has such a rule, and 2.11 has none.
    """
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{operator.name}", "AutocastCUDA"):
        operator.has_autocast_rule = True
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"normlib::{operator.name}", "AutocastCUDA"):
            torch.library.register_autocast(operator.overload, "cuda", torch.float32, lib=_REGISTERED.library)
