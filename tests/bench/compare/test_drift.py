"""Drift and scatter between two runs are found in changes that are written by hand."""

import pytest

from bench.compare import drift
from bench.results.intervals import Change

NAMES = ("normlib", "torch", "cudnn")


def changes(moves, error=0.001):
    """A cell a case and provider; `moves` has a case's logarithm of B over A, by provider."""
    return {
        (f"case {i}", name): Change(one, error, 100.0) for i, case in enumerate(moves) for name, one in case.items()
    }


def test_the_drift_of_a_cell_is_what_the_others_of_its_case_did_and_never_its_own():
    swaying = [0.03 * (-1) ** i for i in range(9)]
    cells = changes([{"normlib": move + (0.2 if i == 5 else 0.0), "torch": move} for i, move in enumerate(swaying)])
    found = dict(zip(cells, drift._drifts(cells, drift.between(cells)), strict=True))
    # The median of the cases is +0.03, so that case 5 has fallen by 0.06 for all, and risen by 0.2 for one.
    assert found["case 5", "normlib"].estimate == pytest.approx(0.03 - 0.06, abs=0.006)
    assert found["case 4", "normlib"].estimate == pytest.approx(0.03, abs=0.006)
    # Both the change as measured and what is left of it without the drift are possible.
    low, high = drift.intervals(cells, drift.between(cells), 1)["case 5", "normlib"]
    assert low < 0.17 and high > 0.2


def test_what_neither_samples_nor_drift_explain_is_scatter_and_widens_every_interval():
    places = [-3, -1, 2, -2, 3, 1] * 8
    cells = changes([{name: 0.01 * places[i + 2 * k] for k, name in enumerate(NAMES)} for i in range(40)])
    found = drift.between(cells)
    assert found.scatter == pytest.approx(0.02, rel=0.5)
    reach = {at: (high - low) / 2 for at, (low, high) in drift.intervals(cells, found, 1).items()}
    assert min(reach.values()) > 2 * found.scatter
    still = drift.between(changes([dict.fromkeys(NAMES, 0.0)] * 40))
    assert (still.scatter, still.shared) == (0.0, 0.0)
