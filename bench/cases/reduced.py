"""Shapes that Triton's interpreter can finish, in place of those of a preset that was made for a GPU."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from bench.cases.case import Case
from bench.cases.operators import operators
from bench.cli import unique

if TYPE_CHECKING:
    import torch

# Elements of x that the interpreter takes half a second for, forward, backward and the checks included: dozens of
# shapes a minute.
_MOST_ELEMENTS = 2**14
# In the order in which they are halved, the axes in words, and the least: with fewer positions or rows a statistic and
# its gradient are trivial.
_AXES = {
    "spatial": ("spatial size", 4),
    "time": ("number of time steps", 2),
    "tokens": ("number of tokens", 2),
    "units": ("number of units", 2),
    "batch": ("batch", 2),
}


def reduced(
    cases: Iterable[Case], device: torch.device, typed: Collection[str] = ()
) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """The cases with fewer positions or tokens, and then a smaller batch, and a line for the run's notes.

    Channels, hidden size, dtype, layout, mode and inputs stay, and so do the axes that somebody `typed`. On a GPU, or
    where nothing is too large, the cases come back as they are, without a note. Cases that become equal stay once.
    """
    cases = tuple(cases)
    smaller = {case: _smaller(case, typed) if device.type == "cpu" else case for case in cases}
    changed = {case.problem: new.problem for case, new in smaller.items() if new != case}
    if not changed:
        return cases, ()
    several, left = (len({case.problem for case in of}) for of in (cases, smaller.values()))
    before, after = ("x".join(map(str, case.shape)) for case in next(iter(changed.items())))
    axes = {axis for old, new in changed.items() for axis, value in new.axes if dict(old.axes)[axis] != value}
    note = (
        f"no GPU: {len(changed)} of {several} problems have their "
        f"{', '.join(words for axis, (words, _) in _AXES.items() if axis in axes)} reduced, "
        f"for example {before} to {after}, and {left} different ones are left to measure; "
        "errors are real, the shapes are not those of the preset"
    )
    return unique(smaller.values()), (note,)


def _smaller(case: Case, typed: Collection[str]) -> Case:
    operator, axes = operators()[case.op], dict(case.axes)
    for axis, (_, least) in _AXES.items():
        while axis in axes and axis not in typed and prod(operator.shape(axes)) > _MOST_ELEMENTS:
            # Rounded up, so that odd sizes stay in: 149x149 becomes 75x75.
            halves = [-(-int(extent) // 2) for extent in str(axes[axis]).split("x")]
            halved = "x".join(map(str, halves)) if isinstance(axes[axis], str) else halves[0]
            if prod(halves) < least or halved == axes[axis]:
                break
            axes[axis] = halved
    return replace(case, axes=tuple(axes.items()), shape=operator.shape(axes))
