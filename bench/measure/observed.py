"""Runs a call once, not timed, and notes what it does: PyTorch's operators, Triton's kernels, copies, grad mode.

The same call can be run as a ghost, whose kernels do nothing: Triton's are not launched, and the results of all other
operators are overwritten. What returns the same numbers all the same has kept them. Memory that a call finds and writes
into gets its values back afterwards, so that a counter or a workspace of the cell's own survives its ghost. Kernels
that a library launches past PyTorch's dispatcher and past Triton are neither seen nor stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GUARD_BYTES = 512  # a multiple of every alignment that a kernel may count on
_PATTERN = 0x5A
_ALLOCATE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
# Operators that move or look at memory and compute nothing, besides views.
_PLAIN = {"detach", "alias", "lift_fresh", "_unsafe_view", "set_", "resize_", "record_stream", *_ALLOCATE}
_COPIES = {"clone", "copy_"}
# PyTorch's own norms, by the operators that do the work.
PYTORCHS = ("layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm", "weight_norm")


@dataclass
class CallLog:
    """Records what one call does, in order."""

    operators: list[str] = field(default_factory=list)  # aten.native_layer_norm, without views and allocations
    kernels: list[str] = field(default_factory=list)  # of Triton
    copied: list[Tensor] = field(default_factory=list)
    grad_modes: set[bool] = field(default_factory=set)  # in which operators ran outside backward

    @property
    def work(self) -> list[str]:
        return [*self.kernels, *self.operators]

    @property
    def words(self) -> str:
        """Everything once, kernels first: `_row_norm_forward_kernel, aten.sum x2`."""
        return ", ".join(f"{n} x{c}" if (c := self.work.count(n)) > 1 else n for n in dict.fromkeys(self.work))

    @property
    def pytorchs(self) -> list[str]:
        """PyTorch's own norms among the operators."""
        aten = [name for name in dict.fromkeys(self.operators) if name.startswith("aten.")]
        return [name for name in aten if any(norm in name for norm in PYTORCHS)]


class _Observer(TorchDispatchMode):
    def __init__(self, log: CallLog, ghost: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log, self._ghost = log, ghost
        self.guarded: list[tuple[str, GuardedMemory]] = []
        self._before: list[tuple[Tensor, Tensor]] = []  # what a ghost has written into, and its values before

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operator._schema.name.partition("::")[2]
        if self._ghost:
            self._before += [(tensor, tensor.detach().clone()) for tensor in _written(operator, args, kwargs or {})]
        found = operator(*args, **(kwargs or {}))
        if operator.is_view or name in _PLAIN:
            if name in _ALLOCATE and not self._ghost and type(found) is Tensor:
                return self._guard(name, found)
            return found
        self.log.operators.append(f"{operator.namespace}.{name}")
        self.log.grad_modes.add(torch.is_grad_enabled())
        if name in _COPIES:
            self.log.copied += [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)][-1:]
        if self._ghost:
            for leaf in tree_leaves(found):
                if isinstance(leaf, Tensor):
                    _overwrite(leaf)
        return found

    def restore(self) -> None:
        """Gives what a ghost has written into its values back, the last first."""
        for tensor, values in reversed(self._before):
            tensor.detach().copy_(values)

    def _guard(self, name: str, tensor: Tensor) -> Tensor:
        guarded, memory = between_guards(tensor)
        self.guarded.append((name, memory))
        return guarded


def _written(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yields the tensors that an operator writes into, as copy_ and out= do."""
    for place, argument in enumerate(operator._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor))


@contextmanager
def observing(ghost: bool = False) -> Iterator[tuple[CallLog, Callable[[], list[str]]]]:
    """Within, everything is noted; yields the log, and a function that returns what has written past its memory."""
    from triton.runtime import interpreter, jit

    log = CallLog()

    def launching(function: Callable[..., Any]) -> Callable[..., Any]:
        def launch(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("warmup"):
                return function(kernel, *args, **kwargs)
            options = [option for option in ("launch_pdl",) if kwargs.get(option)]
            log.kernels.append(" ".join([getattr(getattr(kernel, "fn", kernel), "__name__", "kernel"), *options]))
            log.grad_modes.add(torch.is_grad_enabled())
            return None if ghost else function(kernel, *args, **kwargs)

        return launch

    with ExitStack() as stack:
        for owner, name in ((jit.JITFunction, "run"), (interpreter.GridExecutor, "__call__")):
            stack.enter_context(mock.patch.object(owner, name, launching(getattr(owner, name))))
        observer = _Observer(log, ghost)
        stack.callback(observer.restore)
        stack.enter_context(observer)
        yield log, lambda: [name for name, memory in observer.guarded if not memory.intact]


@dataclass(frozen=True)
class GuardedMemory:
    """The bytes of one tensor between two guards."""

    memory: Tensor
    size: int

    @property
    def intact(self) -> bool:
        """True unless something was written before or behind the tensor."""
        guards = torch.cat([self.memory[:GUARD_BYTES], self.memory[GUARD_BYTES + self.size :]])
        return bool((guards == _PATTERN).all())


def between_guards(tensor: Tensor) -> tuple[Tensor, GuardedMemory]:
    """Returns an uninitialized tensor of the same shape, strides and dtype, and the memory that it lies in."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    size = extent * tensor.element_size() if tensor.numel() else 0
    bytes_ = 2 * GUARD_BYTES + size + -size % GUARD_BYTES
    memory = torch.full((bytes_,), _PATTERN, dtype=torch.uint8, device=tensor.device)
    inside = memory[GUARD_BYTES : GUARD_BYTES + size].view(tensor.dtype)
    return (inside.as_strided(tensor.shape, tensor.stride()) if size else tensor), GuardedMemory(memory, size)


def _overwrite(tensor: Tensor) -> None:
    with suppress(RuntimeError):  # of a tensor whose elements share memory
        tensor.detach().fill_(torch.nan if tensor.is_floating_point() else 0)
