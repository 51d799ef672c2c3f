"""The accuracy section."""

import math
import re
from dataclasses import replace
from itertools import product

import pandas as pd
from report_runs import page, record, tensor_error

from bench.report.figures.errors import bounds_of
from bench.report.sections.accuracy import batches, families
from bench.results.load import load
from bench.results.records import TensorError
from bench.results.thresholds import BOUNDS


def test_figures_that_are_not_finite_are_named_and_never_drawn(run_dir):
    broken = record(status="wrong", reason="y: floor_ratio nan is beyond 1.05".replace("nan", "not a number"))
    broken.errors = [tensor_error("y", "fp16", 2.0, floor_ratio=math.nan, scale_error=math.inf, rel_l2_error=math.nan)]
    masks = record(dtype="bf16", status="wrong", reason="y: NaN or Inf in other places than the reference")
    masks.errors = [tensor_error("y", "bf16", 0.5, masks_match=False, ok=False, decided_by="masks_match", bound=None)]
    missing = record(dtype="fp32", status="wrong", reason="y: missing")
    missing.errors = [TensorError("y", "fp32", None, None, None, None, None, None, False, False, "missing", None)]
    shown = page(run_dir([broken, masks, missing, record(provider="torch")]))
    figures = shown.column("worst figure")
    assert figures[broken.cell] == "y floor_ratio not finite (bound 1.05)"
    assert figures[masks.cell] == "y: NaN or Inf in other places than the reference"
    assert figures[missing.cell] == "y: missing"
    assert "1 value not finite, not drawn" in shown.section("accuracy")
    assert not re.search(r'="[^"]*\b(nan|inf)\b', shown.html)


def test_families_of_inputs_are_counted_and_the_error_is_drawn_against_the_mean(run_dir):
    kinds = [("normal", 0.0), ("offset", 1e2), ("offset", 1e4), ("huge", 0.0)]
    made = [
        record(dtype="fp32", provider=name, inputs=inputs, offset=offset, status="wrong" if wrong else "ok")
        for (inputs, offset), name in product(kinds, ("normlib", "torch"))
        for wrong in [name == "torch" and offset == 1e4]
    ]
    made[-1].errors[0].rel_l2_error = math.nan
    folder = run_dir(made)
    shown = page(folder)
    text = shown.section("accuracy")
    assert "mean/std 1e4 in every statistic" in text and "0 of 1" in text
    assert any(label.startswith("rel_l2_error against mean/std of x") for label in shown.labels)
    (drawn,) = re.findall(r'id="against-mean-std-layer-norm-fp32-y".*?</svg>', shown.html)
    ticks = re.findall(r'class="tick" text-anchor="middle"[^>]*>([^<]*)', drawn)
    assert ticks == ["≤ 3", "100", "1e4"]
    found = families(load(folder), "layer_norm")
    assert [(f["name"], f["right"]["torch"]) for f in found] == [
        ("normal", (1, 1)), ("offset", (1, 1)), ("offset", (0, 1)), ("huge", (1, 1)),
    ]  # fmt: skip


def test_the_page_says_whose_rows_depend_on_the_batch(run_dir):
    told = {"normlib": (True, True), "torch": (True, False), "liger": (None, None)}
    made = [
        record(provider=name, dtype=dtype, batch_invariant=same)
        for name, both in told.items()
        for dtype, same in zip(("fp16", "bf16"), both, strict=True)
    ]
    same = "The bits of a row are the same whatever rows are beside it: normlib; "
    assert same + "they depend on them: torch (in 1 cell of 2)." in page(run_dir(made)).text
    assert batches(load(run_dir([replace(one, batch_invariant=None) for one in made])), "layer_norm") == ""


def test_a_run_of_normal_inputs_has_no_families(run_dir):
    folder = run_dir([record()])
    assert families(load(folder), "layer_norm") == []
    assert "family of inputs" not in page(folder).section("accuracy")


def test_the_bounds_are_those_that_accuracy_judges_by():
    from bench.measure import accuracy

    assert BOUNDS["rel_l2_error", "fp32"] == (accuracy.ROUNDINGS * accuracy.STATISTIC_ROUNDING,) * 2
    assert BOUNDS["floor_ratio", "fp16"] == BOUNDS["floor_ratio", "bf16"] == (accuracy.FLOOR_RATIO_BOUND,) * 2
    assert BOUNDS["error_vs_torch", "fp32"] == (accuracy.ERROR_VS_TORCH_BOUND,) * 2
    for dtype, least in accuracy.SCALE_BOUND.items():
        assert BOUNDS["scale_error", dtype][0] == least
    assert BOUNDS["scale_error", "fp32"][1] == accuracy.SCALE_BOUND["fp32"] + accuracy.STATISTIC_ROUNDING


def test_a_figure_has_the_bounds_that_its_own_records_carry_and_else_the_published_ones():
    rows = [("scale_error", "fp32", 2e-7), ("scale_error", "fp32", 3e-7), ("scale_error", "fp16", 1e-5)]
    carried = pd.DataFrame(rows, columns=["decided_by", "dtype", "bound"])
    assert bounds_of(carried, "scale_error", "fp32") == (2e-7, 3e-7)
    assert bounds_of(carried, "scale_error", "bf16") == BOUNDS["scale_error", "bf16"]


def test_each_tensors_error_is_drawn_against_size_with_its_bound(run_dir):
    grid = [{"tokens": n, "hidden": 64} for n in (8, 512)]
    records = [record(axes=axes, mode="bwd", dtype=dtype) for axes in grid for dtype in ("fp32", "fp16")]
    shown = page(run_dir(records))
    for tensor in ("dx", "dw", "db"):
        for dtype in ("fp32", "fp16"):
            (drawn,) = re.findall(rf'id="against-size-layer-norm-{dtype}-{tensor}".*?</svg>', shown.html)
            assert 'data-p="normlib"' in drawn and drawn.count('class="limit"') == 1
