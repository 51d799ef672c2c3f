"""The model behind docs/scaling.md."""

from pathlib import Path

import pytest

from bench import scaling
from normlib.kernels.batch_norm import sync as kernels

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"


@pytest.mark.parametrize("table", [scaling.step_table, scaling.backward_table])
def test_the_page_has_the_models_tables(table):
    assert table() in PAGE.read_text(encoding="utf-8"), "paste what python -m bench.scaling prints"


def test_a_message_is_what_the_kernels_send():
    import torch

    x = torch.randn(2, 5, 3)
    message = kernels.moments(x)
    assert scaling.message_bytes(5)[0] == message.numel() * message.element_size()
    sums = kernels.sums(x, x, torch.zeros(2, 5), torch.ones(5))
    assert scaling.message_bytes(5)[1] == sums.numel() * sums.element_size()


def test_one_rank_sends_nothing_and_more_ranks_cost_more():
    assert scaling.communication(64, 1) == 0.0
    times = [scaling.communication(64, ranks) for ranks in scaling.RANKS]
    assert times == sorted(times) and len(set(times)) == len(times)


def test_more_devices_never_take_longer_nor_less_than_their_share():
    alone = scaling.sweep_seconds(1)
    times = [scaling.sweep_seconds(n) for n in (2, 8)]
    assert alone / 2 <= times[0] < alone and alone / 8 <= times[1] < times[0]
