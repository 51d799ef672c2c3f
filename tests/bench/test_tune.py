"""What tuning finds is what is fastest, it ends in time, and plans then have it."""

import json
import time
from dataclasses import replace
from math import inf

import pytest
import torch

from bench import sweep, tune
from bench.operators import operators
from normlib.kernels import device, plan, plan_device
from normlib.kernels.plan import Device, Tuning

H200 = Device(132, l2=50 << 20, cooperative=True)
LATER = float("inf")


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
    plans = plan.row_plans("backward", 4096, 2)
    clock = clock_of(plans, programs=8, threads=256, elements=4096)
    tuned = found(cases(op="rms", dtype="bf16"), clock)
    assert tuned[plans].values == {"programs": 8, "threads": 256, "elements": 4096}
    assert tuned[plans].ratio == pytest.approx(1.1**-7)
    assert tuned[plans].cells == 2
    others = [t for p, t in tuned.items() if p != plans]
    assert others and all(t.values == {} and t.ratio == 1.0 for t in others)


@pytest.mark.parametrize("op", operators())
def test_a_fused_operator_is_tuned_with_the_plans_of_its_norm(op):
    kind = "row" if "rows" in operators()[op].layouts else "batch_norm"
    assert all(tune.plans_of(case).startswith(kind) for case in cases(op=op, dtype="bf16"))


def test_a_gain_within_noise_changes_nothing():
    plans = plan.row_plans("forward", 1024, 2)
    clock = lambda case, tuning: 100.0 if tuning is plan.UNTUNED else 99.5
    assert found(cases(op="ln", dtype="bf16", hidden="1024"), clock)[plans].values == {}


def test_a_wrong_result_is_no_candidate():
    plans = plan.batch_norm_plans(False, 2)
    clock = lambda case, tuning: inf if tuning.of(plans).get("tile") == 8192 else 100.0 - len(tuning.of(plans))
    assert "tile" not in found(cases(op="bn", layout="nchw"), clock)[plans].values or (
        found(cases(op="bn", layout="nchw"), clock)[plans].values["tile"] != 8192
    )


def test_time_that_is_up_ends_the_search_between_two_measurements():
    calls = []
    clock = lambda case, tuning: calls.append(case) or 1.0
    assert list(tune.search(cases(op="rms"), clock, time.monotonic() - 1)) == [] == calls


def test_every_value_that_is_tried_changes_a_plan():
    for kind, values in tune.CANDIDATES.items():
        for name, candidates in values.items():
            assert any(_plans(kind, name, value) != _plans(kind) for value in candidates), (kind, name)


def _plans(kind, name=None, value=0):
    keys = [f"{kind} 2", *(f"{kind} {width} 2" for width in (64, 512, 1024, 65536))]
    tuned = replace(H200, tuning=Tuning({} if name is None else {key: {name: value} for key in keys}))
    if kind == "row_forward":
        return [plan.row_forward(n, 2, tuned) for n in (64, 1000)]
    if kind == "row_forward_loop":
        return [plan.row_forward(n, 2, tuned) for n in (40000, 65536)]
    if kind == "row_backward":
        return [plan.row_backward(4096, n, 2, tuned) for n in (64, 512, 1000)]
    found = []
    for shape in [(32, 64, 112, 112), (32, 64, 56, 56), (32, 256, 14, 14), (32, 512, 7, 7), (4, 64, 16, 16)]:
        p = plan.batch_norm(shape, kind == "batch_norm_nhwc", 2, tuned)
        once = plan.batch_norm_once(p, 2, 2, tuned)
        found.append((p.block_c, p.block_s, p.splits, once and (once.windows, once.splits, once.kept)))
    return found


def test_what_is_written_is_what_plans_read(tmp_path, monkeypatch):
    plans = plan.row_plans("forward", 4096, 2)
    file = tmp_path / "gpu.json"
    chosen = cases(op="rms", dtype="bf16", hidden="4096")
    assert tune._run(chosen, clock_of(plans, threads=256), LATER, file, {"device_name": "a GPU"}) == 0
    written = json.loads(file.read_text())
    assert written["values"] == {plans: {"threads": 256}} and written["device_name"] == "a GPU"
    monkeypatch.setattr(plan_device, "tuning_file", lambda name: file)
    tuned = replace(H200, tuning=plan.tuning_of("a GPU"))
    assert plan.row_forward(4096, 2, tuned).options["num_warps"] == 8 != plan.row_forward(4096, 2, H200)


def test_a_second_search_keeps_what_it_did_not_measure(tmp_path):
    file, other = tmp_path / "gpu.json", plan.row_plans("forward", 64, 4)
    file.write_text(json.dumps({"values": {other: {"threads": 64}}, "gains": {other: {}}}))
    plans = plan.row_plans("forward", 4096, 2)
    tune._run(cases(op="rms", dtype="bf16", hidden="4096"), clock_of(plans, threads=512), LATER, file, {})
    assert json.loads(file.read_text())["values"] == {other: {"threads": 64}, plans: {"threads": 512}}


def test_a_device_without_a_file_has_the_defaults():
    assert plan.tuning_of("no such device") is plan.UNTUNED
    assert plan.tuning_file("NVIDIA H200").name == "nvidia-h200.json"


def test_within_a_measurement_plans_have_the_values_that_are_tried():
    tuning = Tuning({})
    with tune.planning(tuning):
        assert plan.tuning_of("any") is tuning
    assert plan.tuning_of("any") is plan.UNTUNED


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--op", "xn"], "--op: 'xn' is not one of"),
        (["--preset", "resnet5"], "did you mean resnet50?"),
        (["--time-budget", "soon"], "--time-budget: 'soon' is not a duration"),
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


@pytest.mark.gpu
def test_a_gpu_is_tuned_and_its_values_are_used(tmp_path):
    file = tmp_path / "gpu.json"
    arguments = ["--op", "rms", "--dtype", "bf16", "--time-budget", "20s", "--out", str(file)]
    assert tune.main(arguments) == 0
    assert json.loads(file.read_text())["device_name"] == torch.cuda.get_device_name()
    used = device.device_of(torch.empty(1, device="cuda")).tuning
    assert used.values == plan.tuning_of(torch.cuda.get_device_name()).values
