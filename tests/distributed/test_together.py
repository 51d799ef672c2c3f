"""Cells that all ranks measure together: judged over the whole batch, with what they send."""

import socket
from dataclasses import replace

import pytest
import together_checks as checks
from report_runs import page

from bench import run
from bench.measure import environment
from bench.ranks import sync_batch_norm


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


TINY = ["--op", "sync_bn", "--batch", "2", "--channels", "3", "--spatial", "2x2", "--dtype", "fp32", "--layout", "nchw"]


@pytest.fixture
def one_rank(monkeypatch, tmp_path):
    """A run of a single rank, which meets itself; returns its folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in found.items():
        monkeypatch.setenv(name, str(value))
    return tmp_path / "run"


@pytest.mark.parametrize(("subject", "status"), [("normlib", 1), ("torch", 0)])
@pytest.mark.chance
def test_verdict_and_status_are_about_the_subject(subject, status, one_rank, monkeypatch):
    """PyTorch's layer needs a GPU; normlib's is made wrong here."""
    measured = sync_batch_norm.measure_cell

    def spoilt(case, layer, *rest):
        found = measured(case, layer, *rest)
        return replace(found, status="wrong", reason="y: by a test") if layer.name == "normlib" else found

    monkeypatch.setattr(sync_batch_norm, "measure_cell", spoilt)
    arguments = ["--providers", "torch,normlib", "--subject", subject, "--out", str(one_rank)]
    assert run.main([*TINY, *arguments]) == status
    assert environment.read(one_rank)["subject"] == subject
    assert f"Verdict on {subject}" in page(one_rank).section("verdict")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            ["--subject", "apex", "--providers", "torch,normlib"],
            "--subject: 'apex' is not among the providers of this run",
        ),
        (["--subject", "liger"], "--subject: 'liger' is not one of torch, normlib, apex"),
        (["--energy", "--mode", "fwd"], "--mode, --energy: not with --op sync_bn; allowed are --preset"),
        (["--hidden", "8"], "--hidden: not with --op sync_bn; allowed are --preset"),
    ],
)
def test_what_cannot_be_used_is_one_line(given, says, one_rank, capfd):
    assert run.main([*TINY, *given, "--out", str(one_rank)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"bench.run: error: {says}")


def test_without_ranks_there_is_one_line(monkeypatch, capfd):
    monkeypatch.delenv("RANK", raising=False)
    assert run.main(["--op", "sync_bn"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("bench.run: error: --op: sync_bn needs ranks: ") and "start it with torchrun" in line
