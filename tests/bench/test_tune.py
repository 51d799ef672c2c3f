"""Tuning finds the fastest values and ends in time, and plans use what it found."""

import json
import time
from dataclasses import replace
from math import inf
from pathlib import Path
from types import SimpleNamespace

import planted
import pytest
import torch

from bench.cases import sweep
from bench.cases.operators import operators
from bench.device_constants import device_file
from bench.measure import cell, devices, environment
from bench.measure import worker as workers
from bench.measure.cell import DeviceLost, RunSettings
from bench.measure.worker import Worker
from bench.tune import __main__ as tune
from bench.tune.provider import TunedNormlib
from normlib.kernels import host as device
from normlib.kernels import plan as plan
from normlib.kernels.batch_norm import plan as batch_norm_plan
from normlib.kernels.group_norm import plan as group_norm_plan
from normlib.kernels.plan import Device, Tuning
from normlib.kernels.row_norm import plan as row_plan

H200 = Device(132, l2=50 << 20, cooperative=True)
LATER = float("inf")
VERSIONS = {"torch": "2.13", "triton": "3.7", "cuda": "13.0", "git_commit": "0" * 40, "git_dirty": False}
DESCRIBED = {"device_name": "a GPU", "os": "any", **VERSIONS}


def cases(**given):
    return sweep.cases(sweep.parse({"preset": "quick", "mode": "fwd,bwd", **given}, operators(), "quick"), operators())


def clock_of(plans, **fastest):
    """A GPU on which each value of these plans costs a tenth for every step that it is away from the fastest one."""
    candidates = tune.CANDIDATES[plans.split()[0]]

    def clock(case, tuning):
        if tune.plans_of(case) != plans:
            return 7.0
        has = {name: tuning.of(plans).get(name, values[0]) for name, values in candidates.items()}
        away = [abs(candidates[n].index(has[n]) - candidates[n].index(fastest.get(n, has[n]))) for n in has]
        return 100.0 * 1.1 ** sum(away)

    return clock


def found(chosen, clock, end=LATER):
    return {tuned.plans: tuned for tuned in tune.search(chosen, clock, end)}


def test_the_fastest_values_are_found_together():
    plans = row_plan.row_plans("backward", 4096, 2)
    clock = clock_of(plans, programs=8, threads=256, columns=40)
    tuned = found(cases(op="rms", dtype="bf16"), clock)
    assert tuned[plans].values == {"programs": 8, "threads": 256, "columns": 40}
    assert tuned[plans].ratio == pytest.approx(1.1**-9)
    assert tuned[plans].cells == 2
    others = [t for p, t in tuned.items() if p != plans]
    assert others and all(t.values == {} and t.ratio == 1.0 for t in others)


@pytest.mark.parametrize("op", operators())
def test_a_fused_operator_is_tuned_with_the_plans_of_its_norm(op):
    kind = "row" if "rows" in operators()[op].layouts else "batch_norm"
    assert all(tune.plans_of(case).startswith(kind) for case in cases(op=op, dtype="bf16"))


def test_a_gain_within_noise_changes_nothing():
    plans = row_plan.row_plans("forward", 1024, 2)
    clock = lambda case, tuning: 100.0 if tuning is plan.UNTUNED else 99.5
    assert found(cases(op="ln", dtype="bf16", hidden="1024"), clock)[plans].values == {}


def test_a_wrong_result_is_no_candidate():
    plans = batch_norm_plan.batch_norm_plans(False, 2)
    clock = lambda case, tuning: inf if tuning.of(plans).get("tile") == 8192 else 100.0 - len(tuning.of(plans))
    assert found(cases(op="bn", layout="nchw"), clock)[plans].values.get("tile") != 8192


def test_time_that_is_up_ends_the_search_between_two_measurements():
    calls = []
    clock = lambda case, tuning: calls.append(case) or 1.0
    assert list(tune.search(cases(op="rms"), clock, time.monotonic() - 1)) == [] == calls


def test_a_cell_that_fails_with_the_defaults_decides_nothing():
    plans = row_plan.row_plans("forward", 4096, 2)
    chosen = [case for case in cases(op="rms,ln", dtype="bf16", hidden="4096", tokens="8") if case.mode == "fwd"]
    fast = clock_of(plans, threads=512)
    (tuned,) = tune.search(chosen, lambda c, t: inf if c.op == "rms_norm" and not t.values else fast(c, t), LATER)
    assert (tuned.values, tuned.cells, len(chosen)) == ({"threads": 512}, 1, 2)


def test_where_every_cell_fails_with_the_defaults_what_was_found_before_stays(tmp_path, capsys):
    file, plans = tmp_path / "gpu.json", row_plan.row_plans("forward", 4096, 2)
    device_file.update(file, "a GPU", values={plans: {"threads": 64}})
    chosen = [case for case in cases(op="rms", dtype="bf16", hidden="4096", tokens="8") if case.mode == "fwd"]
    assert tune._run(chosen, lambda case, tuning: inf, LATER, file, DESCRIBED) == 0
    assert "no cell can be measured with the defaults" in capsys.readouterr().out
    assert json.loads(file.read_text())["values"] == {plans: {"threads": 64}}


def test_values_found_before_are_tried_first_and_stay_where_there_is_no_time_to_try_them(tmp_path):
    file, plans = tmp_path / "gpu.json", row_plan.row_plans("forward", 4096, 2)
    chosen = [case for case in cases(op="rms", dtype="bf16", hidden="4096", tokens="8") if case.mode == "fwd"]
    tried, found = [], {"threads": 64, "columns": 64}
    device_file.update(file, "a GPU", values={plans: found})

    def clock(case, tuning):
        tried.append(dict(tuning.of(plans)))
        return 100.0 - len(tried)

    assert tune._run(chosen, clock, LATER, file, DESCRIBED) == 0
    assert tried[:2] == [{}, found]
    device_file.update(file, "a GPU", values={plans: found})
    tried.clear()
    end = time.monotonic() + 0.2

    def slow(case, tuning):
        time.sleep(0.15)
        return clock(case, tuning) if time.monotonic() < end else inf  # stopped at the end, as a worker is

    assert tune._run(chosen, slow, end, file, DESCRIBED) == 0
    assert tried == [{}] and json.loads(file.read_text())["values"] == {plans: found}


def worker(silence):
    return Worker(RunSettings(torch.device("cpu"), 0, "torch", planted.TORCH, operators()), silence)


def small(**given):
    return [case for case in cases(dtype="fp32", tokens="64", hidden="64", **given) if case.mode == "fwd"]


def test_values_that_hang_or_kill_their_process_or_are_wrong_are_no_candidates_and_the_search_goes_on(tmp_path, capsys):
    (case,), failed, measurer = small(op="ln"), [], worker(12.0)
    file, plans = tmp_path / "gpu.json", tune.plans_of(case)
    try:
        clock = tune.clock_of(measurer, planted.tunable, failed=failed.append)
        assert tune._run([case], clock, LATER, file, DESCRIBED) == 0
    finally:
        measurer.close()
    assert json.loads(file.read_text())["values"][plans]["threads"] == 512
    assert json.loads(file.read_text())["gains"][plans]["time_over_default"] < 0.8
    assert [line.removeprefix(f"{case.label} with {plans}: threads=").split(",")[0] for line in failed[:3]] == [
        "128: timeout",
        "256: crash",
        "1024: wrong",
    ]


def test_what_is_measured_when_the_time_is_up_is_stopped():
    (case,), measurer, began = small(op="ln"), worker(60.0), time.monotonic()
    try:
        clock = tune.clock_of(measurer, planted.tunable, began + 3)
        assert clock(case, Tuning({"": {"threads": 128}})) == inf
    finally:
        measurer.close()
    assert time.monotonic() - began < 20
    assert tune.clock_of(None, planted.tunable, began)(case, plan.UNTUNED) == inf  # and nobody is asked any more


def test_a_worker_measures_normlib_with_the_values_that_are_tried():
    (case,), ended, measurer = small(op="rms"), [], worker(60.0)
    try:
        for values in ({}, {tune.plans_of(case): {"columns": 64}}, {}):
            measurer.measure(case, [TunedNormlib(Tuning(values))], ended.append, lambda name: None)
    finally:
        measurer.close()
    records = [finished.record for finished in ended]
    assert {(record.status, record.provider) for record in records} == {("ok", "normlib")}
    assert records[0].plan == records[2].plan != records[1].plan


def test_every_value_that_is_tried_changes_a_plan():
    for kind, values in tune.CANDIDATES.items():
        for name, candidates in values.items():
            assert any(_plans(kind, name, value) != _plans(kind) for value in candidates), (kind, name)


def _plans(kind, name=None, value=0):
    keys = [f"{kind} 2", *(f"{kind} {width} 2" for width in (64, 512, 1024, 65536))]
    tuned = replace(H200, tuning=Tuning({} if name is None else {key: {name: value} for key in keys}))
    if kind == "row_forward":
        return [row_plan.row_forward(n, 2, tuned) for n in (64, 1000)]
    if kind == "row_forward_loop":
        return [row_plan.row_forward(n, 2, replace(tuned, cooperative=False)) for n in (40000, 65536)]
    if kind == "row_backward":
        return [row_plan.row_backward(4096, n, 2, tuned) for n in (64, 512, 1000)]
    found = []
    for shape in [(32, 64, 112, 112), (32, 64, 56, 56), (32, 256, 14, 14), (32, 512, 7, 7), (4, 64, 16, 16)]:
        p = batch_norm_plan.batch_norm(shape, kind == "batch_norm_nhwc", 2, tuned)
        whole = group_norm_plan.group_norm(shape, 4, kind == "batch_norm_nhwc", 2, tuned).rows
        found.append((p.block_c, p.block_s, p.splits, p.stages, p.output_splits, p.evict, whole))
    return found


def test_what_is_written_is_what_plans_read(tmp_path, monkeypatch):
    plans = row_plan.row_plans("forward", 4096, 2)
    file = tmp_path / "gpu.json"
    chosen = cases(op="rms", dtype="bf16", hidden="4096")
    assert tune._run(chosen, clock_of(plans, threads=256), LATER, file, DESCRIBED) == 0
    written = json.loads(file.read_text())
    assert written["values"] == {plans: {"threads": 256}} and written["device_name"] == "a GPU"
    versions = written["gains"][plans]["with"]
    assert versions.pop("measured") and versions == VERSIONS
    monkeypatch.setattr(plan, "tuning_file", lambda name: file)
    tuned = replace(H200, tuning=plan.tuning_of("a GPU"))
    assert row_plan.row_forward(4096, 2, tuned).options["num_warps"] == 8 != row_plan.row_forward(4096, 2, H200)


def test_a_second_search_keeps_what_it_did_not_measure(tmp_path):
    file, other = tmp_path / "gpu.json", row_plan.row_plans("forward", 64, 4)
    kept = {"gains": {other: {"with": {"torch": "2.11"}}}, "constants": {"copy": {"gbps": {"16777216": 7.0}}}}
    file.write_text(json.dumps({"values": {other: {"threads": 64}}, **kept}))
    plans = row_plan.row_plans("forward", 4096, 2)
    tune._run(cases(op="rms", dtype="bf16", hidden="4096"), clock_of(plans, threads=512), LATER, file, DESCRIBED)
    written = json.loads(file.read_text())
    assert written["values"] == {other: {"threads": 64}, plans: {"threads": 512}}
    assert written["gains"][other] == kept["gains"][other] and written["constants"] == kept["constants"]


def test_a_device_without_a_file_or_with_constants_alone_has_the_defaults(tmp_path, monkeypatch):
    assert plan.tuning_of("no such device") is plan.UNTUNED
    assert plan.tuning_file("NVIDIA H200").name == "nvidia-h200.json"
    monkeypatch.setattr(plan, "tuning_file", lambda name: tmp_path / "gpu.json")
    device_file.update(tmp_path / "gpu.json", "a GPU", constants={})
    assert plan.tuning_of("a GPU") is plan.UNTUNED


def test_plans_have_the_values_that_are_tried_until_told_otherwise(monkeypatch):
    properties = SimpleNamespace(name="a GPU", multi_processor_count=8, warp_size=32, L2_cache_size=1 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    here, tuning = torch.empty(1), Tuning({})
    gpu = SimpleNamespace(is_cpu=False, device=SimpleNamespace(index=7))
    try:
        assert device.device_of(gpu).tuning is plan.UNTUNED
        device.try_tuning(tuning)
        for tensor in (gpu, here):
            assert device.device_of(tensor).tuning is tuning
            assert device.device_of(tensor) is device.device_of(tensor)
        device.try_tuning(None)
        assert device.device_of(gpu).tuning is plan.UNTUNED
        assert device.device_of(here) is plan.INTERPRETER
    finally:
        device.try_tuning(None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--op", "xn"], "--op: 'xn' is not one of"),
        (["--preset", "resnet5"], "did you mean resnet50?"),
        (["--time-budget", "soon"], "--time-budget: 'soon' is not a duration"),
        (["--cell-timeout", "soon"], "--cell-timeout: 'soon' is not a duration"),
    ],
)
def test_a_bad_argument_is_one_line_and_status_2(arguments, said, capsys):
    assert tune.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and said in printed.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_without_a_gpu_nothing_is_measured(capsys):
    assert tune.main(["--op", "rms"]) == 2
    assert capsys.readouterr().err == (
        "bench.tune: error: device: a GPU is needed, and there is none: nothing is measured without one\n"
    )


@pytest.mark.parametrize(
    ("chosen", "end", "said"),
    [
        ([], LATER, "no cell of this preset has a plan to tune\n"),
        (cases(op="rms"), 0.0, "nothing is written: no plans were tuned within the time, and gpu.json is as it was\n"),
    ],
)
def test_where_nothing_is_tuned_it_is_said_why(chosen, end, said, capsys):
    assert tune._run(chosen, lambda case, tuning: 1.0, end, Path("gpu.json"), DESCRIBED) == 0
    assert capsys.readouterr().out == said and not Path("gpu.json").exists()


class Measurer:
    """In the place of a worker: every cell takes a microsecond, until the device is lost."""

    def __init__(self, settings, silence):
        self.settings, self.silence, self.closed, self.left = settings, silence, False, 40
        made.append(self)

    def measure(self, case, providers, finished, began, deadline):
        (provider,) = providers
        self.left -= 1
        if not self.left:
            raise DeviceLost("it fell off the bus")
        record = self.settings.record(case, provider.name, "ok")
        record.latency_us = 1.0 if provider.tuning.values else 2.0
        finished(cell.FinishedCell(record))

    def close(self):
        self.closed = True


made = []


def test_the_command_measures_in_a_worker_and_keeps_what_it_found_before_the_device_was_lost(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(devices, "gpu", lambda: torch.device("cuda", 3))
    monkeypatch.setattr(environment, "collect", lambda device, providers: DESCRIBED)
    monkeypatch.setattr(workers, "Worker", Measurer)
    file = tmp_path / "gpu.json"
    assert tune.main(["--op", "rms", "--dtype", "bf16", "--cell-timeout", "7s", "--out", str(file)]) == 1
    (measurer,) = made
    assert (measurer.silence, measurer.settings.device, measurer.closed) == (7.0, torch.device("cuda", 3), True)
    assert capsys.readouterr().err == "bench.tune: error: the device is lost: it fell off the bus\n"
    assert json.loads(file.read_text())["values"]


@pytest.mark.gpu
def test_a_gpu_is_tuned_and_its_values_are_used(tmp_path):
    file = tmp_path / "gpu.json"
    arguments = ["--op", "rms", "--dtype", "bf16", "--time-budget", "20s", "--out", str(file)]
    assert tune.main(arguments) == 0
    assert json.loads(file.read_text())["device_name"] == torch.cuda.get_device_name()
    used = device.device_of(torch.empty(1, device="cuda")).tuning
    assert used.values == plan.tuning_of(torch.cuda.get_device_name()).values
