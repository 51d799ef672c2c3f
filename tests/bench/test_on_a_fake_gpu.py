"""The lines that only a GPU runs, on a fake `torch.cuda` whose times are known (tests/fake_device.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import fake_cuda
import pytest
import torch
from fake_cuda import installed
from fake_device import (
    BUSY_W,
    DRAM_BYTES_S,
    IDLE_W,
    L2_BYTES,
    L2_BYTES_S,
    LAUNCH_S,
    LOST,
    FakeDevice,
    VirtualHost,
)

from bench.cases.operators import operators
from bench.cases.sweep import Sweep, cases
from bench.measure import cell, environment, telemetry, timing
from bench.measure.providers import Provider, Runnable, providers
from bench.measure.timing import clock as gpu_clock
from bench.measure.timing import phases
from bench.measure.timing.clock import BlockTimer, Gpu, measure_overhead
from bench.measure.timing.phases import capture

ROOT = Path(__file__).resolve().parents[2]
CUDA = torch.device("cuda")
US = 1e6
X_BYTES = 4 * 10_000


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr("bench.measure.sampling.REST_S", 0.0)
    monkeypatch.setattr(phases, "_DETACH_S", 0.0)
    cell._own_stream.cache_clear()
    with installed(FakeDevice(VirtualHost())) as device:
        monkeypatch.setattr(gpu_clock, "perf_counter", device.host.now)
        yield device
    cell._own_stream.cache_clear()


@pytest.fixture
def x(fake):
    return torch.ones(X_BYTES // 4, device=CUDA)


# One launch that reads x and writes as much, from device memory and from the cache.
COLD_US = US * (LAUNCH_S + 2 * X_BYTES / DRAM_BYTES_S)
HOT_US = US * (LAUNCH_S + 2 * X_BYTES / L2_BYTES_S)


def doubled(x):
    y = torch.empty_like(x)
    return lambda: torch.mul(x, 2, out=y)


def test_a_flush_replaces_the_whole_cache_and_a_smaller_one_would_not(fake, x, monkeypatch):
    gpu = Gpu(CUDA)
    assert gpu._buffer.nbytes >= 2 * L2_BYTES
    gpu._buffer = gpu._buffer[: L2_BYTES // 2]
    assert median(BlockTimer(gpu, doubled(x), measure_overhead(gpu)).cold()) < COLD_US - 0.5


def test_the_devices_sleep_and_flush_are_measured(fake):
    fake.host.queue_s = 1e-6  # a slow host would be in a single flush's time
    found = measure_overhead(Gpu(CUDA))
    assert found.cycles_per_s == pytest.approx(fake_cuda.CYCLES_PER_S)
    # Of a buffer of twice the cache's size one half is in the cache from the flush before.
    assert found.flush_s == pytest.approx(LAUNCH_S + L2_BYTES / DRAM_BYTES_S + L2_BYTES / L2_BYTES_S)


def test_every_figure_of_a_run_is_the_known_one(fake, x):
    found = timing.measure_together({"a": doubled(x)}, CUDA)["a"]
    assert (found.clock, found.launches, found.remarks) == ("cuda_event", 1, ())
    assert found.latency_us == pytest.approx(COLD_US)
    assert found.hot_us == pytest.approx(HOT_US)
    assert found.graph_us == pytest.approx(COLD_US)
    assert found.kernel_us == pytest.approx(COLD_US)
    assert found.call_us == pytest.approx(US * fake.host.queue_s, rel=0.05)  # the host is slower than the device
    assert not found.poisoned and found.energy_mj is None


def test_the_energy_of_a_call_is_that_of_the_board_meanwhile(fake, x):
    found = timing.measure_together({"a": doubled(x)}, CUDA, energies=True)["a"]
    assert found.remarks == ()
    # The host is slower than the device, which idles most of the time.
    assert found.energy_mj == pytest.approx(IDLE_W * found.call_us / 1e3 + BUSY_W * found.hot_us / 1e3, rel=0.05)
    assert found.energy_mj_low <= found.energy_mj <= found.energy_mj_high


def test_the_copy_bandwidth_counts_bytes_read_and_bytes_written(fake):
    assert timing.copy_bandwidth(CUDA) == pytest.approx(DRAM_BYTES_S / 1e9, rel=0.1)
    assert fake.allocated < fake.memory_bytes / 8, "its tensors are given back"


def test_without_memory_for_the_flush_every_run_says_so(x, fake):
    fake.memory_bytes = fake.allocated + L2_BYTES
    found = timing.measure_together({"a": doubled(x), "b": doubled(x)}, CUDA)
    assert {type(error) for error in found.values()} == {torch.OutOfMemoryError}


def test_a_run_that_finds_no_memory_is_out_and_the_other_is_measured(x, fake):
    found = timing.measure_together({"large": lambda: x.new_empty(1 << 30), "small": doubled(x)}, CUDA)
    assert isinstance(found["large"], torch.OutOfMemoryError)
    assert found["small"].latency_us == pytest.approx(COLD_US)


def test_a_lost_device_is_not_alive(fake):
    gpu = Gpu(CUDA)
    assert gpu.alive()
    fake.lost = True
    assert not gpu.alive()
    with pytest.raises(cell.DeviceLost, match="illegal memory access"):
        cell.check_device_alive(CUDA)


def test_a_profile_that_saw_nothing_is_made_once_more(x, fake, monkeypatch):
    real, made = torch.profiler.profile.events, []

    def events(self):
        made.append(self)
        return real(self) if len(made) > 1 else []

    monkeypatch.setattr(torch.profiler.profile, "events", events)
    gpu = Gpu(CUDA)
    assert phases.of_one_call(phases.launched(gpu, doubled(x), 4), 4)[1] == 1
    assert len(made) == 2


def test_after_a_capture_that_spoiled_the_process_no_other_is_tried(x, fake):
    fake.refuses_capture = True
    found = timing.measure_together({"first": doubled(x), "second": doubled(x)}, CUDA)
    assert found["first"].poisoned and not found["second"].poisoned
    assert found["second"].remarks == ("no graph_us: the capture of first has spoiled this process",)


def test_a_graph_computes_again_what_the_call_computed(x, fake):
    y = torch.empty_like(x)
    graph = capture(lambda: torch.mul(x, 2, out=y))
    x.fill_(3)
    graph.replay()
    assert y.eq(6).all()


def test_waiting_for_the_device_waits_for_every_stream(x, fake):
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(int(0.5 * fake_cuda.CYCLES_PER_S))
    torch.mul(x, 2)
    torch.cuda.synchronize()
    assert fake.host.now() >= 0.5


# ------------------------------------------------------------------------------------------------------ whole cells


class Doubtful(Provider):
    """PyTorch, with something done to each call."""

    name = "doubtful"

    def __init__(self, change):
        self.change = change

    def version(self):
        return "1"

    def backend(self, case, inputs):
        return "torch"

    def build(self, case, inputs):
        built = TORCH.build(case, inputs)
        return Runnable(lambda: self.change(built.run()), built.outputs)


TORCH = providers()["torch"]
SETTINGS = cell.RunSettings(CUDA, 0, "torch", TORCH, operators())


def of(op="rms_norm", mode="fwd", **axes):
    sizes = (
        {"tokens": (64,), "hidden": (256,)}
        if op == "rms_norm"
        else {"batch": (4,), "channels": (8,), "spatial": ("4x4",)}
    )
    axes = {**sizes, **axes}
    return cases(Sweep((op,), "smoke", axes, (mode,), ("fp32",)), operators())[0]


def measured(case, *chosen):
    ended = []
    problem = cell.Problem(case.problem, SETTINGS)
    problem.measure(case, chosen, ended.append)
    problem.release()
    return {finished.record.provider: finished.record for finished in ended}


@pytest.mark.parametrize("mode", ["fwd", "bwd", "fwd_bwd", "eval"])
def test_building_judging_and_timing_share_one_stream_that_is_not_the_default(fake, mode):
    record = measured(of("batch_norm", mode), TORCH)["torch"]
    assert (record.status, record.reason) == ("ok", "")
    assert record.latency_us and record.graph_us and record.launches
    used = {work.stream for work in fake.done}
    assert used == {cell._own_stream(CUDA).cuda_stream} and used != {0}


def test_a_cells_peak_memory_is_its_own(fake):
    record = measured(of(), TORCH)["torch"]
    assert 64 * 256 * 4 <= record.peak_bytes < 4 * 64 * 256 * 4


def test_all_memory_is_given_back_after_a_problem(fake):
    measured(of(), TORCH)
    before = fake.allocated
    measured(of(tokens=(128,)), TORCH)
    assert fake.allocated == before


class Large(Provider):
    """Holds on to most of the memory for as long as its cell is there."""

    def __init__(self, name, size):
        self.name, self.size = name, size

    def version(self):
        return "1"

    def backend(self, case, inputs):
        return "torch"

    def build(self, case, inputs):
        built, held = TORCH.build(case, inputs), torch.empty(self.size, dtype=torch.int8, device=CUDA)
        return Runnable(lambda: (held, built.run())[1], built.outputs)


def test_cells_that_find_no_memory_beside_each_other_are_measured_one_by_one(fake):
    most = fake.memory_bytes * 6 // 10
    found = measured(of(), Large("a", most), TORCH, Large("b", most))
    assert {name: (record.status, bool(record.latency_us)) for name, record in found.items()} == dict.fromkeys(
        ("a", "torch", "b"), ("ok", True)
    )


def test_a_cell_that_no_memory_is_enough_for_is_out_of_memory(fake):
    found = measured(of(), Large("a", 2 * fake.memory_bytes), TORCH)
    assert (found["a"].status, found["torch"].status) == ("oom", "ok")
    assert "out of memory" in found["a"].reason


def test_a_cell_that_loses_the_device_is_handed_over_and_ends_the_process(fake):
    def lose(found):
        fake.lost = True
        return found

    ended = []
    case = of()
    problem = cell.Problem(case.problem, SETTINGS)
    with pytest.raises(cell.DeviceLost):
        problem.measure(case, [Doubtful(lose)], ended.append)
    assert [(f.record.status, LOST in f.record.reason) for f in ended] == [("crash", True)]


def test_the_record_of_a_gpu_cell_has_the_state_of_the_gpu(fake):
    record = measured(of(), TORCH)["torch"]
    assert record.clock == "cuda_event" and record.launches > 0 and record.hot_us < record.latency_us
    assert (record.sm_clock_mhz, record.power_w, record.throttle) == (1980, 345.6, "")


def test_normlibs_kernels_are_the_launches_that_the_profiler_sees(fake):
    fake.host.queue_s = 5e-3  # few calls fill the time, for the interpreter takes long for each
    record = measured(of(mode="bwd", tokens=(4,)), providers()["normlib"])["normlib"]
    assert (record.status, record.launches) == ("ok", 2)


def test_the_gpu_is_described_for_the_record(fake):
    found = environment.collect(CUDA, {"torch": TORCH})
    assert found["device_name"] == "Fake GPU" and found["gpu"]["l2_bytes"] == L2_BYTES
    assert environment.conditions(CUDA)["sm_clock_mhz"] == telemetry.clocks(CUDA)["sm_clock_mhz"] == 1980


def test_a_judged_cell_is_not_timed(fake):
    case = of()
    record = cell.Problem(case.problem, SETTINGS).judge(case, TORCH)
    assert (record.status, record.latency_us) == ("ok", None) and record.errors


# ------------------------------------------------------------------------------------------------- whole commands


def on_the_fake_gpu(*command):
    """Runs a command in a process, and its workers, that have the fake GPU from their start."""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests" / "fake_gpu"), environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300
    )


@pytest.mark.chance
def test_a_run_on_a_gpu_measures_in_a_worker_and_reports_speed(tmp_path):
    asked = ["--op", "rms", "--tokens", "4", "--hidden", "40", "--dtype", "bf16", "--mode", "bwd"]
    asked += ["--providers", "normlib,torch", "--energy"]
    done = on_the_fake_gpu("bench.run", *asked, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert [(r["provider"], r["status"], r["clock"]) for r in records] == [
        (provider, "ok", "cuda_event") for provider in ("torch", "normlib")
    ]
    assert all(r["speedup"] and r["gbps"] and r["graph_us"] and r["launches"] and r["peak_bytes"] for r in records)
    assert all(0 < r["energy_mj_low"] <= r["energy_mj"] <= r["energy_mj_high"] for r in records)
    assert [r["launches"] for r in records if r["provider"] == "normlib"] == [2]
    described = environment.read(tmp_path / "run")
    # In such a process the time that the CPU takes for the fake's work is in its figures.
    assert described["device_name"] == "Fake GPU" and 0 < described["copy_gbps"] <= DRAM_BYTES_S / 1e9
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
