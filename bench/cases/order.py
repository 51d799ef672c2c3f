"""The order in which a run with a time budget measures: whenever it is stopped, what is done is a coarse grid of all.

The points that are farthest from what is there already come first: Gonzalez, "Clustering to minimize the maximum
intercluster distance" (1985), whose every prefix covers the whole within twice the least radius that is possible with
so many points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from math import log2, prod

import numpy as np
from numpy.typing import NDArray

from bench.cases.case import OPTIONS, Case


def coarse_first(cases: Iterable[Case]) -> list[Case]:
    """The same cases, those that tell most about the rest first; the same order every time.

    The cases of one problem stay next to each other, in their order. Distances are Euclidean: an axis counts by its
    logarithm, from the smallest value to the largest as 1, and another operator, option, dtype, layout, eps or family
    of inputs is as far away as the other end of an axis. The first is the problem nearest to the middle of all.
    """
    groups: dict[Case, list[Case]] = {}
    for problem, group in groupby(cases, key=lambda case: case.problem):
        groups.setdefault(problem, []).extend(group)
    problems = list(groups)
    return [case for index in _farthest_first(_points(problems)) for case in groups[problems[index]]]


def _points(problems: Sequence[Case]) -> NDArray[np.float64]:
    """A row a problem; equal problems share a point, and no two different ones do."""
    named = [dict(problem.axes) for problem in problems]
    axes = tuple(dict.fromkeys(name for axes in named for name in axes if name not in OPTIONS))
    scaled = [_scaled([_size(axes[name]) if name in axes else None for axes in named]) for name in axes]
    kinds = ("op", "options", "dtype", "layout", "eps", "family")
    marked = [_marks([getattr(problem, kind) for problem in problems]) for kind in kinds]
    return np.concatenate([np.array(scaled).reshape(len(axes), len(problems)).T, *marked], axis=1)


def _size(value: int | str) -> float:
    """log2 of a number, or of the positions of an extent, with what tells 8x2 from 4x4 a little beside it."""
    if not isinstance(value, str):
        return log2(value)
    extents = [int(extent) for extent in value.split("x")]
    return log2(prod(extents)) + 1e-3 * len(extents) + 1e-6 * extents[0]


def _scaled(sizes: Sequence[float | None]) -> list[float]:
    """From 0 to 1, and the middle for operators that lack the axis."""
    known = [size for size in sizes if size is not None]
    low, reach = min(known), max(known) - min(known) or 1.0
    return [0.5 if size is None else (size - low) / reach for size in sizes]


def _marks(values: Sequence[object]) -> NDArray[np.float64]:
    """A column a value, so that any two different values are 1 apart."""
    kinds = {value: column for column, value in enumerate(dict.fromkeys(values))}
    columns = np.array([kinds[value] for value in values], dtype=np.intp)
    return np.asarray(np.eye(len(kinds))[columns] / np.sqrt(2), dtype=np.float64)


def _farthest_first(points: NDArray[np.float64]) -> list[int]:
    """Indices; of points that are equally far the first one."""
    if not len(points):
        return []
    lengths = np.square(points).sum(1)

    def squares(centre: NDArray[np.float64]) -> NDArray[np.float64]:
        # Rounded, so that the last bit of a sum, which machines add up differently, decides nothing.
        return np.asarray(lengths - 2 * (points @ centre) + centre @ centre, dtype=np.float64).round(9)

    order = [int(np.argmin(squares(points.mean(0))))]
    nearest = squares(points[order[0]])
    nearest[order] = -np.inf
    while len(order) < len(points):
        order.append(int(np.argmax(nearest)))
        np.minimum(nearest, squares(points[order[-1]]), out=nearest)
        nearest[order[-1]] = -np.inf
    return order
