"""The order in which a run with a time budget measures: whenever it stops, what is done is a coarse grid of the whole.

Each next point is the one farthest from those before it: Gonzalez, "Clustering to minimize the maximum intercluster
distance" (1985). Every prefix covers the whole within twice the least radius that is possible with so many points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from math import log2, prod, sqrt

from bench.cases.case import OPTIONS, Case


def coarse_first(cases: Iterable[Case]) -> list[Case]:
    """Returns the same cases, those that tell most about the rest first; the same order every time.

    The cases of one problem stay next to each other, in their order. Distances are Euclidean: an axis counts by its
    logarithm, from the smallest value to the largest as 1, and another operator, option, dtype, layout, eps or family
    of inputs is as far away as the other end of an axis. The first is the problem nearest to the middle of all; of
    problems that are equally far the first one is taken.
    """
    import numpy as np
    from scipy.spatial.distance import cdist

    groups: dict[Case, list[Case]] = {}
    for problem, group in groupby(cases, key=lambda case: case.problem):
        groups.setdefault(problem, []).extend(group)
    problems = list(groups)
    if not problems:
        return []
    points = np.array(coordinates(problems))
    # Rounded, so that the last bit of a sum, which machines add up differently, decides nothing.
    order = [int(cdist(points.mean(0, keepdims=True), points, "sqeuclidean").round(9).argmin())]
    nearest = np.full(len(points), np.inf)
    while len(order) < len(points):
        np.minimum(nearest, cdist(points[order[-1:]], points, "sqeuclidean")[0].round(9), out=nearest)
        nearest[order[-1]] = -np.inf
        order.append(int(nearest.argmax()))
    return [case for index in order for case in groups[problems[index]]]


def coordinates(problems: Sequence[Case]) -> list[list[float]]:
    """A point for each problem; equal problems share a point, and no two different ones do."""
    named = [dict(problem.axes) for problem in problems]
    axes = dict.fromkeys(name for axes in named for name in axes if name not in OPTIONS)
    columns = [_scaled([_size(axes[name]) if name in axes else None for axes in named]) for name in axes]
    for kind in ("op", "options", "dtype", "layout", "eps", "family"):
        values = [getattr(problem, kind) for problem in problems]
        # One column for each value, so that any two different values are 1 apart.
        columns += [[sqrt(0.5) * (value == marked) for value in values] for marked in dict.fromkeys(values)]
    return [list(point) for point in zip(*columns, strict=True)]


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
