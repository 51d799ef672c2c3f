"""Cells that all ranks measure together: judged over the whole batch, with what they send."""

import pytest
import together_checks as checks

from bench import run


@pytest.mark.parametrize(("dtype", "layout"), [("fp32", "nchw"), ("bf16", "nhwc")])
@pytest.mark.chance
def test_a_cell_is_judged_over_the_whole_batch(pool, dtype, layout):
    first, second = pool.run(checks.measured, dtype, layout, processes=2)
    assert [r.errors for r in first] == [r.errors for r in second]
    found = {r.provider: r for r in first}
    ours = found["normlib"]
    assert (ours.status, ours.shape, ours.axes["ranks"]) == ("ok", [4, 5, 3, 3], 2)
    assert {e.tensor for e in ours.errors} == {"y", "dx", "dw", "db", "running_mean", "running_var"}
    assert ours.bytes_sent == 4 * (3 * 5 + 2) + 4 * 2 * 5  # one message each way, in float32
    assert ours.communication_us > 0 and 0 < ours.latency_us_min <= ours.latency_us
    assert ours.clock == "interpreter" and ours.speedup is None, "no claim of speed"
    assert {found[name].status for name in ("torch", "apex")} == {"unsupported"}


@pytest.mark.chance
def test_statistics_of_one_share_alone_are_found_wrong(pool):
    (record,), _ = pool.run(checks.measured, "fp32", "nchw", True, processes=2)
    assert record.status == "wrong" and record.bytes_sent == 0 and record.communication_us == 0.0


@pytest.mark.chance
def test_collectives_are_recorded_and_repeated(pool):
    assert pool.run(checks.repeated, processes=2) == [[12, 12, 12]] * 2


def test_without_ranks_there_is_one_line(monkeypatch, capfd):
    monkeypatch.delenv("RANK", raising=False)
    assert run.main(["--op", "sync_bn"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("bench.run: error: --op: sync_bn needs ranks: ") and "start it with torchrun" in line
