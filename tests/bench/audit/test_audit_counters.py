"""Hardware counters: ncu's table is read, set beside the launches that were declared, and nothing is made up."""

import json

import pytest
import torch

from bench.audit import counters, groups, tables
from bench.audit.calls import Call
from bench.audit.counters import Counted, Unreadable
from normlib.kernels.plan import Device

H200 = Device(132, l2=50 << 20, cooperative=True)
CALL = Call("rms_norm", (4096, 4096), "bf16", "rows")
UNIT = 4096 * 4096 * 2
# The layout of `ncu --csv --print-units base`; the figures are made up. No ncu has run for this test.
HEAD = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size",'
    '"Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"\n'
)


def line(number, kernel, metric, value, unit="byte"):
    launch = f'"{number}","77","python3","host","{kernel}","1","7","(128, 1, 1)","(132, 1, 1)","0","9.0"'
    return f'{launch},"Command line profiler metrics","{metric}","{unit}","{value}"\n'


def table(*launches):
    lines = [
        line(i, kernel, metric, f"{value:,}")
        for i, (kernel, *values) in enumerate(launches)
        for metric, value in zip((counters.READ, counters.WRITTEN), values, strict=True)
    ]
    return (
        '==PROF== Connected to process 77\nthe program\'s own\n==PROF== Profiling "x" - 0: 0%\n' + HEAD + "".join(lines)
    )


LAUNCHES = (
    ("_row_norm_forward_kernel", UNIT, UNIT - 1000),
    ("_row_norm_backward_kernel", 2 * UNIT, UNIT),
    ("_sum_partials_kernel", 4096, 0),
)


def records(*launches, expected=()):
    return list(counters.records([CALL], counters.parse(table(*launches)), H200, "a GPU", expected))


def test_a_table_is_read_behind_what_ncu_and_the_program_say():
    text = table(*LAUNCHES) + "==PROF== Disconnected from process 77\n"
    assert counters.parse(text) == [Counted(*launch) for launch in LAUNCHES]


def test_what_was_counted_stands_beside_what_is_expected():
    row = {"op": "rms_norm", "mode": "fwd", "dtype": "bf16", "layout": "rows", "options": (), "shape": [4096, 4096]}
    forward, backward = records(*LAUNCHES, expected=[{"record": "pass", **row, "device_units": 2.0}])
    assert (forward["mode"], forward["plan"], forward["expected_units"]) == ("fwd", "rows in registers", 2.0)
    assert (backward["mode"], backward["expected_units"]) == ("bwd", None)
    shown, below = tables.counters(json.loads(json.dumps([forward, backward])))
    assert {key: shown.cells[key] for key in ("GPU", "behind a cache", "read", "written", "moved")} == {
        "GPU": "a GPU",
        "behind a cache": "2.00",
        "read": "1.00",
        "written": "1.00",
        "moved": "2.00",
    }
    assert below.cells["moved"] == "3.00"


@pytest.mark.parametrize(
    ("launches", "said"),
    [
        (LAUNCHES[:2], "other launches"),
        ((LAUNCHES[1], LAUNCHES[0], LAUNCHES[2]), "other launches"),
        ((*LAUNCHES, LAUNCHES[2]), "more launches"),
    ],
)
def test_other_launches_than_the_calls_make_are_no_measurement(launches, said):
    with pytest.raises(Unreadable, match=said):
        records(*launches)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("==PROF== No kernels were profiled.\n", "no table"),
        (HEAD + line(0, "k", counters.READ, "n/a"), "n/a"),
        (HEAD + line(0, "k", counters.READ, "7", "Mbyte"), "Mbyte"),
        (HEAD + line(0, "k", counters.READ, "7"), "left metrics out"),
        (HEAD + line(0, "k", "gpu__time_duration.sum", "7"), "left metrics out"),
    ],
)
def test_what_cannot_be_read_is_said_and_not_guessed(text, said):
    with pytest.raises(Unreadable, match=said):
        counters.parse(text)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what there is where there is no GPU")
def test_without_a_gpu_there_is_a_note_and_no_figure():
    (note,) = counters.collect([CALL], [])
    assert groups.notes([note]) == ["No hardware counters: there is no NVIDIA GPU here."]
    assert tables.counters([note]) == []


def test_without_ncu_there_is_a_note_and_no_figure(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("PATH", str(tmp_path))
    (note,) = counters.collect([CALL], [])
    assert "not installed" in note["text"]


def test_a_refusal_of_ncu_is_passed_on(monkeypatch, tmp_path):
    refusing = tmp_path / "ncu"
    refusing.write_text(
        "#!/bin/sh\necho '==PROF== Connected'\necho '==ERROR== ERR_NVGPUCTRPERM: no permission'\nexit 1\n"
    )
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(Unreadable, match=r"^ERR_NVGPUCTRPERM: no permission$"):
        counters._profiled([CALL])


@pytest.mark.gpu
def test_the_counters_of_a_gpu_are_read_where_ncu_is_there():
    found = list(counters.collect([CALL], []))
    if found[0]["record"] == "note":
        pytest.skip(found[0]["text"])
    assert [(row["mode"], len(row["launches"])) for row in found] == [("fwd", 1), ("bwd", 2)]
    assert tables._counted(found[0], "read_bytes") == pytest.approx(1, rel=0.1)
