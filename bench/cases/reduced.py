"""Shapes that Triton's interpreter can finish, in place of those of a preset that was made for a GPU."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from bench.cases.case import Case
from bench.cases.operators import operators
from bench.cli import unique

if TYPE_CHECKING:
    import torch

# Elements of x that the interpreter takes half a second for, forward, backward and the checks included:
# dozens of shapes a minute.
_MOST_ELEMENTS = 2**14
# What no axis is halved below: with fewer positions or rows a statistic and its gradient have nothing to them.
_LEAST = {"spatial": 4, "time": 2, "tokens": 2, "units": 2, "batch": 2}
_MEANT = {
    "spatial": "spatial size",
    "time": "number of time steps",
    "tokens": "number of tokens",
    "units": "number of units",
    "batch": "batch",
}


def reduced(
    cases: Iterable[Case], device: torch.device, typed: Collection[str] = ()
) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """The cases with fewer positions or tokens, and then a smaller batch, and a line for the run's notes.

    Channels, hidden size, dtype, layout, mode and inputs stay, and so do the axes that somebody `typed`. On a GPU, or
    where nothing is too large, the cases come back as they are, without a note. Cases that become equal stay once.
    """
    cases = tuple(cases)
    if device.type != "cpu":
        return cases, ()
    smaller = {case: _smaller(case, typed) for case in cases}
    changed = {case.problem: new.problem for case, new in smaller.items() if new != case}
    if not changed:
        return cases, ()
    several, left = (len({case.problem for case in of}) for of in (cases, smaller.values()))
    before, after = next(iter(changed.items()))
    note = (
        f"no GPU: {len(changed)} of {several} problems have their {_axes(changed)} reduced, "
        f"for example {_shape(before)} to {_shape(after)}, and {left} different ones are left to measure; "
        "errors are real, the shapes are not those of the preset"
    )
    return unique(smaller.values()), (note,)


def _smaller(case: Case, typed: Collection[str]) -> Case:
    operator, axes = operators()[case.op], dict(case.axes)
    for axis, least in _LEAST.items():
        while axis in axes and axis not in typed and prod(operator.shape(axes)) > _MOST_ELEMENTS:
            halved = _halved(axes[axis])
            if _count(halved) < least or halved == axes[axis]:
                break
            axes[axis] = halved
    return replace(case, axes=tuple(axes.items()), shape=operator.shape(axes))


def _axes(changed: Mapping[Case, Case]) -> str:
    """What was reduced in any of them, in words."""
    axes = {axis for old, new in changed.items() for axis, value in new.axes if dict(old.axes)[axis] != value}
    return ", ".join(_MEANT[axis] for axis in _LEAST if axis in axes)


def _halved(value: int | str) -> int | str:
    """Rounded up, so that odd sizes stay in: 149x149 becomes 75x75."""
    if isinstance(value, str):
        return "x".join(str(-(-int(extent) // 2)) for extent in value.split("x"))
    return -(-value // 2)


def _count(value: int | str) -> int:
    return prod(int(extent) for extent in str(value).split("x"))


def _shape(case: Case) -> str:
    return "x".join(map(str, case.shape))
