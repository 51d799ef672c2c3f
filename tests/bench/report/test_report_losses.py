"""Where we lose, and what is not ok."""

import pytest
from report_runs import page, record, resnet50

from bench.report.sections import losses
from bench.results.load import load


def test_every_cell_that_a_peer_wins_is_listed_and_the_one_that_costs_most_time_comes_first(run_dir):
    records = []
    for place in range(60):
        axes = {"tokens": 8 + place, "hidden": 256}
        ours = 10.0 + place % 7
        records.append(record(axes=axes, latency_us=ours))
        records.append(record(axes=axes, provider="torch", latency_us=26.0))
        records.append(record(axes=axes, provider="torch_compile", latency_us=ours - 0.1 - 0.1 * place))
    folder = run_dir(records)
    found = losses.slower(load(folder))
    costs = [loss["cost_us"] for loss in found]
    assert costs == sorted(costs, reverse=True) and max(costs) == pytest.approx(6.0)
    assert [loss["latency_us"] - loss["latency_us_peer"] for loss in found] == costs
    assert {loss["provider_peer"] for loss in found} == {"torch_compile"}
    shown = page(folder)
    for place in range(60):
        assert f"layer_norm {8 + place}x256 fp16 fwd" in shown.section("losses")


def test_a_large_cell_that_loses_little_comes_before_a_small_one_that_loses_much(run_dir):
    large, small = record(latency_us=1000.0), record(dtype="fp32", latency_us=4.0)
    peers = [record(provider="torch", latency_us=950.0), record(provider="torch", dtype="fp32", latency_us=2.0)]
    found = losses.slower(load(run_dir([large, small, *peers])))
    assert [loss["cell"] for loss in found] == [large.cell, small.cell]


def test_a_difference_inside_the_interval_is_a_tie_and_no_loss(run_dir):
    near, far = record(provider="torch", latency_us=9.99), record(provider="torch", dtype="fp32", latency_us=9.9)
    run = load(run_dir([record(), record(dtype="fp32"), near, far]))
    assert dict(zip(run.duels["dtype"], run.duels["outcome"], strict=True)) == {"fp16": "tied", "fp32": "lost"}
    assert dict(zip(run.ours["dtype"], run.ours["size"], strict=True)) == {"fp16": 2**23, "fp32": 2**24}
    assert [loss["dtype"] for loss in losses.slower(run)] == ["fp32"]


def test_without_intervals_the_ranges_from_p10_to_p90_decide(run_dir):
    bare = {"latency_us_low": None, "latency_us_high": None}
    times = {"fp16": 9.9, "fp32": 9.5, "bf16": 10.5}  # p10 to p90 of ours is 9.85 to 10.2
    records = [
        record(dtype=dtype, provider=p, latency_us=us, **bare)
        for dtype, t in times.items()
        for p, us in (("normlib", 10.0), ("torch", t))
    ]
    run = load(run_dir(records))
    assert dict(zip(run.duels["dtype"], run.duels["outcome"], strict=True)) == {
        "fp16": "tied",
        "fp32": "lost",
        "bf16": "won",
    }


def test_losses_are_grouped_by_regime_and_cost_what_the_model_pays(run_dir):
    records = resnet50()
    slow = {"64x112x112": 3.0, "2048x7x7": 2.0}
    for one in records:
        name = f"{one.axes['channels']}x{one.axes['spatial']}"
        if one.provider == "normlib" and name in slow:
            one.latency_us = one.latency_us * slow[name]
            one.latency_us_low, one.latency_us_high = 0.998 * one.latency_us, 1.002 * one.latency_us
    run = load(run_dir(records, arguments={"preset": "resnet50"}))
    lost = losses.slower(run)
    wide, narrow = sorted(losses.regimes(run, lost), key=lambda one: one["width"])
    assert (wide["width"], narrow["width"]) == ("channels beyond 512", "channels to 64")
    assert (wide["lost"], narrow["lost"]) == (1, 1) and wide["peers"] == "torch_compile in 1"
    # ResNet-50 has one norm of 64x112x112, and four of 2048x7x7.
    (cost,) = [row["cost_us"] for row in lost if row["shape"] == "32x2048x7x7"]
    assert wide["model_us"] == pytest.approx(4 * cost) and narrow["model_us"] == narrow["cost_us"]
    text = page(run_dir(records, arguments={"preset": "resnet50"})).section("losses")
    assert "costs a pass of resnet50" in text


def test_a_more_accurate_peer_is_a_loss_only_beyond_the_margin(run_dir):
    near = [record(share=0.95), record(provider="torch", share=0.93, latency_us=99.0)]
    far = [record(mode="bwd", share=0.98), record(mode="bwd", provider="torch", share=0.7, latency_us=99.0)]
    (loss,) = losses.less_accurate(load(run_dir(near + far)))
    assert loss["cell"] == far[0].cell
    assert loss["ratio"] == pytest.approx(1.4)
    assert loss["others"] == 2


def test_errors_below_the_unit_roundoff_of_fp32_are_no_loss(run_dir):
    ours, exact = record(dtype="fp32"), record(dtype="fp32", provider="torch", latency_us=99.0)
    ours.errors[0].rel_l2_error, exact.errors[0].rel_l2_error = 5e-8, 0.0
    assert losses.less_accurate(load(run_dir([ours, exact]))) == []


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ({"share": 0.9}, "Nowhere in this run"),
        ({"status": "unsupported", "reason": "hidden beyond 65536"}, "hidden beyond 65536"),
    ],
)
def test_a_subject_that_cannot_serve_a_cell_is_a_loss_and_no_loss_is_said_in_a_sentence(ours, said, run_dir):
    shown = page(run_dir([record(**ours), record(provider="torch", latency_us=16.0, share=0.92)]))
    assert said in shown.section("losses")


def test_reasons_that_differ_in_numbers_become_one_line_with_a_count_and_dtypes_are_kept_apart(run_dir):
    reasons = [f"tried to allocate {n}.00 GiB" for n in (2, 3)] + [f"no {dtype} here" for dtype in ("fp16", "fp32")]
    records = [record(axes={"tokens": n, "hidden": 8}, status="oom", reason=why) for n, why in enumerate(reasons, 1)]
    records += [
        record(axes={"tokens": n, "hidden": 64}, provider="cudnn", status="unsupported", reason="no bf16")
        for n in range(1, 201)
    ]
    groups = losses.failures(load(run_dir(records)).cells)
    assert [(group["status"], len(group["cells"]), group["alike"]) for group in groups] == [
        ("oom", 2, True), ("oom", 1, False), ("oom", 1, False), ("unsupported", 200, False),
    ]  # fmt: skip


def test_cells_whose_eps_differ_in_the_last_digit_are_cells_of_their_own(run_dir):
    near = (1e-5, 1.0000000001e-5)
    made = [
        record(provider=name, latency_us=us, eps=eps) for eps in near for name, us in (("normlib", 9), ("torch", 5))
    ]
    run = load(run_dir(made))
    assert len(run.records) == 4 and list(run.duels["eps"]) == list(near)
    assert len(set(run.ours["label"])) == 2
    assert [(found["lost"], found["width"]) for found in losses.regimes(run, losses.slower(run))] == [
        (2, "columns to 8,192")
    ]
