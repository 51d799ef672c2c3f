"""Every kernel goes through Triton's own CUDA driver and launcher, as far as the call that would start it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from every_kernel import KERNELS, WITHOUT_BARRIER
from triton.backends import nvidia

HERE = Path(__file__).parent
INCLUDE = Path(nvidia.__file__).parent / "include"
WARP = 32

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has a driver of its own"),
    pytest.mark.skipif(
        shutil.which("gcc") is None, reason="gcc, with which Triton builds its driver, is not installed"
    ),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(launches as declared, launches as the driver got them) of calls that have every kernel."""
    folder = tmp_path_factory.mktemp("driver")
    library, log = folder / "libcuda.so.1", folder / "log"
    build = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", f"-I{INCLUDE}", HERE / "absent_cuda.c"]
    subprocess.run([*build, "-o", library], check=True)
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {
        "PYTHONPATH": str(HERE.parents[1]),
        "LD_LIBRARY_PATH": str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
        "ABSENT_CUDA_LOG": str(log),
    }
    done = subprocess.run([sys.executable, HERE / "cuda_launches.py"], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], [
        line.split() for line in log.read_text().splitlines()
    ]


def test_every_kernel_reaches_the_driver(made):
    _, launched = made
    assert {name for name, *_ in launched} == KERNELS - WITHOUT_BARRIER


def test_the_driver_gets_the_grids_that_plans_declare(made):
    declared, launched = made
    assert [[name, *map(int, grid)] for name, *grid, _, _, _ in launched] == [
        [moved["kernel"], *moved["grid"]] for moved in declared
    ]
    assert all(int(threads) % WARP == 0 and WARP <= int(threads) <= 1024 for *_, threads, _, _ in launched)


def test_programs_that_wait_for_each_other_are_launched_together_and_no_others(made):
    declared, launched = made
    assert [cooperative == "1" for *_, cooperative in launched] == [moved["waits"] for moved in declared]
    assert {moved["waits"] for moved in declared} == {True, False}
