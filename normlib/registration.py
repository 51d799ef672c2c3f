"""How an operator gets into PyTorch: one library, one way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

LIBRARY = torch.library.Library("normlib", "DEF")

Function = Callable[..., Any]


def register(schema: str, run: Function, fake: Function) -> Any:
    """Defines `normlib::<schema>`: `run` computes it on CPU (interpreted) and GPU tensors, `fake` only its shapes."""
    name = schema[: schema.index("(")]
    LIBRARY.define(schema)
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"normlib::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.normlib, name).default


def differentiate(operator: Any, backward: Function, save: Function) -> None:
    """Gives a registered operator its derivative; `save(ctx, inputs, output)` keeps what `backward` needs.

    An output that nothing came back to has None for its gradient; where that is all of them `backward` is not called.

    In place of torch.library.register_autograd, which takes no operator that writes to its arguments, and which drops
    the tangents of forward-mode AD without a word. Here both forward-mode AD and torch.func's transforms of the bare
    operator raise NotImplementedError; `normlib.functional` has PyTorch's formulas serve them.
    """
    refusal = f"{operator.name()} has no rule for {{}}; normlib.functional and the layers do"
    written = [i for i, a in enumerate(operator._schema.arguments) if a.alias_info and a.alias_info.is_write]

    def run(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    # One function, not forward and setup_context: with two, PyTorch inspects forward's signature in every call.
    def forward(ctx: Any, *args: Any) -> Any:
        # No zeros are allocated and filled for outputs that have no gradient, such as the statistics.
        ctx.set_materialize_grads(False)
        output = run(*args)
        save(ctx, args, output)
        return output

    def derive(ctx: Any, *upstream: Any) -> Any:
        if all(gradient is None for gradient in upstream):
            return (None,) * len(ctx.needs_input_grad)
        return backward(ctx, *upstream)

    def jvp(*_: Any) -> Any:
        raise NotImplementedError(refusal.format("forward-mode AD"))

    statics = {"forward": forward, "backward": derive, "jvp": jvp}
    derived: Any = type(operator.name(), (torch.autograd.Function,), {k: staticmethod(v) for k, v in statics.items()})

    def autograd(*args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            raise NotImplementedError(refusal.format("torch.func transforms"))
        recorded = torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
        output = derived.apply(*args) if recorded or forward_ad._current_level >= 0 else run(*args)
        changed = [args[i] for i in written if args[i] is not None]
        if changed:
            torch.autograd.graph.increment_version(changed)
        return output

    LIBRARY.impl(operator._schema.name, autograd, "Autograd")


def autocast_as_pytorch(operator: Any) -> None:
    """Has a registered operator compute in float32 under CUDA autocast where PyTorch's of that name does.

    For RMS norm 2.13 has such a rule, and 2.11 has none.
    """
    name = operator._schema.name.partition("::")[2]
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCUDA"):
        torch.library.register_autocast(operator, "cuda", torch.float32, lib=LIBRARY)


def gradient_of(
    gradients: Function, inputs: tuple[torch.Tensor | None, ...], upstream: tuple[torch.Tensor | None, ...]
) -> list[torch.Tensor | None]:
    """Backward of a backward: the vector-Jacobian product of `gradients(*inputs)` with `upstream`.

    `gradients` is written in PyTorch's own differentiable operators, so the result can be differentiated further.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in inputs]
        pairs = [(o, u) for o, u in zip(gradients(*leaves), upstream, strict=True) if o is not None and u is not None]
        wanted = [t for t in leaves if t is not None]
        found = iter(
            torch.autograd.grad(
                [o for o, _ in pairs],
                wanted,
                [u.to(o.dtype) for o, u in pairs],
                allow_unused=True,
                create_graph=create_graph,
            )
        )
    return [None if t is None else next(found) for t in leaves]
