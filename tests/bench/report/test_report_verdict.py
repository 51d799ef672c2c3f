"""The first screen: cards, sentences and warnings."""

import math

import pytest
from report_runs import page, record, resnet50, tensor_error

from bench.report import facts
from bench.report.sections import losses
from bench.report.sections.verdict import RunVerdict, mean_error
from bench.results.load import load


@pytest.mark.parametrize(
    ("claims", "card"),
    [
        ({"status": "wrong", "share": 1.6}, ("Accuracy against float64", "1 of 1 wrong", "bad")),
        ({"status": "impossible", "roofline_fraction": 2.2, "gbps": 9e3}, ("Impossible times", "1 cell", "bad")),
    ],
)
def test_a_wrong_or_impossible_cell_is_a_red_card_and_no_speedup_even_if_its_record_claims_one(claims, card, run_dir):
    one = record(reason="9000 GB/s of 4000", speedup=9.0, latency_us=1.0, **claims)
    folder = run_dir([one, record(provider="torch", latency_us=16.0)])
    shown, run = page(folder), load(folder)
    assert shown.column("speedup")[one.cell] is None and shown.column("GB/s")[one.cell] is None
    assert len(run.duels) == 0 and "9.0" not in shown.section("verdict")
    assert card in {(card.title, card.value, card.tone) for card in RunVerdict(run).cards()}
    assert "9000 GB/s of 4000" in shown.section("losses")
    assert ("Not right: 1 of 1 normlib cell" in shown.text) == (one.status == "wrong")
    assert ("Impossible times" in shown.text) == (one.status == "impossible")


def test_a_wrong_peer_is_no_peer_to_beat_or_to_lose_to(run_dir):
    broken = record(provider="cudnn", status="wrong", reason="y: wrong", latency_us=1.0, share=3.0)
    run = load(run_dir([record(), record(provider="torch", latency_us=16.0), broken]))
    assert losses.slower(run) == []
    assert list(run.duels["provider_peer"]) == ["torch"]


def test_the_verdict_gives_the_geometric_mean_and_its_range(run_dir):
    records = []
    for tokens, speedup in ((8, 4.0), (16, 0.25), (32, 8.0)):
        axes = {"tokens": tokens, "hidden": 256}
        records.append(record(axes=axes, latency_us=10.0, baseline_us=10.0 * speedup))
        records.append(record(axes=axes, provider="torch", latency_us=10.0 * speedup, baseline_us=10.0 * speedup))
    cards = {card.title: card for card in RunVerdict(load(run_dir(records))).cards()}
    assert cards["Speed against torch"].value == "2.00×"  # noqa: RUF001
    assert "cells from 0.250× to 8.00×" in cards["Speed against torch"].detail  # noqa: RUF001
    assert cards["Worst cell"].value == "0.250×"  # noqa: RUF001
    assert "layer_norm 16x256 fp16 fwd, against torch. A peer is faster in 1 of 3 cells" in cards["Worst cell"].detail


def test_the_interval_of_the_mean_is_that_of_its_cells_medians(run_dir):
    """A ratio of two medians is sqrt(2) times as wide as each, and the mean of n of them sqrt(n) times narrower."""
    interval = {"latency_us_low": 10.0 / 1.02, "latency_us_high": 10.0 * 1.02}
    records = [
        record(axes={"tokens": tokens, "hidden": 8}, provider=name, latency_us=10.0, baseline_us=10.0, **interval)
        for tokens in (1, 2, 3, 4)
        for name in ("normlib", "torch")
    ]
    folder = run_dir(records)
    assert mean_error(load(folder).against) == pytest.approx(1.02**0.5**0.5 - 1, rel=1e-3)
    assert "±1.4%" in RunVerdict(load(folder)).cards()[1].detail
    records[0].latency_us_low = None
    assert math.isnan(mean_error(load(run_dir(records[:2])).against))


def test_what_a_model_takes_is_in_the_head(run_dir):
    shown = page(run_dir(resnet50(), arguments={"preset": "resnet50"}))
    assert "all 53 batch norms of one resnet50 training step, batch 32, fp16 nhwc: " in shown.section("verdict")
    assert any(label.startswith("all 53 batch norms") and "torch_compile" in label for label in shown.labels)
    assert "In a model" not in page(run_dir(resnet50())).text.replace("resnet50", "")


def test_the_worst_tensor_of_the_worst_cell_comes_first(run_dir):
    records = [record(mode="bwd", share=0.4), record(share=0.9), record(dtype="fp32", share=0.7)]
    records[0].errors[1] = tensor_error("dw", "fp16", 0.97)
    run = load(run_dir(records))
    assert list(facts.worst_errors(run)["tensor"]) == ["dw", "y", "y"]
    assert list(facts.worst_errors(run)["dtype"]) == ["fp16", "fp16", "fp32"]
    assert "nearest to its bound is dw floor_ratio 1.018 (bound 1.05)" in RunVerdict(run).sentences()[0]


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ({"complete": False, "stopped_by": "interrupt"}, "interrupted by hand, having measured 1 of 9 planned cells"),
        ({"complete": False, "stopped_by": "time budget"}, "stopped by its time budget, having measured 1 of 9"),
        ({"complete": False, "stopped_by": "error"}, "stopped by an error"),
        ({"complete": False, "stopped_by": ""}, "has not finished"),
        ({"complete": True}, "says that it is complete, but the records hold 1 of 9"),
        ({"complete": True, "cells_planned": 1}, "The run is complete: 1 of 1 planned cell."),
        ({"git_dirty": True}, "uncommitted changes"),
        ({"copy_gbps": None}, "The copy bandwidth was not measured"),
    ],
)  # fmt: skip
def test_the_reader_is_told(described, expected, run_dir):
    assert expected in page(run_dir([record()], **{"cells_planned": 9} | described)).text


def test_noise_and_impossible_bandwidth_are_pointed_out(run_dir):
    noisy = record(latency_us_p10=8.0, latency_us_p90=12.0)
    cached = record(provider="torch", roofline_fraction=1.8)
    text = page(run_dir([noisy, cached])).section("verdict")
    assert "1 timed cell of 2 scatter by more than 10%" in text
    assert "normlib on layer_norm 1024x4096 fp16 fwd with 40%" in text
    assert "faster than the measured copy (up to 180%, torch on" in text
