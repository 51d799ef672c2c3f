"""The most telling cells first: any prefix is a coarse grid of the whole."""

import time
from itertools import groupby, pairwise, product

import numpy as np
import pytest

from bench.cases.case import Case
from bench.cases.order import coarse_first, coordinates

MODES = ("fwd", "bwd")


def case(tokens, hidden, dtype="fp32", op="layer_norm", mode=""):
    axes = (("tokens", tokens), ("hidden", hidden))
    return Case(op, (tokens, hidden), axes, dtype, "rows", mode)


def image(spatial, dtype="fp16"):
    axes = (("batch", 2), ("channels", 8), ("spatial", spatial))
    return Case("batch_norm", (2, 8, *map(int, spatial.split("x"))), axes, dtype, "nchw", "fwd")


GRID = [case(2**t, 2**h, dtype) for t, h, dtype in product(range(9), range(9), ("fp32", "fp16", "bf16"))]


def test_nothing_is_lost_and_nothing_is_new():
    assert sorted(coarse_first(GRID), key=str) == sorted(GRID, key=str)
    assert coarse_first([]) == []
    assert coarse_first(GRID[:1]) == GRID[:1]


def test_the_cases_of_a_problem_stay_next_to_each_other_in_their_order():
    cases = [case(p.shape[0], p.shape[1], p.dtype, mode=mode) for p in GRID for mode in MODES]
    ordered = coarse_first(cases)
    problems = [problem for problem, _ in groupby(ordered, key=lambda c: c.problem)]
    assert len(problems) == len(set(problems)) == len(GRID)
    assert [c.mode for c in ordered] == list(MODES) * len(GRID)


def test_the_order_is_the_same_every_time_and_for_equal_distances_that_of_the_cases():
    assert coarse_first(GRID) == coarse_first(list(GRID))


def test_every_prefix_covers_the_whole_within_twice_the_least_possible():
    # Gonzalez's bound, told without the optimum: no point is farther from the prefix than those in it from each other.
    points = dict(zip(GRID, coordinates(GRID), strict=True))
    ordered = np.array([points[c] for c in coarse_first(GRID)])
    apart = np.linalg.norm(ordered[:, None] - ordered[None], axis=-1)
    for many in (2, 5, 20, 100):
        radius = apart[:many, many:].min(0).max()
        within = apart[:many, :many][~np.eye(many, dtype=bool)].min()
        assert radius <= within + 1e-6


def test_the_first_cells_of_a_fine_grid_are_a_coarse_grid_in_every_dtype():
    first = coarse_first(GRID)[:27]
    assert {(c.shape, c.dtype) for c in first} == set(
        product(product((1, 16, 256), repeat=2), ("fp32", "fp16", "bf16"))
    )


@pytest.mark.parametrize("differs", ["dtype", "op"])
def test_a_category_is_as_far_away_as_the_other_end_of_an_axis(differs):
    other = {"dtype": "bf16", "op": "rms_norm"}[differs]
    few = [case(2**t, 64, **{differs: kind}) for kind in (case(1, 1).__dict__[differs], other) for t in range(8)]
    first_four = coarse_first(few)[:4]
    assert len({getattr(c, differs) for c in first_four}) == 2
    assert {c.shape[0] for c in first_four} > {1, 128}


def test_operators_of_other_axes_have_their_place_in_one_order():
    both = [*GRID[:20], *(image(spatial) for spatial in ("7", "7x7", "8x2", "4x4", "2x8", "2x2x4", "56x56"))]
    ordered = coarse_first(both)
    assert sorted(ordered, key=str) == sorted(both, key=str)
    assert {c.op for c in ordered[:3]} == {"layer_norm", "batch_norm"}


def test_no_two_problems_share_a_point():
    images = [image(s, d) for s in ("16", "4x4", "2x8", "8x2", "2x2x4") for d in ("fp16", "bf16")]
    points = np.array(coordinates(images))
    assert len(np.unique(points.round(9), axis=0)) == len(images)


def test_five_thousand_problems_take_no_time_that_counts():
    many = [case(t, h, dtype) for t, h, dtype in product(range(1, 42), range(1, 42), ("fp32", "fp16", "bf16"))]
    assert len(many) > 5000
    began = time.process_time()
    ordered = coarse_first(many)
    # A second here, with room for a machine that others use as well; a distance matrix in Python would take minutes.
    assert time.process_time() - began < 10
    assert all(before != after for before, after in pairwise(ordered))
