"""Every kernel compiles for absent GPUs without spills, and moves as many bits at a time as the shape allows."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import triton
from every_kernel import KERNELS, WAITING, WITHOUT_BARRIER
from triton.backends.compiler import GPUTarget

from bench.audit.__main__ import main
from bench.audit.limits import LIMITS, resident_programs
from bench.audit.machine_code import gcn_widths, inspect, sass_widths
from bench.audit.records import Compiled
from bench.measure import environment

ROOT = Path(__file__).parents[3]
# Compiling takes long: on one device a call for every plan, and of the plain forms all extra shapes, which are the
# ragged and the widest ones; on the others a call for every kind of plan, or every kernel, and no fused forms. `python
# -m bench.audit` takes every shape of every model on every device.
COLLECT = """
import json, sys
from bench.audit.calls import Call, calls, one_of_each_kernel, one_of_each_kind, one_of_each_plan
from bench.audit.choices import audited
from bench.audit.records import collect
from bench.audit.targets import TARGETS
from bench.cases.models import FUSED
target = sys.argv[1]
chosen = list(calls(("batch_norm", "layer_norm", "rms_norm"), ("extra",))) if target == "sm_90" else []
others = calls([name for name in audited() if target == "sm_90" or name not in FUSED])
one_of_each = {"sm_90": one_of_each_plan, "sm_100": one_of_each_kind}.get(target, one_of_each_kernel)
chosen += one_of_each(others, TARGETS[target][1])
# Kernels of its own in plans that others have: a shape for each.
chosen += [Call("lp_norm", (32, 64, 56, 56), "bf16", "nchw", (), (("p", p),)) for p in ("1", "inf")]
for record in collect(target, dict.fromkeys(chosen)):
    print(json.dumps(record.as_dict()))
"""


def run(*command):
    environ = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environ, capture_output=True, text=True)


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_kernel_compiles_without_spills_and_moves_128_bits_at_a_time(target):
    done = run("-c", COLLECT, target)
    records = rows(done.stdout)
    assert records, done.stderr
    assert {launch["kernel"] for record in records for launch in record["launches"]} == KERNELS - (
        WAITING if target == "gfx942" else WITHOUT_BARRIER
    )
    assert {problem for record in records for problem in record["problems"]} == set()
    widest = max(record["shape"][1] for record in records if record["op"] == "layer_norm")
    assert widest >= 65536


def test_the_command_writes_records_and_a_page_that_opens_offline(tmp_path):
    arguments = ("--op", "rms,rms_add", "--arch", "sm_90,gfx942", "--preset", "qwen3-8b")
    done = run("-m", "bench.audit", *arguments, "--out", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    records = rows(done.stdout)
    assert (tmp_path / "records.jsonl").read_text() == done.stdout
    passes = [record for record in records if record["record"] == "pass"]
    assert {(p["target"], p["mode"], p["units"]) for p in passes if p["op"] == "rms_norm"} == {
        (target, mode, units) for target in ("sm_90", "gfx942") for mode, units in (("fwd", 2), ("bwd", 3))
    }
    pairs = [record for record in records if record["record"] == "pair"]
    assert {(p["target"], p["op"], p["mode"], p["plain"]) for p in pairs} == {
        (target, "rms_norm_add", mode, "rms_norm") for target in ("sm_90", "gfx942") for mode in ("fwd", "bwd")
    }
    assert all(p["fused_bytes"] < p["unfused_bytes"] for p in pairs)
    assert all(p["floor_bytes"] <= p["moved_bytes"] for p in passes)
    counts = [record for record in records if record["record"] == "count"]
    assert counts and all(count["declared"]["accesses"] == count["counted"]["accesses"] for count in counts)
    page = (tmp_path / "audit.html").read_text()
    assert "No kernel spills" in page and "4096x4096 bf16" in page and "rms_norm + add" in page
    described = json.loads((tmp_path / "environment.json").read_text())
    assert described["command"].startswith("python -m bench.audit --op rms_norm,rms_norm_add ")
    # Times are expected only where a device's constants are known, on the page as in the records.
    known = {record["target"] for record in records if record["record"] == "constants"}
    assert {record["target"] for record in passes if "expected" in record} == known
    assert ("expected us" in page) == ('id="constants"' in page) == bool(known)
    # Figures of hardware stand there only where hardware has counted.
    assert ("No hardware counters" in page) == all(record["record"] != "counters" for record in records)
    assert "http:" not in page and "https:" not in page and "src=" not in page and str(tmp_path) not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arch", "sm_12"), "--arch: 'sm_12' is not one of sm_80, sm_90, sm_100, gfx942"),
        (("--op", "grn"), "--op: 'grn' is not one of "),
        (("--op", "rms", "--preset", "resnet50"), "--preset: 'resnet50' is not one of "),
        (("--arch", ""), "--arch: '' has an empty value"),
    ],
)
def test_what_cannot_be_audited_is_named_in_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(environment, "interpreting", lambda: False)  # nothing is compiled that would mind
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"bench.audit: error: {message}") and said.err.count("\n") == 1


SOUND = Compiled(
    target="sm_90",
    number=0,
    kernel="k",
    launch="",
    num_warps=4,
    registers=64,
    spill=0,
    shared=0,
    loads={32: 1, 128: 4},
    stores={128: 4},
    resident=8,
    occupancy=0.5,
    wide=True,
    loads_activations=True,
    stores_activations=True,
)


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, []),
        ({"spill": 8}, ["spills"]),
        ({"loads": {64: 4}}, ["loads"]),
        ({"stores": {16: 4, 64: 1}}, ["stores"]),
        ({"loads": {16: 4}, "wide": False}, []),
        ({"stores": {32: 1}, "stores_activations": False}, []),
    ],
)
def test_spills_and_narrow_accesses_of_activations_are_problems(change, broken):
    assert list(replace(SOUND, **change).breaks) == broken


def test_widths_are_read_from_nvidias_assembly():
    code = """
        /*0100*/ LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0110*/ LDG.E.EF.LTC128B.64 R8, desc[UR4][R2.64] ;
        /*0120*/ LDG.E.U16 R9, desc[UR4][R2.64+0x80] ;
        /*0130*/ LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;
        /*0140*/ @P0 STG.E desc[UR4][R2.64], R4 ;
        /*0150*/ LDS.128 R4, [R2] ;
    """
    assert sass_widths(code) == ({16: 1, 64: 1, 128: 2}, {32: 1})


# Copies so many 32-bit values, as vectors.
PTX = """
.version 8.0
.target sm_{arch}
.address_size 64
.visible .entry copy(.param .u64 from, .param .u64 to) {{
    .reg .b64 %a, %b;
    .reg .b32 %r<5>;
    ld.param.u64 %a, [from];
    ld.param.u64 %b, [to];
    ld.global.{vector} {values}, [%a];
    st.global.{vector} [%b], {values};
    ret;
}}
"""


@pytest.mark.parametrize("arch", [80, 90])
def test_kernels_that_are_disassembled_together_keep_their_own_instructions(arch, tmp_path):
    def kernel(vector, values):
        source, cubin = tmp_path / "source", tmp_path / "cubin"
        source.write_text(PTX.format(arch=arch, vector=vector, values=values))
        ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
        subprocess.run([ptxas, f"-arch=sm_{arch}", source, "-o", cubin], check=True)
        return SimpleNamespace(
            asm={"cubin": cubin.read_bytes()}, metadata=SimpleNamespace(target=GPUTarget("cuda", arch, 32))
        )

    codes = inspect([kernel("v4.b32", "{%r1, %r2, %r3, %r4}"), kernel("b32", "%r1"), kernel("v2.b32", "{%r1, %r2}")])
    assert [(code.spill, code.loads, code.stores) for code in codes] == [
        (0, {bits: 1}, {bits: 1}) for bits in (128, 32, 64)
    ]
    assert inspect([]) == []


def test_widths_are_read_from_amds_assembly():
    code = """
        global_load_dwordx4 v[0:3], v[4:5], off
        buffer_load_ushort v1, v2, s[0:3], 0 offen
        global_store_short_d16_hi v[0:1], v2, off
        buffer_store_dwordx2 v[0:1], v2, s[0:3], 0 offen
        ds_read_b128 v[0:3], v4
    """
    assert gcn_widths(code) == ({16: 1, 128: 1}, {16: 1, 64: 1})


# By hand from the limits: 64 warps; 65536 / (128 threads * 128 registers); 33 registers are allocated as 40; 227 KB
# over 100 KB and its one reserved; 32 programs of one warp. On AMD 8 waves a SIMD; 4 * (512 / 128).
@pytest.mark.parametrize(
    ("target", "warps", "warp_size", "registers", "shared", "programs"),
    [
        ("sm_90", 4, 32, 32, 0, 16),
        ("sm_90", 4, 32, 128, 0, 4),
        ("sm_90", 8, 32, 33, 0, 6),
        ("sm_90", 4, 32, 32, 100 << 10, 2),
        ("sm_80", 4, 32, 32, 100 << 10, 1),
        ("sm_90", 1, 32, 16, 0, 32),
        ("gfx942", 4, 64, 64, 0, 8),
        ("gfx942", 4, 64, 128, 0, 4),
        ("gfx942", 4, 64, 32, 40 << 10, 1),
    ],
)
def test_residency_is_bounded_by_warps_registers_shared_memory_and_slots(
    target, warps, warp_size, registers, shared, programs
):
    assert resident_programs(LIMITS[target], warps, warp_size, registers, shared) == programs
