"""Compilations made ahead are the ones a measuring process looks for, and their processes leave nothing behind."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import precompile_steps
import pytest
import torch
from test_worker import Silent, plan
from triton.backends import nvidia

from bench.measure import environment, precompile, runner

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def step(name, **environ):
    """Returns what a step of precompile_steps.py prints, in a process in which Triton does not interpret."""
    environ = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT), **environ}
    done = subprocess.run(
        [sys.executable, HERE / "precompile_steps.py", name], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout or "null")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has a driver of its own")
@needs_compiler
def test_a_launch_finds_in_tritons_cache_what_was_compiled_ahead(tmp_path):
    library, cache = tmp_path / "libcuda.so.1", tmp_path / "cache"
    include, source = Path(nvidia.__file__).parent / "include", ROOT / "tests" / "kernels" / "absent_cuda.c"
    build = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", f"-I{include}", source, "-o", library]
    subprocess.run(build, check=True)
    log = tmp_path / "log"
    driver = {"LD_LIBRARY_PATH": str(tmp_path), "TRITON_LIBCUDA_PATH": str(tmp_path), "ABSENT_CUDA_LOG": str(log)}

    def compiled():
        return sorted(path.parent.name for path in cache.glob("*/*.cubin"))

    step("compile_kernels", TRITON_CACHE_DIR=str(cache))
    ahead = compiled()
    step("launch", TRITON_CACHE_DIR=str(cache), **driver)
    launched = log.read_text().splitlines()
    assert 4 <= len(ahead) <= len(launched)
    assert compiled() == ahead


@needs_compiler
def test_a_build_finds_in_inductors_cache_what_was_compiled_ahead_and_forward_and_backward_share_it(tmp_path):
    environ = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    step("compile_graph", **environ)
    assert step("run_graph", **environ) == {"hit": 2, "miss": 0, "graphs": 1}  # both directions of one graph


def test_kernels_are_told_apart_as_triton_does():
    counts = step("specializations")
    assert counts and {op: n for op, (n, _) in counts.items()} == {op: n for op, (_, n) in counts.items()}


def test_the_declared_calls_need_as_many_kernels_as_cells_do():
    differences = step("real_calls")
    # In evaluation a cell keeps no signs for a backward pass, and noise is drawn once a channel, not once a unit: the
    # same number of others.
    others = {"batch_norm_add_relu", "noisy_batch_norm"}
    assert {op for op, (missing, more) in differences.items() if missing or more} <= others
    assert all(missing == more for missing, more in differences.values())


# -------------------------------------------------------------------------------------------------------- processes


@pytest.mark.parametrize(
    ("device", "cores", "ranks", "expected"),
    [(CPU, 16, 1, (0, 0)), (GPU, 3, 1, (0, 0)), (GPU, 4, 1, (1, 1)), (GPU, 16, 1, (10, 4)), (GPU, 16, 8, (0, 0))],
)
def test_two_cores_are_left_to_the_measurement_and_none_are_taken_without_a_gpu(
    monkeypatch, device, cores, ranks, expected
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert precompile.processes(device) == expected


def raising():
    raise ValueError("no such kernel\nand more")


def sleeping(told):
    """Starts a process as a compiler would be, and tells both numbers."""
    child = subprocess.Popen(["sleep", "600"])
    told.write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it took longer than 30 s"
        time.sleep(0.02)


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def told(path):
    wait_for(lambda: path.exists() and len(path.read_text().split()) == 2)
    return [int(pid) for pid in path.read_text().split()]


class Given(precompile.Ahead):
    """With these jobs in place of a sweep's."""

    def __init__(self, jobs):
        super().__init__(precompile_steps.cases("ln"), ("normlib",), GPU)
        self._for_kernels, self._jobs = 2, jobs

    def _kernel_jobs(self):
        return self._jobs


def test_a_job_that_fails_is_told_and_one_that_hangs_is_ended_with_what_it_started(tmp_path):
    ahead = Given([partial(sleeping, tmp_path / "pids"), raising, print, str, print])
    ahead.kernels()
    pids = told(tmp_path / "pids")
    other, _, _ = ahead._running[1]
    wait_for(lambda: not other.is_alive())
    began = time.monotonic()
    said = ahead.close()
    assert time.monotonic() - began < 5
    done, failed = said.split("; ")
    assert done == "2 processes compiled 1 of 5 problems and graphs ahead"
    assert failed == "1 failed, the first with ValueError: no such kernel"
    assert all(map(gone, pids))
    assert ahead.close() == ""


def parent(path):
    ahead = Given([partial(sleeping, path)])
    ahead.kernels()
    time.sleep(600)


def test_nothing_is_left_when_the_parent_is_killed(tmp_path):
    killed = multiprocessing.get_context("spawn").Process(target=parent, args=(tmp_path / "pids",))
    killed.start()
    pids = told(tmp_path / "pids")
    assert not any(map(gone, pids))
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    wait_for(lambda: all(map(gone, pids)))


def test_a_run_compiles_ahead_says_so_and_does_not_depend_on_it(tmp_path, monkeypatch):
    monkeypatch.setattr(precompile, "processes", lambda device: (2, 0))
    monkeypatch.setattr(precompile, "KERNELS", "torch")
    monkeypatch.setattr(precompile, "_target", lambda device: None)  # which no compiler knows
    outcome = runner.run(plan(isolated=True, cell_timeout=60.0), tmp_path, {"notes": ["before"]}, [], Silent())
    assert outcome.complete and {record.status for record in outcome.records} == {"ok"}
    before, said = environment.read(tmp_path)["notes"]
    assert before == "before" and said.startswith("1 process compiled 0 of 1 problems and graphs ahead")


def test_a_run_in_this_process_and_one_that_cannot_start_any_go_on_without(tmp_path, monkeypatch):
    monkeypatch.setattr(precompile, "processes", lambda device: (2, 0))
    monkeypatch.setattr(precompile, "KERNELS", "torch")
    runner.run(plan(), tmp_path, {}, [], Silent())
    assert not environment.read(tmp_path).get("notes")
    outcome = runner.run(plan(isolated=True, cell_timeout=60.0), tmp_path, {}, [], Silent())  # a CPU has no target
    (said,) = environment.read(tmp_path)["notes"]
    assert outcome.complete and "; 1 failed, the first with " in said
