"""The figures of speed."""

import re
from itertools import product

import pytest
from report_runs import ROOT, page, record, resnet50, sweep, write

from bench.page import axes, palette, svg
from bench.results.load import load


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    return page(write(tmp_path_factory.mktemp("run"), sweep()))


def test_every_provider_is_in_the_figures(full_page):
    for provider in ("normlib", "torch", "torch-compile", "cudnn"):
        assert any(re.fullmatch(rf"gbps-batch-norm-fwd-fp16-nhwc-line-{provider}", name) for name in full_page.ids)
        assert any(re.fullmatch(rf"error-batch-norm-fp16-floor-ratio-dots-{provider}", name) for name in full_page.ids)
    for op, mode, dtype in product(("layer-norm", "rms-norm"), ("fwd", "bwd"), ("fp32", "fp16")):
        assert f"gbps-{op}-{mode}-{dtype}-line-normlib" in full_page.ids
        assert f"speedup-{op}-{mode}-{dtype}-figure_1" in full_page.ids


def test_a_provider_keeps_its_colour_in_every_figure(full_page):
    for provider in ("normlib", "torch", "torch-compile"):
        drawn = re.findall(rf'<g id="gbps-[a-z0-9-]+-line-{provider}"><path [^>]*?stroke: (#[0-9a-f]+)', full_page.html)
        assert len(drawn) > 10 and len(set(drawn)) == 1


def test_a_map_of_very_many_squares_writes_no_numbers(run_dir, monkeypatch):
    """Else the page of a hundred thousand cells holds as many words."""
    grid = [{"tokens": 2**m, "hidden": 2**n} for m in range(4, 12) for n in range(5, 13)]
    folder = run_dir([record(axes=axes, provider=name) for axes in grid for name in ("normlib", "torch")])
    words = []
    for most in (len(grid), len(grid) - 1):
        monkeypatch.setattr("bench.report.figures.maps.SQUARES_WRITTEN", most)
        html = page(folder).html
        (drawn,) = re.findall(r'<svg (?:(?!</svg>).)*?id="speedup-layer-norm-fwd.*?</svg>', html, re.DOTALL)
        words.append(drawn.count("<text"))
    assert words[0] - words[1] >= len(grid)


def test_a_heat_map_shows_the_lowest_speedup_and_what_is_not_ok(run_dir):
    names = ("batch", "channels", "spatial")
    speedups = {(1, 64, "7x7"): 1.9, (1, 64, "14x14"): 0.81, (256, 64, "7x7"): 1.3, (32, 128, "7x7"): 1.5}
    records = [
        record("batch_norm", dict(zip(names, axes, strict=True)), layout="nchw", baseline_us=10.0 * speedup)
        for axes, speedup in speedups.items()
    ]
    records.append(record("batch_norm", {"batch": 256, "channels": 128, "spatial": "7x7"}, layout="nchw", status="oom"))
    html = page(run_dir(records)).html
    drawn = re.search(r'<svg[^>]*aria-label="speedup of normlib over batch and channels".*?</svg>', html)
    assert drawn
    words = re.findall(r"<text[^>]*>([^<]+)</text>", drawn[0])
    assert words.index("1") < words.index("32") < words.index("256")
    assert {"0.810", "1.30", "1.50", "oom"} <= set(words) and "1.90" not in words


def test_known_providers_have_the_same_colour_and_shape_whoever_else_is_there():
    few, many = palette.keys(["normlib", "liger"]), palette.keys(["apex", "torch", "normlib", "mine", "liger", "cudnn"])
    assert few["liger"] == many["liger"] and few["normlib"] == many["normlib"]
    assert len({key.colour for key in many.values()}) == len(many)


def test_every_provider_of_bench_has_a_colour_of_its_own_beside_the_subject_and_the_baseline():
    from bench.measure.providers import providers

    assert set(providers()) == set(palette.PLACES)
    drawn = palette.keys(list(palette.PLACES))
    assert len({(key.colour, key.marker) for key in drawn.values()}) == len(drawn)


def test_the_figures_light_colours_are_those_of_the_style_sheet():
    sheet = (ROOT / "bench/page/style.css").read_text(encoding="utf-8")
    for colour, variable in svg.VARIABLES.items():
        assert f"{variable}: light-dark({colour}, " in sheet


def test_a_line_of_very_many_sizes_keeps_its_extremes(run_dir):
    """Else a panel of a long sweep holds thousands of markers, which cover each other."""
    records = [record(axes={"tokens": n, "hidden": 64}, latency_us=10.0) for n in range(1, 200)]
    records[100].latency_us_p90 = 40.0
    cells = load(run_dir(records)).cells
    cells = cells.assign(low=cells["latency_us_p10"], high=cells["latency_us_p90"])
    points = axes._points(cells, "size", "latency_us")
    assert len(points) <= 40 and points["high"].max() == 40.0
    assert points["size"].min() == 128 and points["size"].max() == pytest.approx(199 * 128, rel=0.1)


def test_a_model_is_one_bar_a_provider_and_who_lacks_a_shape_is_named(run_dir):
    records = resnet50()
    next(one for one in records if one.provider == "cudnn").status = "oom"
    shown = page(run_dir(records, arguments={"preset": "resnet50"}))
    (label,) = [label for label in shown.labels if label.startswith("all 53 batch norms")]
    assert "normlib" in label and "torch_compile" in label and "cudnn" not in label
    assert "cudnn has no sum: it lacks 64x112x112 (oom)." in shown.section("throughput")
