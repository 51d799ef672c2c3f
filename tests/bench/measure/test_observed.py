"""The log of one call, the guards around its memory, and the ghost that computes nothing."""

import pytest
import torch

from bench.measure.observed import GUARD_BYTES, between_guards, observing


def test_what_a_call_does_is_told_once_with_its_number():
    x = torch.ones(4)
    with observing() as (log, beyond):
        x.view(2, 2).exp().exp().neg()
    assert log.words == "aten.exp x2, aten.neg" and beyond() == []


@pytest.mark.parametrize("place", [-1, 4])
def test_what_is_written_before_or_behind_a_tensor_is_noticed(place):
    tensor, guarded = between_guards(torch.empty(4))
    tensor.fill_(1.0)
    assert guarded.intact
    guarded.memory.view(torch.float32)[GUARD_BYTES // 4 + place] = 0.0
    assert not guarded.intact


def test_a_ghost_has_no_results_and_gives_back_what_it_has_written_into():
    counter = torch.zeros(3)
    with observing(ghost=True):
        y = counter.add_(1).mul_(2).clone()
    assert y.isnan().all() and not counter.any()
