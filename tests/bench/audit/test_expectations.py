"""No change makes a pass slower than the kept table expects; `make expectations` makes the table anew.

Run as a program it prints, or with --write keeps, what is expected of the table's passes. That takes a process in which
Triton does not interpret.
"""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import triton

from bench.audit import tables
from bench.audit.__main__ import main
from bench.audit.calls import Call
from bench.audit.speed import expectation, simulator
from bench.audit.speed.expectation import note
from bench.audit.speed.sass import Code, Instruction
from bench.audit.speed.simulator import compiler
from bench.page.formatting import DASH

KEPT = Path(__file__).with_name("expectations.csv")
COLUMNS = ("op", "shape", "dtype", "layout", "mode", "us", "copy", "bound")
MODES = ("fwd", "bwd")
SLOWER = 1.03
ROWS = (
    *((8192, 4096), (16384, 4096), (4096, 7168), (8192, 8192), (4096, 16384), (2048, 65536)),
    *((131072, 128), (8192, 768), (16, 4096)),
)
IMAGES = (
    *((32, 64, 112, 112), (32, 256, 56, 56), (32, 512, 28, 28), (32, 256, 14, 14), (32, 1024, 14, 14)),
    *((32, 512, 7, 7), (32, 2048, 7, 7), (256, 256, 14, 14)),
)
CALLS = [Call(op, shape, "bf16", "rows") for shape in ROWS for op in ("rms_norm", "layer_norm")]
CALLS += [Call("batch_norm", shape, "bf16", layout) for shape in IMAGES for layout in ("nchw", "nhwc")]
CALLS += [Call("batch_norm", (32, 512, 28, 28), "fp32", layout) for layout in ("nchw", "nhwc")]
# Every kernel in a few seconds.
QUICK = [
    *(Call("layer_norm", shape, "bf16", "rows") for shape in ((8192, 768), (16, 4096))),
    Call("rms_norm", (131072, 128), "bf16", "rows"),
    *(Call("batch_norm", (32, 256, 14, 14), "bf16", layout) for layout in ("nchw", "nhwc")),
    Call("batch_norm", (32, 512, 28, 28), "bf16", "nhwc"),
]


def name(row):
    return tuple(row[column] for column in COLUMNS[:5])


def expected(calls):
    """Returns the rows of these calls, as the kernels are now."""
    from bench.audit.records import collect

    for record in collect("sm_90", calls, simulate=MODES):
        if record.mode in MODES:
            found = record.simulated
            shape = "x".join(map(str, record.shape))
            values = (record.op, shape, record.dtype, record.layout, record.mode, found.us, found.copy, found.bound)
            yield dict(zip(COLUMNS, map(str, values), strict=True))


def written(rows, file):
    file.write(
        f"# Expected of an NVIDIA H200 by simulation of what Triton {triton.__version__} compiles; not measured.\n"
    )
    table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow(row)
        file.flush()


def read(lines):
    made_with, *rows = lines
    return made_with, {name(row): row for row in csv.DictReader(rows)}


def slower(kept, now):
    """Returns a sentence for each pass that is expected to take longer than it was kept."""
    return [
        f"{' '.join(key)}: expected {row['us']} us ({row['bound']}), kept {kept[key]['us']} us ({kept[key]['bound']})"
        for key, row in now.items()
        if float(row["us"]) > SLOWER * float(kept[key]["us"])
    ]


@pytest.mark.skipif(compiler() is None, reason="no C compiler to build the simulator")
def test_no_pass_is_expected_to_be_slower_than_it_was():
    made_with, kept = read(KEPT.read_text(encoding="utf-8").splitlines())
    if f"Triton {triton.__version__} " not in made_with:
        pytest.skip(f"another compiler makes other machine code: {made_with}")
    environ = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, __file__, "--quick"], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, now = read(done.stdout.splitlines())
    assert len(now) == 2 * len(QUICK)
    assert slower(kept, now) == []


def test_a_slower_pass_is_told_with_the_bound_that_moved():
    before = dict(zip(COLUMNS, ("rms_norm", "8x8", "bf16", "rows", "fwd", "100.0", "0.9", "DRAM"), strict=True))
    same, worse = {**before, "us": "102.9"}, {**before, "us": "103.1", "bound": "issue"}
    assert slower({name(before): before}, {name(same): same}) == []
    assert slower({name(before): before}, {name(worse): worse}) == [
        "rms_norm 8x8 bf16 rows fwd: expected 103.1 us (issue), kept 100.0 us (DRAM)"
    ]


def test_the_table_has_every_pass_and_no_other():
    _, kept = read(KEPT.read_text(encoding="utf-8").splitlines())
    calls = {(c.op, "x".join(map(str, c.shape)), c.dtype, c.layout, mode) for c in CALLS for mode in MODES}
    assert set(kept) == calls
    assert set(QUICK) <= set(CALLS)


def test_the_audit_says_that_it_is_expected_and_how_far_off_that_was(monkeypatch):
    assert re.search(r"not measured; of 18 passes .* off by -16% to \+4% forward, -64% to -32% backward", note())
    monkeypatch.setattr(expectation, "compiler", lambda: None)
    assert note() == "nothing is simulated: that takes a C compiler (cc or gcc)"


def test_a_target_that_is_not_simulated_is_refused(capsys):
    assert main(["--simulate", "--arch", "sm_80"]) == 2
    assert "bench.audit: error: --simulate: simulates sm_90 only; give --arch sm_90" in capsys.readouterr().err


def test_a_table_has_the_columns_where_something_was_simulated():
    rows = [{"simulated": {"copy": copy, "bound": bound}} for copy, bound in ((0.5, "launch"), (0.91, "DRAM"))]
    assert tables._simulated(rows, True) == {tables.SIMULATED: f"0.50{DASH}0.91", "bound": "launch, DRAM"}
    assert tables._simulated([{}], True) == {tables.SIMULATED: DASH, "bound": DASH}
    assert tables._simulated([{}], False) == {}


def test_code_is_executed_as_often_as_its_loops_run_and_around_calls():
    lines = [  # (label, instruction)
        ("", "MOV R1, 0x0"),
        (".L_x_0", "FADD R2, R2, R3"),
        ("", "@P0 BRA `(.L_x_0)"),
        ("", "@P1 BRA `(.L_x_1)"),
        ("", "CALL.REL.NOINC `(slow)"),
        (".L_x_1", "EXIT"),
        ("slow", "RET"),
    ]
    parts = [re.fullmatch(r"(?:@(\w+) )?(\S+) ?(.*)", text).groups(default="") for _, text in lines]
    target = lambda operands: m[1] if (m := re.search(r"`\((\S+)\)", operands)) else None
    code = Code(
        [Instruction(p or None, op, rest, 1, 7, 7, 0, target(rest)) for p, op, rest in parts],
        {label: at for at, (label, _) in enumerate(lines) if label},
    )
    assert code.loops == [(1, 2)]
    assert code.executed(lambda n: 3) == [0, *(1, 2) * 3, 3, 5]
    assert [i.op for i in code.function("slow").instructions] == ["RET"]


def test_what_is_masked_moves_nothing_and_loops_that_load_too_little_are_refused():
    machine = object.__new__(simulator.Machine)
    machine._name, machine._warps = "kernel", 2
    machine._code = Code([Instruction(None, "LDG", "", 1, 7, 7, 0, None, pointers={"x_ptr"})], {})
    ops = np.array([[0] * simulator._ACCESS + [simulator.DRAM_LOAD, 512, 0]] * 3, np.int32)  # 3 x 512 bytes a warp
    moves = lambda loads: SimpleNamespace(accesses={"x": SimpleNamespace(loads=loads, stores=0)})
    machine._leave_masked_out([([0, 0, 0], ops, 10)], moves(3 * 384 * 2 * 10))
    assert ops[:, simulator._SIZE].tolist() == [384] * 3
    with pytest.raises(RuntimeError, match=f"kernel: its loops load {3 * 384 * 20} bytes of {10**6}: see trips.py"):
        machine._leave_masked_out([([0, 0, 0], ops, 10)], moves(10**6))


if __name__ == "__main__":
    if "--write" in sys.argv:
        with KEPT.open("w", encoding="utf-8") as table:
            written(expected(CALLS), table)
    else:
        written(expected(QUICK if "--quick" in sys.argv else CALLS), sys.stdout)
