"""A pass has an expected time where a device's constants are known, by hand from a made-up file, and nowhere else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.audit import tables
from bench.audit.__main__ import main
from bench.audit.expected import DEVICES, Constants, ExpectedPassTime, constants_of, expected
from bench.audit.targets import TARGETS
from bench.cli import BadArgument
from bench.measure import environment
from bench.page.formatting import DASH
from normlib.kernels import plan

ROOT = Path(__file__).parents[3]
WITH = {"measured": "2001-02-03T04:05:06+00:00", "torch": "2.13", "triton": "3.7"}
MADE_UP = {
    "copy": {"gbps": {"16777216": 500.0, "2147483648": 2000.0, "33554432": 1000.0}, "with": WITH},
    "launch": {"stream_us": 2.5, "graph_us": 1.0, "host_us": 9.0, "with": WITH},
    "barrier": {"us": 1.5, "programs": 132, "with": WITH},
}
WITHOUT_BARRIER = {figure: MADE_UP[figure] for figure in ("copy", "launch")}


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """Writes the file of a device, beside which plans and the audit look for it."""
    monkeypatch.setattr(plan, "__file__", str(tmp_path / "plan.py"))
    (tmp_path / "tuned").mkdir()

    def write(name, **parts):
        plan.tuning_file(name).write_text(json.dumps({"device_name": name, **parts}))

    return write


def test_every_target_has_devices():
    assert DEVICES.keys() == TARGETS.keys()


def test_without_a_file_no_device_has_constants(tuned):
    assert [constants_of(target) for target in TARGETS] == [None] * len(TARGETS)


def test_constants_are_those_of_the_first_device_of_the_target_that_has_some(tuned):
    tuned("NVIDIA H100 80GB HBM3", constants=MADE_UP)
    tuned("NVIDIA H1000", constants=MADE_UP)
    assert constants_of("sm_90") == Constants(
        "sm_90", "NVIDIA H100 80GB HBM3", 2000.0, 2.5, 1.5, dict.fromkeys(MADE_UP, WITH)
    )
    tuned("NVIDIA H200", values={"row_forward 64 2": {"threads": 64}})  # tuned, and its constants are not known
    assert constants_of("sm_90").device == "NVIDIA H100 80GB HBM3"
    tuned("NVIDIA H200", constants=WITHOUT_BARRIER)
    assert constants_of("sm_90") == Constants(
        "sm_90", "NVIDIA H200", 2000.0, 2.5, None, dict.fromkeys(WITHOUT_BARRIER, WITH)
    )
    tuned("NVIDIA H200", constants={"barrier": MADE_UP["barrier"]})
    assert constants_of("sm_90").device == "NVIDIA H100 80GB HBM3"
    assert constants_of("sm_80") is None


@pytest.mark.parametrize(
    "broken",
    [{"copy": {"gbps": {}}, "launch": {}}, {"copy": [], "launch": []}, {"copy": {"gbps": {"x": 1}}, "launch": 1}],
)
def test_a_broken_file_is_named_in_one_line(broken, tuned, monkeypatch, capsys):
    tuned("NVIDIA H200", constants=broken)
    with pytest.raises(BadArgument):
        constants_of("sm_90")
    monkeypatch.setattr(environment, "interpreting", lambda: False)  # nothing is compiled that would mind
    assert main(["--op", "rms", "--arch", "sm_90"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("bench.audit: error: kernels/tuned/nvidia-h200.json: is not a device's file: ")


def test_what_is_expected_is_bytes_and_launches_and_waits():
    constants = Constants("sm_90", "a GPU", 2000.0, 2.5, 1.5, {})
    # 64 MB at 2 TB/s are 32 us.
    assert expected(constants, 64e6, 2, 3) == ExpectedPassTime("a GPU", 32 + 5 + 4.5, 32.0, 5.0, 4.5)
    unknown = Constants("sm_90", "a GPU", 2000.0, 2.5, None, {})
    assert expected(unknown, 64e6, 2, 3) is None
    assert expected(unknown, 64e6, 2, 0) == ExpectedPassTime("a GPU", 37.0, 32.0, 5.0, 0.0)


# What the command makes of the calls of a preset, less the counts of the interpreter.
AUDIT = """
import json, sys
from normlib.kernels import plan
plan.__file__ = sys.argv[1]
from bench.audit import __main__ as audit
audit._counting = audit.contextmanager(lambda ops: iter([lambda: []]))
sys.exit(audit.main(sys.argv[2:]))
"""


def test_the_command_tells_what_is_expected_on_the_device_that_has_constants(tuned, tmp_path):
    tuned("NVIDIA H200", constants=MADE_UP)
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    arguments = ("--op", "rms", "--arch", "sm_90,gfx942", "--preset", "qwen3-8b", "--out", str(tmp_path))
    command = [sys.executable, "-c", AUDIT, plan.__file__, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "expected us" in done.stdout and "constants that expected times are made of" in done.stdout
    records = list(map(json.loads, (tmp_path / "records.jsonl").read_text().splitlines()))
    passes = [record for record in records if record["record"] == "pass"]
    assert {(record["target"], "expected" in record) for record in passes} == {("sm_90", True), ("gfx942", False)}
    assert [record["device"] for record in records if record["record"] == "constants"] == ["NVIDIA H200"]
    for record in (record for record in passes if record["target"] == "sm_90"):
        # Every activation is moved once, so that all that the launches move reaches device memory.
        assert record["device_units"] == record["units"] == {"fwd": 2, "bwd": 3}[record["mode"]]
        memory_us = record["moved_bytes"] / 2000 / 1e3
        launches_us = 2.5 * len(record["launches"])
        assert record["expected"] == {
            "device": "NVIDIA H200",
            "us": pytest.approx(memory_us + launches_us, abs=2e-3),
            "memory_us": pytest.approx(memory_us, abs=1e-3),
            "launches_us": launches_us,
            "barriers_us": 0,
        }
    page = (tmp_path / "audit.html").read_text()
    assert "expected us" in page and 'id="constants"' in page and "times are expected, and none is measured" in page
    assert "copy 2001-02-03 with torch 2.13 and triton 3.7" in page and "NVIDIA H200" in page
    assert f"{passes[0]['expected']['us']:.2f}" in page


def line(**more):
    row = {"record": "pass", "op": "rms_norm", "mode": "fwd", "plan": "rows", "shape": (8, 8), "dtype": "fp32"}
    moved = {"layout": "rows", "units": 2, "device_units": 2, "partial_units": 0, "moved_bytes": 8, "floor_bytes": 8}
    return {**row, **moved, "target": "sm_90", "launches": [], "faults": [], "choices": {}, "problems": []} | more


def test_a_table_has_a_column_of_expected_times_where_one_of_its_passes_has_one():
    one, other = line(expected={"us": 3.25}), line(target="sm_80")
    for table in (tables.plans, tables.calls):
        assert [found.cells["expected us"] for found in table([one, other])] == ["3.25", DASH]
        assert "expected us" not in table([other])[0].cells
    assert tables.plans([one, line(expected={"us": 5.0})])[0].cells["expected us"] == f"3.25{DASH}5.00"
