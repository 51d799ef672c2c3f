"""The first screen: cards, sentences and warnings."""

import math

import pytest
from report_runs import page, record, resnet50, tensor_error

from bench.report import facts
from bench.report.sections import losses
from bench.report.sections.verdict import RunVerdict
from bench.report.tally import mean_error
from bench.results.load import load


@pytest.mark.parametrize(
    ("claims", "card"),
    [
        ({"status": "wrong", "share": 1.6}, ("Accuracy of normlib against float64", "1 of 1 wrong", "bad")),
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


def test_a_mean_never_stands_without_the_cells_won_tied_and_lost_and_the_worst(run_dir):
    records = []
    for tokens, speedup in ((8, 4.0), (16, 0.25), (32, 8.0), (64, 1.001)):
        axes = {"tokens": tokens, "hidden": 256}
        records.append(record(axes=axes, latency_us=10.0, baseline_us=10.0 * speedup))
        records.append(record(axes=axes, provider="torch", latency_us=10.0 * speedup, baseline_us=10.0 * speedup))
    folder = run_dir(records)
    verdict = RunVerdict(load(folder))
    cards = {card.title: card for card in verdict.cards()}
    card = cards["Speed against torch"]
    assert (card.value, card.tone) == ("1.68×", "bad")  # noqa: RUF001
    assert card.detail.startswith("2 won, 1 tied, 1 lost; worst 0.250×, layer_norm 16x256 fp16 fwd, against torch.")  # noqa: RUF001
    assert "Against torch: mixed in layer norm fwd (1.68×; 2 won, 1 tied, 1 lost; worst 0.250×)." in verdict.sentences()  # noqa: RUF001
    (direction,) = verdict.directions
    assert (direction["word"], direction["tone"]) == ("mixed", "bad")
    assert "Faster" not in page(folder).section("verdict")


@pytest.mark.parametrize(
    ("ratios", "word", "tone"),
    [((1.5, 1.2), "faster", "good"), ((1.5, 1.001), "faster", "good"), ((0.999, 1.001), "level", "plain"),
     ((1.5, 0.94), "mixed", "bad"), ((0.9, 1.001), "slower", "bad")],
)  # fmt: skip
def test_a_direction_is_faster_only_where_no_cell_is_lost(ratios, word, tone, run_dir):
    records = [
        record(axes={"tokens": 8 * n, "hidden": 64}, provider=name, latency_us=us)
        for n, ratio in enumerate(ratios, 1)
        for name, us in (("normlib", 10.0), ("torch", 10.0 * ratio))
    ]
    (direction,) = RunVerdict(load(run_dir(records))).directions
    assert (direction["word"], direction["tone"]) == (word, tone)


def test_a_direction_has_its_median_share_of_the_copy_and_a_failed_cell_makes_it_not_ok(run_dir):
    shares = {8: 0.2, 16: 0.5, 32: 0.9}
    records = [record(axes={"tokens": n, "hidden": 64}, roofline_fraction=share) for n, share in shares.items()]
    verdict = RunVerdict(load(run_dir([*records, record(status="wrong", share=1.6)])))
    (direction,) = verdict.directions
    assert (direction["fraction"], direction["word"], direction["failed"]) == (0.5, "not ok", 1)
    assert "a peer is more accurate in 0 of 3" in verdict.sentences()[-1]
    (card,) = [card for card in verdict.cards() if card.title == "Share of the copy bandwidth"]
    assert (card.value, card.detail[-36:]) == ("50%", "lowest 20%, layer_norm 8x64 fp16 fwd")


def test_a_baseline_without_a_time_leaves_the_mean_of_the_others(run_dir):
    records = [record(), record(provider="torch", latency_us=16.0), record(dtype="fp32")]
    records.append(record(dtype="fp32", provider="torch", status="oom"))
    (direction,) = RunVerdict(load(run_dir(records))).directions
    assert direction["baseline"].cells == 1 and direction["baseline"].mean == pytest.approx(1.6)


def mine(**changes):
    """A run of somebody's own kernel, `mine`, beside normlib and torch."""
    return [
        record(axes={"tokens": n, "hidden": 64}, provider=name, latency_us=us, **(changes if name == "mine" else {}))
        for n in (8, 512)
        for name, us in (("mine", 12.0), ("normlib", 10.0), ("torch", 16.0))
    ]


def first_screen(run_dir, records, **described):
    shown = page(run_dir(records, subject="mine", **described))
    return shown.section("verdict").partition("By operator and direction")[0], shown


def test_the_first_screen_of_a_subject_that_loses(run_dir):
    text, shown = first_screen(run_dir, mine())
    assert text.startswith(" Verdict on mine Right: 2 mine cells compared with float64, none wrong")
    against = "slower in layer norm fwd (0.833×; 0 won, 0 tied, 2 lost; worst 0.833×)."  # noqa: RUF001
    assert f"Against the best peer of each cell: {against}" in text
    assert "Against torch: faster in layer norm fwd (1.33×; 2 won, 0 tied, 0 lost; worst 1.33×)." in text  # noqa: RUF001
    assert "a peer is faster in 2 of 2 cells" in text
    assert "layer norm fwd columns to 1,024 2 of 2 0.833× normlib in 2 4.00 µs" in shown.section("losses")  # noqa: RUF001
    assert any(label == "speedup over the best peer by tokens and hidden" for label in shown.labels)


def test_the_first_screen_of_a_subject_that_is_wrong_names_its_cells_and_says_nothing_in_green(run_dir):
    folder = run_dir(mine(status="wrong", share=1.6), subject="mine")
    text, _ = first_screen(run_dir, mine(status="wrong", share=1.6))
    assert "mine: 2 wrong layer_norm 8x64 fp16 fwd , layer_norm 512x64 fp16 fwd" in text
    assert "Not right: 2 of 2 mine cells compared with float64 are wrong" in text
    assert "Right:" not in text and "2 of 2 right" not in text
    cards = RunVerdict(load(folder)).cards()
    assert cards[0].tone == "bad" and not any(card.tone == "good" and "mine" in card.title for card in cards)


def test_the_first_screen_of_a_subject_without_peers(run_dir):
    text, _ = first_screen(run_dir, [one for one in mine() if one.provider == "mine"])
    assert "Speed: no right mine cell has another provider" in text
    assert "×" not in text  # noqa: RUF001


def test_the_wrong_and_impossible_cells_of_others_are_named_on_the_first_screen_and_in_the_summary(run_dir):
    records = mine()
    records[1].status, records[4].status = "wrong", "impossible"
    text, _ = first_screen(run_dir, records)
    assert "normlib: 1 wrong layer_norm 8x64 fp16 fwd" in text and "normlib: 1 impossible layer_norm 512x64" in text
    others = " ".join(RunVerdict(load(run_dir(records, subject="mine"))).others())
    assert others.startswith("Others that are not to be believed: normlib has 1 wrong (layer_norm 8x64 fp16 fwd); ")
    assert others in (run_dir(records, subject="mine") / "summary.md").read_text(encoding="utf-8")


def test_unsupported_cells_are_counted_apart_from_those_that_are_not_ok(run_dir):
    records = [
        *mine(),
        record(mode="bwd", provider="mine", status="unsupported"),
        record(provider="mine", status="oom"),
    ]
    card = RunVerdict(load(run_dir(records, subject="mine"))).cards()[-1]
    assert (card.value, card.detail) == ("1 of 8", "1 oom; 1 of them mine. Apart: 1 unsupported")
    assert card.tone == "bad"


def test_a_report_can_be_made_about_another_provider_than_the_runs(run_dir, capsys):
    from bench.report.__main__ import main

    folder = run_dir(mine())
    assert main([str(folder), "--subject", "torch"]) == 0
    assert "Verdict on torch" in (folder / "report.html").read_text(encoding="utf-8")
    assert "Right: 2 torch cells" in (folder / "summary.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main([str(folder), "--subject", "liger"]) == 2
    assert "has no record of liger, only of torch, mine, normlib" in capsys.readouterr().err


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
        ({"git_dirty": True}, "held uncommitted changes, so the commit alone"),
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
