"""What the launches of a plan move: bytes by kernel and by tensor, declared from plan and shape alone.

A byte counts each time that an unmasked lane asks for it: a weight that every program loads counts once a program,
although a cache serves it. `distinct` counts each address once a launch. Both are exactly what the interpreter counts
when it runs the kernels (`python -m bench.audit`). A barrier's counters are left out: how often a program looks at one
is a matter of time. Pure Python; imports neither torch nor triton.

`sizes` has the bytes of an element of each tensor of the call, by the call's names (x, weight, running_mean, dw, ...);
a tensor that is not in it is None there, or not wanted. What comes back names tensors as each kernel does, less `_ptr`.
What each operator's plans move stands in the traffic.py of its folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from normlib.kernels.plan import MergePlan, cdiv

Sizes = Mapping[str, int]
ACTIVATIONS = ("x", "y", "dy", "dx", "residual", "z", "dz", "signs")


def statistics_bytes(sizes: Sizes) -> int:
    """Bytes of a statistic and of a partial result: float32, or float64 for float64."""
    return max(sizes["x"], 4)


class Access(NamedTuple):
    """What one launch does to one tensor, in bytes; in a plan's tables in elements."""

    loads: int
    stores: int
    distinct: int

    @property
    def once(self) -> int:
        """With every address loaded once and stored once."""
        return self.distinct * (bool(self.loads) + bool(self.stores))

    def of(self, itemsize: int) -> Access:
        """In bytes, of elements of this size."""
        return Access(self.loads * itemsize, self.stores * itemsize, self.distinct * itemsize)


def read(elements: int, times: int = 1) -> Access:
    return Access(elements * times, 0, elements)


def written(elements: int) -> Access:
    return Access(0, elements, elements)


def updated(elements: int) -> Access:
    return Access(elements, elements, elements)


@dataclass(frozen=True)
class Sweep:
    """One way through all tiles of a program, with the activations that it loads and stores at each."""

    loads: tuple[str, ...]
    stores: tuple[str, ...] = ()
    backwards: bool = False  # the last tile first; where it is a program's first sweep, the last split first too
    evicts: bool = False  # whether what it moves is the first to leave the cache


@dataclass(frozen=True)
class Traffic:
    """One launch: its grid, what it moves by tensor and, in batch norm, the sweeps of each of its programs."""

    kernel: str
    grid: tuple[int, ...]
    accesses: Mapping[str, Access]
    partials: tuple[str, ...] = ()  # tensors that live within the pass
    sweeps: tuple[Sweep, ...] = ()
    ahead: int = 0  # channel groups that a program's sweep runs ahead of its next one
    waits: bool = False  # whether programs wait for each other, so that all must be resident
    again: int = 0  # bytes of activations that a row norm's program loads a second time
    span: int = 0  # bytes of activations that it touches from the one time to the other

    def __str__(self) -> str:
        return f"{self.kernel} {'x'.join(map(str, self.grid))}"

    @property
    def activation_bytes(self) -> int:
        """Loaded and stored of activations, each time that they are."""
        return sum(a.loads + a.stores for name, a in self.accesses.items() if name in ACTIVATIONS)

    @property
    def partial_bytes(self) -> int:
        """Of partial results, once a launch and way: caches serve the repetitions."""
        return sum(a.once for name, a in self.accesses.items() if name in self.partials)

    @property
    def vector_bytes(self) -> int:
        """Of parameters and statistics, likewise."""
        return sum(a.once for name, a in self.accesses.items() if name not in (*ACTIVATIONS, *self.partials))

    @property
    def moved_bytes(self) -> int:
        """Of all of these."""
        return self.activation_bytes + self.partial_bytes + self.vector_bytes


def launch(
    kernel: str,
    grid: tuple[int, ...],
    sizes: Sizes,
    table: Mapping[str, Access],
    **more: Any,
) -> Traffic:
    """The launch with its table in bytes, less the tensors that are not there."""
    present = {name: access.of(sizes[name]) for name, access in table.items() if name in sizes}
    return Traffic(kernel, grid, present, **more)


def sum_partials(merge: MergePlan, programs: int, columns: int, sizes: Sizes, itemsize: int) -> Traffic:
    """Second stage of both backward passes: partials of dw, db or both, in `itemsize`, to one value a column."""
    outputs = [sizes[name] for name in ("dw", "db") if name in sizes]
    return launch(
        "_sum_partials_kernel",
        (cdiv(columns, merge.block_n), len(outputs)),
        {"partials": itemsize, **dict(zip(("first", "second"), outputs, strict=False))},
        {
            "first": written(columns),
            "second": written(columns),
            "partials": read(len(outputs) * programs * columns),
        },
        partials=("partials",),
    )
