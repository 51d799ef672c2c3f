"""A model's norms added up: every shape as often as the model has it, or no sum at all."""

from dataclasses import replace

import pytest

from bench.cases import models
from bench.results.headline import headlines
from bench.results.records import Record


def cell(op, norm, batch, mode, provider="normlib", us=100.0, layout="nhwc", **changed):
    axes = {norm.axis: batch * norm.each, **norm.size}
    record = Record(op, [1], axes, norm.dtype, layout, mode, norm.eps, provider, provider, "cuda", "ok")
    return replace(record, **{"clock": "cuda_event", "latency_us": us, **changed})


def cells(op="batch_norm", model="resnet50", batch=32, mode="fwd_bwd", **changed):
    layout = "nhwc" if op.startswith("batch_norm") else "rows"
    return [cell(op, norm, batch, mode, **{"layout": layout, **changed}) for norm in models.norms(model, op)]


def of(preset):
    return {"arguments": {"preset": preset}}


def test_each_shape_counts_as_often_as_the_model_has_it():
    norms = models.norms("resnet50", "batch_norm")
    assert {norm.count for norm in norms} > {1, 11}
    records = [cell("batch_norm", norm, 32, "fwd_bwd", us=1000.0 * 2**i) for i, norm in enumerate(norms)]
    (found,) = headlines(records, of("resnet50"))
    assert found.milliseconds == {"normlib": sum(norm.count * 2**i for i, norm in enumerate(norms))}
    about = ("batch_norm", "resnet50", "training step", "batch 32")
    assert (found.operator, found.model, found.what, found.batch) == about
    assert (found.dtype, found.layout, found.norms, found.lacking) == ("fp16", "nhwc", 53, {})


def test_the_sentence_has_ours_first_then_the_baseline_and_says_what_it_is_about():
    records = cells(us=50.0) + cells(provider="torch") + cells(provider="fastest", us=10.0)
    (found,) = headlines(records, of("resnet50"))
    assert found.sentence("torch", "normlib") == (
        "all 53 batch norms of one resnet50 training step, batch 32, fp16 nhwc: "
        "2.65 ms (normlib) against 5.3 ms (torch), 0.53 ms (fastest)"
    )


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"status": "oom"}, "oom"),
        ({"status": "wrong"}, "wrong"),
        ({"status": "impossible"}, "impossible"),
        ({"status": "skipped", "latency_us": None, "clock": ""}, "skipped"),
        ({"clock": "host_cpu"}, "not timed"),
        ({"latency_us": None}, "not timed"),
        (None, "not measured"),
    ],
)
def test_a_provider_without_a_time_for_every_shape_gets_no_sum_and_the_shape_is_named(changed, reason):
    *whole, last = cells(provider="cudnn")
    records = [*cells(), *whole, *([] if changed is None else [replace(last, **changed)])]
    (found,) = headlines(records, of("resnet50"))
    assert set(found.milliseconds) == {"normlib"}
    assert found.lacking == {"cudnn": (f"2048x7x7 ({reason})",)}
    assert found.sentence("torch", "normlib").endswith(
        f": 5.3 ms (normlib); no sum of cudnn, which lacks 2048x7x7 ({reason})"
    )


def test_many_shapes_that_lack_a_time_are_counted_and_not_all_named():
    (found,) = headlines(cells() + cells(provider="cudnn", status="oom"), of("resnet50"))
    assert len(found.lacking["cudnn"]) == 12
    assert found.sentence("torch", "normlib").endswith("lacks 64x112x112 (oom), 64x56x56 (oom) and 10 more")


def test_every_batch_layout_and_dtype_has_a_headline_of_its_own():
    records = [*cells(), *cells(batch=64), *cells(layout="nchw"), *cells(dtype="bf16")]
    assert {(h.batch, h.layout, h.dtype) for h in headlines(records, of("resnet50"))} == {
        ("batch 32", "nhwc", "fp16"),
        ("batch 64", "nhwc", "fp16"),
        ("batch 32", "nchw", "fp16"),
        ("batch 32", "nhwc", "bf16"),
    }


def test_a_pass_alone_is_no_training_step_and_inference_is_told_by_the_preset():
    records = [*cells(mode="fwd"), *cells(mode="bwd"), *cells(mode="fwd_bwd")]
    assert [h.what for h in headlines(records, of("resnet50"))] == ["training step"]
    (found,) = headlines(cells(mode="eval", batch=1), of("resnet50-inference"))
    assert (found.what, found.batch) == ("inference pass", "batch 1")
    rows = cells("rms_norm", "llama3-8b", 1, "fwd")
    assert [h.what for h in headlines(rows, of("llama3-8b-inference"))] == ["inference pass"]
    assert headlines(rows, of("llama3-8b")) == []


def test_rows_of_heads_are_added_to_the_tokens_that_they_belong_to():
    tokens = [32, 1024]
    records = [record for n in tokens for record in cells("rms_norm", "qwen3-8b", n, "fwd", us=10.0 * n)]
    found = headlines(records, of("qwen3-8b-inference"))
    assert [(h.batch, h.milliseconds["normlib"]) for h in found] == [
        ("32 tokens", pytest.approx(145 * 0.32)),
        ("1024 tokens", pytest.approx(145 * 10.24)),
    ]


def test_a_fused_operator_counts_its_own_share():
    (found,) = headlines(cells("batch_norm_relu"), of("resnet50"))
    assert found.milliseconds == {"normlib": pytest.approx(3.3)}
    assert found.about == "33 batch norms (batch_norm_relu) of one resnet50 training step, batch 32, fp16 nhwc"


def test_without_the_models_shapes_its_counts_or_a_clock_there_is_no_headline():
    assert headlines([], of("resnet50")) == []
    assert headlines(cells(), of("quick")) == []
    assert headlines(cells(), {}) == []
    assert headlines(cells()[:-1], of("resnet50")) == []  # a shape that nobody was asked to measure
    assert headlines([replace(r, clock="interpreter") for r in cells()], of("resnet50")) == []
    assert headlines([replace(r, inputs="outlier") for r in cells()], of("resnet50")) == []
    assert headlines(cells("batch_norm", "deep-speech-2"), of("deep-speech-2")) == []
