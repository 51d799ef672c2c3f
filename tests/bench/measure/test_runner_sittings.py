"""A sweep that is cut short keeps what was measured, and another sitting measures the rest."""

from types import SimpleNamespace

import pytest
from scripted import TORCH, Scripted, Silent, plan, raising, run

from bench.measure import cell, environment, runner
from bench.results import records as results


def interrupting(built, case, inputs):
    """Ctrl-C in the backward pass, the second case."""
    if case.mode == "bwd":
        raise KeyboardInterrupt
    return built


def test_an_interrupt_keeps_what_was_measured_and_a_second_sitting_measures_the_rest(tmp_path):
    outcome, described = run(tmp_path, plan(TORCH, Scripted(spoil=interrupting)))
    assert outcome.stopped_by == described["stopped_by"] == "interrupt"
    assert described["complete"] is False
    assert [(r.provider, r.mode) for r in results.read(tmp_path / "records.jsonl")] == [
        ("torch", "fwd"),
        ("scripted", "fwd"),
    ]

    counting = Scripted("torch"), Scripted()
    display = Silent()
    outcome, described = run(tmp_path, plan(*counting), display)
    assert display.told[0] == ("start", 6, 2)
    assert [len(provider.built) for provider in counting] == [2, 2]
    assert described["complete"] is True
    names = [record.cell for record in results.read(tmp_path / "records.jsonl")]
    assert len(names) == len(set(names)) == 6


def test_a_record_that_was_cut_in_writing_is_measured_again(tmp_path):
    run(tmp_path, plan(TORCH))
    path = tmp_path / "records.jsonl"
    path.write_text(path.read_text()[:-30])
    counting = Scripted("torch")
    run(tmp_path, plan(counting))
    assert len(counting.built) == 1
    assert len(list(results.read(path))) == 3


@pytest.fixture
def slow(monkeypatch):
    """Each cell takes ten seconds to build, by a clock that stands still otherwise."""
    clock = [0.0]
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def build(built, case, inputs):
        clock[0] += 10
        return built

    return build


def test_a_spent_budget_skips_the_rest_and_a_later_sitting_measures_it(tmp_path, slow):
    outcome, described = run(tmp_path, plan(Scripted(spoil=slow), deadline=15.0))
    assert [record.status for record in outcome.records] == ["ok", "ok", "skipped"]
    assert outcome.records[-1].reason == "the time budget was spent"
    assert outcome.stopped_by == described["stopped_by"] == "time budget"
    assert described["complete"] is False

    outcome, described = run(tmp_path, plan(Scripted(spoil=slow)))
    assert [record.status for record in outcome.records] == ["ok", "ok", "ok"]
    assert described["complete"] is True
    assert len(list(results.read(tmp_path / "records.jsonl"))) == 3


def test_a_budget_that_ends_with_the_last_cell_has_stopped_nothing(tmp_path, slow):
    outcome, _ = run(tmp_path, plan(Scripted(spoil=slow), deadline=25.0))
    assert outcome.complete


def test_a_mistake_in_the_instrument_is_raised_and_noted(tmp_path, monkeypatch):
    def full(path, record):
        raise OSError("No space left on device")

    monkeypatch.setattr(results, "append", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, plan(TORCH))
    described = environment.read(tmp_path)
    assert (described["complete"], described["stopped_by"]) == (False, "error")


def test_a_lost_device_stops_the_sweep_after_the_cell_that_lost_it(tmp_path, monkeypatch):
    def lost(device):
        raise cell.DeviceLost("an illegal memory access was encountered")

    monkeypatch.setattr(cell, "check_device_alive", lost)
    outcome, described = run(tmp_path, plan(Scripted(spoil=raising(RuntimeError("boom"))), TORCH))
    assert len(outcome.records) == 1
    assert described["stopped_by"] == "error"
