"""Launches that declare what they move: `launch` takes a kernel, its grid, its arguments, and the `Moves` of these.

A byte counts each time that an unmasked lane asks for it: a weight that every program loads counts once a program,
although a cache serves it. `Access.distinct` counts each address once a launch. Both are exactly what the interpreter
counts when it runs the kernels (`python -m bench.audit`). A barrier's counters are left out: how often a program looks
at one is a matter of time.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from fractions import Fraction
from threading import RLock
from typing import Any, NamedTuple

from torch import Tensor

from normlib.kernels.numerics import INTERPRETED

ACTIVATIONS = ("x", "y", "dy", "dx", "residual", "z", "dz", "signs")
PARTIALS = ("partials", "sums", "coefficients", "message", "messages")  # what lives within a pass


class Access(NamedTuple):
    """The bytes that one launch loads and stores of one tensor."""

    loads: int
    stores: int
    distinct: int

    @property
    def once(self) -> int:
        """The bytes with every address loaded once and stored once."""
        return self.distinct * (bool(self.loads) + bool(self.stores))


@dataclass(frozen=True)
class TileSweep:
    """One way through all tiles of a program, with the activations that it loads and stores at each."""

    loads: tuple[str, ...]
    stores: tuple[str, ...] = ()
    backwards: bool = False  # the last tile first; where it is a program's first sweep, the last split first too
    evicts: bool = False  # whether what it moves is the first to leave the cache


@dataclass(frozen=True)
class Moves:
    """The declaration of a launch, by the kernel's argument names less `_ptr`. A tensor that is None moves nothing."""

    plan: Any
    loads: Mapping[str, int | Fraction]  # how many times each element of a tensor is loaded
    stores: tuple[str, ...]  # tensors of which each element is stored once
    parts: Mapping[str, int] = field(default_factory=dict)  # how many elements are touched, where not all are
    sweeps: tuple[TileSweep, ...] = ()
    again: int = 0
    span: int = 0


@dataclass(frozen=True)
class Traffic:
    """One launch: its grid, what it moves by tensor and, in batch norm and group norm, the sweeps of its programs."""

    kernel: str
    grid: tuple[int, ...]
    accesses: Mapping[str, Access]
    partials: tuple[str, ...] = ()  # tensors that live within the pass
    sweeps: tuple[TileSweep, ...] = ()
    waits: bool = False  # whether programs wait for each other, so that all must be resident
    again: int = 0  # bytes of activations that a row norm's program loads a second time
    span: int = 0  # bytes of activations that it touches from the one time to the other

    def __str__(self) -> str:
        return f"{self.kernel} {'x'.join(map(str, self.grid))}"

    @property
    def activation_bytes(self) -> int:
        """The bytes of activations, each time that they are loaded or stored."""
        return sum(a.loads + a.stores for name, a in self.accesses.items() if name in ACTIVATIONS)

    @property
    def partial_bytes(self) -> int:
        """The bytes of partial results, once a launch and way: caches serve the repetitions."""
        return sum(a.once for name, a in self.accesses.items() if name in self.partials)

    @property
    def vector_bytes(self) -> int:
        """The bytes of parameters and statistics, once a launch and way."""
        return sum(a.once for name, a in self.accesses.items() if name not in (*ACTIVATIONS, *self.partials))

    @property
    def moved_bytes(self) -> int:
        """The sum of all of these."""
        return self.activation_bytes + self.partial_bytes + self.vector_bytes


@dataclass(frozen=True)
class KernelLaunch:
    """A launch as its launcher states it."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: Mapping[str, Any]
    moves: Callable[[], Moves]

    def run(self, warmup: bool = False) -> Any:
        """Launches the kernel, or with `warmup` only compiles it; returns Triton's compiled kernel."""
        with _run():
            return self.kernel.run(*self.arguments, grid=self.grid, warmup=warmup, **self.constants)

    @property
    def plan(self) -> Any:
        return self.moves().plan

    @property
    def traffic(self) -> Traffic:
        moves = self.moves()
        named = {**dict(zip(self.kernel.arg_names, self.arguments, strict=False)), **self.constants}
        tensors = {name.removesuffix("_ptr"): t for name, t in named.items() if isinstance(t, Tensor)}

        def present(names: Iterable[str]) -> tuple[str, ...]:
            return tuple(name for name in names if name in tensors)

        accesses = {}
        for name, tensor in tensors.items():
            size = moves.parts.get(name, tensor.numel()) * tensor.element_size()
            access = Access(int(moves.loads.get(name, 0) * size), size * (name in moves.stores), size)
            if access.loads or access.stores:
                accesses[name] = access
        return Traffic(
            self.kernel.__name__,
            self.grid,
            accesses,
            present(PARTIALS),
            tuple(replace(sweep, loads=present(sweep.loads), stores=present(sweep.stores)) for sweep in moves.sweeps),
            bool(self.constants.get("launch_cooperative_grid")),
            moves.again,
            moves.span,
        )


_turn = RLock()


def _renew_turn() -> None:
    global _turn
    _turn = RLock()


@contextmanager
def _interpreting() -> Iterator[None]:
    # Triton's interpreter keeps the program that it runs in globals: threads take turns. And NumPy would warn or raise
    # where a GPU computes a NaN or an infinity without a word; nanmax warns whatever its errstate.
    with _turn, np.errstate(all="ignore"), warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        yield


_run: Callable[[], AbstractContextManager[None]] = nullcontext
if INTERPRETED.value:
    import numpy as np

    _run = _interpreting
    # In a forked child nobody lets go of the lock that another thread held.
    os.register_at_fork(after_in_child=_renew_turn)


_observer: Callable[[KernelLaunch], object] | None = None


def launch(
    kernel: Any, grid: tuple[int, ...], /, *arguments: Any, moves: Callable[[], Moves], **constants: Any
) -> None:
    """Launches the kernel on the current device. `moves` is called only while launches are observed."""
    if _observer is None:
        with _run():
            kernel.run(*arguments, grid=grid, warmup=False, **constants)
    else:
        _observer(KernelLaunch(kernel, grid, arguments, constants, moves))


@contextmanager
def observed(observer: Callable[[KernelLaunch], object]) -> Iterator[None]:
    """Within, every launch goes to the observer, which may run it."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before
