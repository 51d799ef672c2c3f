"""Counts the iterations of each loop in a kernel's machine code, from the arguments of a launch.

A new kernel needs an entry in TRIPS, or nothing is expected of it. Loops are numbered in the order of their heads,
outermost first. A kernel whose loops would load or store less than it declares to move is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normlib.kernels.plan import cdiv


@dataclass(frozen=True)
class Trips:
    """The iterations of each loop in the programs that run longest, and in the others."""

    most: Sequence[int] = ()
    least: Sequence[int] = ()
    share: float = 1.0  # of the programs, that run longest
    again: int | None = None  # the loop that loads activations again, which the cache still has


@dataclass(frozen=True)
class Arguments:
    """The arguments of a launch: scalars and constants by name, tensors by their shapes."""

    grid: tuple[int, ...]
    named: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.named[name]


def _dealt(things: int, programs: int) -> tuple[int, int, float]:
    """Returns (most, least, share that has most) of things that are dealt to programs."""
    most, least = cdiv(things, programs), things // programs
    return most, max(least, 1), (things - least * programs) / programs if things % programs else 1.0


def _once(a: Arguments, loops: int) -> Trips:
    return Trips()


def _row_backward(a: Arguments, loops: int) -> Trips:
    most, least, share = _dealt(cdiv(a["M"], a["BLOCK_M"]), a.grid[1])
    return Trips([most], [least], share)


def _row_forward_sliced(a: Arguments, loops: int) -> Trips:
    most, least, share = _dealt(a["M"], a.grid[1])
    return Trips([most, 1], [least, 1], share)


def _row_backward_sliced(a: Arguments, loops: int) -> Trips:
    each = a["M"] / a.grid[1]
    rounds = cdiv(-int(-each // 1), a["rows"])
    trips = [rounds, max(round(each / rounds), 1), 1, max(round(each / rounds), 1)]
    return Trips(trips, trips, again=3)


def _sum_partials(a: Arguments, loops: int) -> Trips:
    trips = [cdiv(a["P"], a["BLOCK_P"])]
    return Trips(trips, trips)


def _tiles(a: Arguments, loops: int) -> Trips:
    most, least, share = _dealt(a["tiles"], a["splits"])
    return Trips([most], [least], share)


def _moments(a: Arguments, loops: int) -> Trips:
    if a["STAGES"] == 0:
        return Trips()
    most, least, share = _dealt(a["tiles"], a["splits"])
    return Trips([max(most - 1, 1)], [max(least - 1, 1)], share)  # the first tile is before the loop


TRIPS: Mapping[str, Callable[[Arguments, int], Trips]] = {
    "_row_norm_forward_kernel": _once,
    "_row_norm_backward_kernel": _row_backward,
    "_row_norm_forward_sliced_kernel": _row_forward_sliced,
    "_row_norm_backward_sliced_kernel": _row_backward_sliced,
    "_sum_partials_kernel": _sum_partials,
    "_batch_norm_forward_resident_kernel": _once,
    "_batch_norm_backward_resident_kernel": _once,
    "_batch_norm_stats_kernel": _moments,
    "_batch_norm_normalize_kernel": _tiles,
    "_batch_norm_reduce_kernel": _tiles,
    "_batch_norm_input_gradient_kernel": _tiles,
}
# Functions of one program in many, which no other waits for: simulated by themselves, after all others.
LAST = ("store_statistics", "store_sums")


def merges(a: Arguments) -> int:
    """Returns how often the loop of a function of LAST runs."""
    return cdiv(a["splits"], a["BLOCK_P"])
