"""The kernels by which a device is measured do what is timed: they read and copy all of it, and wait for each other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interleaving import interleaved

from bench.device_constants.figures import MANY, Unmeasured, check_barriers, copying, launching, reading, waiting
from normlib.kernels.numerics import INTERPRETED
from normlib.kernels.plan import Device

ROOT = Path(__file__).parents[2]
ONE = Device(multiprocessors=1)
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# Of every kernel as it is launched on an H200: what each target's compiler makes of it, one JSON object a kernel.
COMPILED = """
import json, sys, torch
from triton.runtime.jit import JITFunction
from bench.audit.machine_code import inspect
from bench.audit.targets import TARGETS
from bench.device_constants.figures import copying, launching, reading, waiting
from bench.fake_gpu import COMPILED, Driver, H200 as device, State, driven_by
x, counters = torch.empty(1 << 22, device="meta"), torch.empty(2, dtype=torch.int32, device="meta")
found, run = [], JITFunction.run

def compile_only(kernel, *arguments, warmup, **options):
    found.append((kernel.__name__, run(kernel, *arguments, warmup=True, **options)))

JITFunction.run = compile_only
for number, target in enumerate(sys.argv[1:]):
    found.clear()
    with driven_by(Driver(State(), TARGETS[target][0], COMPILED - 1 - number)):
        for count in (1, 33):
            reading(x, count, device)()
            copying(x, x, count, device)()
            launching(1)()
            if target != "gfx942":
                waiting(counters, counters, count, launch_cooperative_grid=True)()
    kernels = {id(kernel): (name, kernel) for name, kernel in found}
    codes = inspect([kernel for _, kernel in kernels.values()])
    for (name, _), code in zip(kernels.values(), codes, strict=True):
        loads, stores = max(code.loads, default=0), max(code.stores, default=0)
        print(json.dumps([target, name, {"spill": code.spill, "loads": loads, "stores": stores}]))
"""


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("n", [16, 100, 1000])
def test_every_element_is_read_once_a_round(n, rounds, device, monkeypatch):
    made = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: made.append(empty(*a, **k)) or made[-1])
    x = torch.arange(n, dtype=torch.float32, device=device)
    reading(x, rounds, ONE, block=16)()
    (sums,) = made
    assert sums.sum().item() == rounds * n * (n - 1) / 2
    assert sums.numel() == min(8, -(-n // 16))


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("n", [16, 100, 1000])
def test_every_element_is_copied(n, rounds, device):
    x, y = torch.randn(n, device=device), torch.full((n,), torch.nan, device=device)
    copying(y, x, rounds, ONE, block=16)()
    assert torch.equal(x, y)


def test_an_empty_kernel_is_launched_as_often_as_is_asked_for(monkeypatch):
    launched = []
    kernel = SimpleKernel(launched)
    monkeypatch.setattr("bench.device_constants.figures.empty_kernel", kernel)
    launching(MANY)()
    assert launched == [(1,)] * MANY


class SimpleKernel:
    """Takes the place of a kernel, and notes the grids that it is launched with."""

    def __init__(self, launched):
        self.launched = launched

    def __getitem__(self, grid):
        return lambda **options: self.launched.append(grid)


@pytest.mark.skipif(not INTERPRETED.value, reason="orders the programs of Triton's interpreter")
@pytest.mark.parametrize(("programs", "waits"), [(1, 1), (1, MANY), (5, 1), (5, 4)])
def test_every_program_waits_for_all_others_at_every_barrier_and_the_counters_are_zeros_again(programs, waits):
    counters, seen = torch.zeros(2, dtype=torch.int32), torch.zeros(programs, dtype=torch.int32)
    for seed in range(4):
        seen.zero_()
        with interleaved(seed) as turns:
            waiting(seen, counters, waits)()
        assert turns[0] > 0
        check_barriers(seen, counters, waits)


@pytest.mark.parametrize(
    ("seen", "counters", "said"),
    [
        ([6, 6, 6], [0, 1], r"left its counters at \[0, 1\]"),
        ([6, 5, 6], [0, 0], "1 of 3 programs did not wait for all others at 2 barriers"),
    ],
)
def test_a_barrier_that_does_not_hold_is_not_measured(seen, counters, said):
    with pytest.raises(Unmeasured, match=said):
        check_barriers(torch.tensor(seen), torch.tensor(counters), 2)


@pytest.fixture(scope="module")
def compiled():
    """[target, kernel, figures] of each kernel that was compiled, by one process."""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILED, *TARGETS]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("target", TARGETS)
def test_each_kernel_is_compiled_once_without_spills_and_sweeps_128_bits_at_a_time(target, compiled):
    found = [(name, figures) for made_for, name, figures in compiled if made_for == target]
    kernels = dict(found)
    assert len(kernels) == len(found)
    assert kernels["read_kernel"] == {"spill": 0, "loads": 128, "stores": 32}
    assert kernels["copy_kernel"] == {"spill": 0, "loads": 128, "stores": 128}
    assert kernels["empty_kernel"] == {"spill": 0, "loads": 0, "stores": 0}
    if target != "gfx942":
        assert kernels["barriers_kernel"]["spill"] == 0
