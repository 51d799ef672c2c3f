"""The host work between a call and its launches is counted, and timed without a device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Results, saved statistics and partial sums; module and functional form alike.
ALLOCATED = {
    ("bn", "fwd"): 4,  # y, mean, rstd, partials
    ("bn", "bwd"): 4,  # dx, dw, db, partials
    ("bn", "eval"): 1,  # y
    ("ln", "fwd"): 3,  # y, mean, rstd
    ("ln", "bwd"): 4,  # dx, dw, db, partials
    ("ln", "eval"): 3,
    ("rms", "fwd"): 2,  # y, rstd
    ("rms", "bwd"): 3,  # dx, dw, partials
    ("rms", "eval"): 2,
}
KERNELS = {"bn": {"fwd": 3, "bwd": 3, "eval": 1}} | {op: {"fwd": 1, "bwd": 2, "eval": 1} for op in ("ln", "rms")}


def run(*command):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # which it must not heed
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def cells():
    done = run("-m", "bench.host_overhead", "--mode", "fwd,bwd,eval", "--repeat", "1", "--json")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.chance
def test_every_cell_has_both_libraries_and_its_figures(cells):
    found = [(c["op"], c["mode"], c["form"], c["library"]) for c in cells]
    assert len(set(found)) == len(found) == len(ALLOCATED) * 2 * 2
    for cell in cells:
        ours = cell["library"] == "normlib"
        assert cell["host_us"] > 0 and cell["host_iqr_us"] >= 0 and cell["operators"] > 0
        assert (cell["launch_us"] is not None) == (cell["kernels"] is not None) == ours


def test_a_call_launches_and_allocates_what_its_plan_needs_and_no_more(cells):
    for cell in (c for c in cells if c["library"] == "normlib"):
        op, mode = cell["op"], cell["mode"]
        assert 0 < cell["kernels"] <= KERNELS[op][mode], cell
        assert 0 < cell["allocations"] <= ALLOCATED[op, mode], cell


def test_a_bad_argument_is_named_in_one_line_and_a_good_one_gives_a_table():
    bad = {
        ("--op", "gn"): "--op: 'gn' is not one of bn, ln, rms",
        ("--mode", "train"): "--mode: 'train' is not one of fwd, bwd, fwd_bwd, eval",
        ("--repeat", "0"): "--repeat: '0' is not a whole number from 1 to 9999",
        ("--fast",): "unrecognized arguments: --fast",
    }
    calls = [*bad, ("--op", "rms", "--mode", "eval", "--repeat", "1")]
    done = run("-c", f"from bench.host_overhead import main; print([main(arguments) for arguments in {calls}])")
    assert done.stderr.splitlines() == [f"bench.host_overhead: error: {said}" for said in bad.values()]
    *table, statuses = done.stdout.splitlines()
    assert statuses == f"{[2] * len(bad) + [0]}"
    # What is compared is said first.
    assert "stand-in for the kernel" in table[0] or "asynchronously" in table[0]
    assert sum("rms" in line for line in table) == 2
