"""No kernel touches what is not its own, and none leaves an element unwritten: three sanitizers, over ragged tails."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from every_kernel import KERNELS, WAITING
from launches import CALLS, RAGGED, SmallCall
from planting import OMISSIONS, drop_masks, omit, pass_along, write_one_place
from shadow_memory import CONTENDED, OUTSIDE, watching

from bench.audit.calls import Call
from normlib.kernels import plan
from normlib.kernels.numerics import INTERPRETED
from normlib.kernels.plan import Device
from normlib.kernels.reduction import sum_partials

HERE = Path(__file__).parent
# Of a program in this folder, which imports from the folder above and from the checkout.
IMPORTS = {"PYTHONPATH": os.pathsep.join(map(str, (*HERE.parents[:2], *filter(None, [os.environ.get("PYTHONPATH")]))))}
interpreted = pytest.mark.skipif(not INTERPRETED.value, reason="watches Triton's interpreter")


def unwritten(results: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, t in results.items() if t.isnan().any()]


@pytest.fixture
def poisoned() -> Iterator[None]:
    """torch.empty is full of NaN, which also shows where a kernel uses what nobody wrote."""
    settings = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = filled


# ----------------------------------------------------------------------------- poisoned memory, and a shadow of it


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_every_element_is_written_and_nothing_else_is_touched(call, device, poisoned, record_property):
    with watching() as watch:  # in the interpreter; a GPU's accesses are compute-sanitizer's, below
        results = call.run(device)
    assert not watch.findings, "\n".join(map(str, watch.findings))
    assert not unwritten(results)
    assert bool(watch.launches) == INTERPRETED.value
    record_property("shadow memory samples, kernel launches", len(watch.launches))


@pytest.mark.parametrize("chooser", OMISSIONS)
def test_an_element_that_is_not_written_shows(chooser, device, poisoned, monkeypatch):
    operator = "batch_norm" if chooser == "batch_norm" else "layer_norm"
    shape, layout = ((5, 3, 1603), "nchw") if operator == "batch_norm" else ((5, 1603), "rows")
    call = SmallCall(Call(operator, shape, "fp32", layout))
    assert not unwritten(call.run(device))
    omit(chooser, monkeypatch)
    assert ("bwd dx" if chooser == "row_backward" else "fwd y") in unwritten(call.run(device))


@interpreted
@pytest.mark.parametrize("access", ["load", "store"])
def test_shadow_memory_sees_every_kernel_that_forgets_its_masks(access, device, monkeypatch):
    drop_masks(access, monkeypatch)
    with watching() as watch:
        for call in RAGGED:
            call.run(device)
    assert watch.kernels(OUTSIDE, access) == KERNELS - WAITING


@interpreted
def test_shadow_memory_sees_one_element_too_many_in_a_larger_tensor(device):
    partials, out = torch.zeros(1, 3, 17, device=device), torch.zeros(17, device=device)
    with watching() as watch:
        sum_partials(partials, (out,), plan.merge(3, 17, Device(1)))
    assert not watch.findings
    with watching() as watch:
        sum_partials(partials, (out[:16],), plan.merge(3, 17, Device(1)))
    assert [(f.access, f.problem) for f in watch.findings] == [
        ("store", f"{OUTSIDE}: 1 lanes, the first 64 bytes from the start of first_ptr")
    ]


# A launch of three programs, and how the shadow tells it.
RACES = {
    "two write one element": (lambda out: write_one_place[(3,)](out), ("store", f"{CONTENDED} has written")),
    "one reads what another wrote": (lambda out: pass_along[(3,)](out, False), ("load", f"{CONTENDED} has written")),
    "one writes what another read": (lambda out: pass_along[(3,)](out, True), ("store", f"{CONTENDED} has read")),
}


@interpreted
@pytest.mark.parametrize("race", RACES)
def test_shadow_memory_sees_programs_whose_order_matters(race, device):
    launch, told = RACES[race]
    with watching() as watch:
        launch(torch.zeros(3, dtype=torch.int32, device=device))
    assert [(f.access, f.problem) for f in watch.findings] == [told] * 2


# ------------------------------------------------------------------------------------ triton-viz: any program and lane


def symbolic_bounds(*planted: str) -> dict:
    if find_spec("triton_viz") is None:
        pytest.skip("triton-viz is not installed")
    run = subprocess.run(
        [sys.executable, HERE / "symbolic_bounds.py", *planted],
        env={**os.environ, **IMPORTS, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_no_program_can_leave_its_arguments(record_property):
    seen = symbolic_bounds()
    assert seen["reports"] == []
    assert set(seen["launches"]) == KERNELS - WAITING
    record_property("sanitizer samples, kernel launches", len(seen["launches"]))


def test_triton_viz_sees_every_kernel_that_forgets_its_masks():
    seen = symbolic_bounds("load", "store")
    for access in ("load", "store"):
        assert {r["kernel"] for r in seen["reports"] if r["access"] == access} == KERNELS - WAITING


# ------------------------------------------------------------------------------------------- compute-sanitizer: a GPU


def compute_sanitizer(tool: str, *planted: str) -> subprocess.CompletedProcess[str]:
    """Without PyTorch's caching every tensor is an allocation of its own, whose ends the tool knows."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        pytest.skip("compute-sanitizer is not installed")
    # What a driver answers to PyTorch's questions is no fault of a kernel; a launch that fails raises.
    # PyTorch's own kernels exchange values within a warp, of which racecheck warns.
    ours = [word for kernel in sorted(KERNELS) for word in ("--kernel-regex", f"kns={kernel}")]
    kernels_only = {"memcheck": ["--report-api-errors", "no"], "racecheck": ours}[tool]
    options = ["--tool", tool, *kernels_only, "--error-exitcode", "1"]
    return subprocess.run(
        [program, *options, sys.executable, HERE / "every_launch.py", *planted],
        env={**os.environ, **IMPORTS, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.gpu
@pytest.mark.chance
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool, record_property):
    run = compute_sanitizer(tool)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert f"{len(CALLS)} calls" in run.stdout
    record_property(f"{tool} samples, calls", len(CALLS))


@pytest.mark.gpu
@pytest.mark.chance
@pytest.mark.parametrize(
    "access, complaint", [("load", "Invalid __global__ read"), ("store", "Invalid __global__ write")]
)
def test_memcheck_sees_kernels_that_forget_their_masks(access, complaint):
    run = compute_sanitizer("memcheck", access)
    assert run.returncode != 0
    assert complaint in run.stdout
