"""The progress display: a bar on a terminal, lines elsewhere, trouble at once."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from bench.cases.case import Case
from bench.measure import progress
from bench.measure.progress import BarDisplay, LineDisplay, display
from bench.results.records import Record

CASE = Case("layer_norm", (4, 8), (("tokens", 4), ("hidden", 8)), "fp32", "rows", "fwd")


def record(status="ok", reason=""):
    return Record(
        CASE.op, list(CASE.shape), dict(CASE.axes), CASE.dtype, CASE.layout, CASE.mode, CASE.eps,
        provider="torch", backend="torch", device="cpu", status=status, reason=reason,
    )  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100)


def lines(shown):
    return shown.file.getvalue().splitlines()


def test_a_terminal_gets_a_bar_and_everything_else_gets_lines():
    assert isinstance(display(console(terminal=True)), BarDisplay)
    assert isinstance(display(console()), LineDisplay)


def test_lines_come_at_the_beginning_every_few_seconds_and_at_the_end(clock):
    shown = console()
    told = LineDisplay(shown)
    told.start(cells=20, done=0)
    for _ in range(20):
        told.running(CASE, "torch")
        clock[0] += 1
        told.finished(record())
    told.stop()
    assert lines(shown) == [
        "  0% 0/20 cells: layer_norm 4x8 fp32 rows fwd torch",
        " 25% 5/20 cells, about 15 s left: layer_norm 4x8 fp32 rows fwd torch",
        " 50% 10/20 cells, about 10 s left: layer_norm 4x8 fp32 rows fwd torch",
        " 75% 15/20 cells, about 5 s left: layer_norm 4x8 fp32 rows fwd torch",
        "100% 20/20 cells: done",
    ]


def test_the_estimate_counts_only_what_this_sitting_measured(clock):
    shown = console()
    told = LineDisplay(shown)
    told.start(cells=100, done=90)
    told.running(CASE, "torch")
    clock[0] += 60
    told.finished(record())
    told.running(CASE, "torch")
    assert lines(shown)[-1] == " 91% 91/100 cells, about 9 min left: layer_norm 4x8 fp32 rows fwd torch"


@pytest.mark.parametrize("terminal", [False, True])
def test_trouble_is_told_at_once_with_its_reason(terminal):
    shown = console(terminal)
    told = display(shown)
    told.start(cells=9, done=0)
    told.finished(record("crash", "RuntimeError: [boom]"))
    told.finished(record("unsupported", "not here"))
    told.stop()
    told.stop()
    assert "crash: layer_norm 4x8 fp32 rows fwd torch: RuntimeError: [boom]" in shown.file.getvalue()
    assert "not here" not in shown.file.getvalue()
