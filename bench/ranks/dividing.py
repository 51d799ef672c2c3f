"""Which rank measures which cases: about the same expected time each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from bench.cases.case import Case
from bench.measure.cost import expected_seconds

if TYPE_CHECKING:
    import torch


def deal(
    cases: Sequence[Case], providers: Collection[str], device: torch.device, ranks: int
) -> tuple[tuple[Case, ...], ...]:
    """Each rank's cases, in their order; the cases of one problem, which share inputs and truth, stay together.

    The longest problem that is left goes to the rank with the least to do: at most 4/3 of the best possible time
    (Graham, "Bounds on multiprocessing timing anomalies", 1969). Ties go by the order of cases, so that every rank
    finds the same.
    """
    problems: dict[Case, float] = {}
    for case in cases:
        problems[case.problem] = problems.get(case.problem, 0.0) + expected_seconds(case, providers, device)
    loads = [0.0] * ranks
    owner: dict[Case, int] = {}
    for problem, seconds in sorted(problems.items(), key=lambda item: -item[1]):
        owner[problem] = min(range(ranks), key=lambda rank: loads[rank])
        loads[owner[problem]] += seconds
    return tuple(tuple(case for case in cases if owner[case.problem] == rank) for rank in range(ranks))
