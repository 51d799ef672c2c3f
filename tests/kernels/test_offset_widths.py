"""Offsets are computed in 64 bits, in the compiler's own words; what is read and written then: test_addressing.py."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from every_kernel import KERNELS
from ttir import Program

ROOT = Path(__file__).parents[2]

# Rows of lengths that no tile has, in registers and in a loop; batch norm in both layouts.
CALLS = [
    ("batch_norm", (4, 65, 7, 7), "nchw"),
    ("batch_norm", (4, 65, 7, 7), "nhwc"),
    ("batch_norm", (32, 512, 7, 7), "nchw"),
    ("batch_norm", (32, 128, 28, 28), "nchw"),
    ("batch_norm", (32, 128, 28, 28), "nhwc"),
    ("lp_norm", (4, 65, 7, 7), "nchw", ("p", "1")),
    ("lp_norm", (4, 65, 7, 7), "nhwc", ("p", "inf")),
    *((op, (4, 65, 7, 7), "nchw") for op in ("batch_renorm", "noisy_batch_norm")),
    *(("group_norm", (4, 65, 7, 7), layout, ("groups", 5)) for layout in ("nchw", "nhwc")),
    *(("group_norm", (1, 64, 112, 112), layout, ("groups", 4)) for layout in ("nchw", "nhwc")),
    *(("instance_norm", (4, 65, 7, 7), layout) for layout in ("nchw", "nhwc")),
    *(("sync_batch_norm", (4, 65, 7, 7), layout, ("ranks", 3)) for layout in ("nchw", "nhwc")),
    *((op, (4096, n), "rows") for op in ("layer_norm", "rms_norm", "weight_norm") for n in (1000, 100000)),
]


@triton.jit
def _stride_kernel(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + row, tl.load(x_ptr + row * stride))


@triton.jit
def _late_kernel(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + row, tl.load(x_ptr + (row * stride).to(tl.int64)))


@triton.jit
def _constant_stride_kernel(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    n = tl.arange(0, BLOCK)
    tl.store(y_ptr + row * N + n, tl.load(x_ptr + row.to(tl.int64) * N + n))


@triton.jit
def _plane_kernel(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    tl.store(y_ptr + n, tl.load(x_ptr + stride * tl.num_programs(0) + n))


@triton.jit
def _carried_kernel(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    offset = 0
    for _ in range(tl.program_id(0)):
        tl.store(y_ptr + n, tl.load(x_ptr + offset + n))
        offset += stride


@triton.jit
def _right_kernel(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, BLOCK)
    tl.store(y_ptr + row.to(tl.int64) * N + n, tl.load(x_ptr + row.to(tl.int64) * stride + n * stride))


PLANTED = {
    "_stride_kernel": "a row's number times the stride",
    "_late_kernel": "the same, made 64-bit when it is too late",
    "_constant_stride_kernel": "a row's number times a constant that is no tile's length",
    "_plane_kernel": "a size times a number of programs",
    "_carried_kernel": "a stride added up in a loop",
}


def many_rows(device):
    """Launches over more rows than 2^31 - 1, for which Triton makes the argument M 64-bit; on no memory at all."""
    from normlib.kernels.row_norm import launch as row_norm

    rows, n = 2**31 + 4096, 1000
    x = torch.empty(rows, n, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(n, dtype=x.dtype, device="meta")
    for centred in (True, False):
        _, mean, rstd = row_norm.forward(x, weight, weight, 1e-5, centred, n, device)
        row_norm.backward(x, x, mean, rstd, weight, centred, n, x.dtype, x.dtype, True, device)


def print_compiled():
    """[launch, kernel, its TTIR] of every kernel, one JSON list; run in a process that does not interpret."""
    from triton.compiler import ASTSource

    from bench.audit.calls import Call
    from bench.fake_gpu import H200, H200_TARGET, compiling_for

    def usual(device):
        for op, shape, layout, *options in CALLS:
            for _, run in Call(op, shape, "bf16", layout, (), tuple(options)).passes():
                run()

    texts = set()
    # With the plans of a device that has barriers and a cache to count on, and of one that has not.
    for device in (H200, replace(H200, l2=0, cooperative=False)):
        for name, launches in {"as usual": usual, "2^31 rows": many_rows}.items():
            with compiling_for(H200_TARGET, device) as found:
                launches(device)
            texts |= {(name, launch.kernel.__name__, compiled.asm["ttir"]) for launch, compiled in found}
    signature = {"y_ptr": "*bf16", "x_ptr": "*bf16", "stride": "i32", "N": "constexpr", "BLOCK": "constexpr"}
    for name in (*PLANTED, "_right_kernel"):
        source = ASTSource(globals()[name], signature, {"N": 1000, "BLOCK": 64})
        texts.add(("planted", name, triton.compile(source, target=H200_TARGET).asm["ttir"]))
    print(json.dumps(sorted(texts)))


@pytest.fixture(scope="module")
def compiled():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    command = [sys.executable, __file__]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = defaultdict(list)
    for call, name, text in json.loads(done.stdout):
        found[call].append((name, Program(text)))
    return found


def test_every_kernel_computes_its_offsets_in_64_bits(compiled):
    programs = compiled["as usual"]
    assert {name for name, _ in programs} == KERNELS
    assert {name: program.narrow() for name, program in programs if program.narrow()} == {}
    # It looked at something: each has an offset that needs 64 bits, and has them; but for one that has channels alone.
    without = {name for name, program in programs if not program.wide_products()}
    assert without == {"_batch_renorm_weight_gradient_kernel"}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_32_bit_offset_is_found(name, compiled):
    assert len(dict(compiled["planted"])[name].narrow()) == 1, PLANTED[name]


def test_a_right_kernel_is_no_false_alarm(compiled):
    program = dict(compiled["planted"])["_right_kernel"]
    assert program.narrow() == set() and len(program.wide_products()) == 2


def test_no_length_is_rounded_up_beyond_32_bits(compiled):
    found = {name: program.rounded_up() for name, program in compiled["as usual"]}
    assert {name: values for name, values in found.items() if values} == {}


def test_a_row_has_a_64_bit_number_where_there_are_more_than_32_bits_count(compiled):
    found = {name: program.narrow_compared_with_wide() for name, program in compiled["2^31 rows"]}
    assert {name: values for name, values in found.items() if values} == {}


if __name__ == "__main__":
    print_compiled()
