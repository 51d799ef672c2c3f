"""The figures of speed."""

import re
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from report_runs import PROVIDERS, ROOT, page, record, resnet50, sweep, write

from bench.page import palette, svg
from bench.page.formatting import duration, number, size
from bench.report.figures.points import points as points_of


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    return page(write(tmp_path_factory.mktemp("run"), sweep()))


def points(shown, name):
    """Returns the points of a chart: (provider, text, the cell that it leads to), with x and y in pixels."""
    (found,) = re.findall(
        rf'<figure data-points="(\d+)"><figcaption>[^<]*</figcaption><svg class="chart" id="{name}"', shown.html
    )
    panel, providers, rows = shown.points["panels"][int(found)], [*shown.points["providers"], ""], shown.data["rows"]
    columns = (panel[key] for key in ("who", "said", "at", "x", "y"))
    return [
        (providers[w], said, rows[at]["id"] if at is not None else None, x, y)
        for w, said, at, x, y in zip(*columns, strict=True)
    ]


def series(shown, name):
    """The providers that are drawn in a chart, with the colour of each."""
    (drawn,) = re.findall(rf'<svg class="chart" id="{name}".*?</svg>', shown.html)
    return dict(re.findall(r'<g class="series" data-p="([^"]+)" data-s="[^"]*" style="stroke:([^;]+);', drawn))


def test_every_provider_is_in_the_figures(full_page):
    assert series(full_page, "gbps-batch-norm-fwd-fp16-nhwc").keys() == set(PROVIDERS)
    assert series(full_page, "error-batch-norm-fp16-floor-ratio").keys() == set(PROVIDERS)
    for op, mode, dtype in product(("layer-norm", "rms-norm"), ("fwd", "bwd"), ("fp32", "fp16")):
        assert "normlib" in series(full_page, f"gbps-{op}-{mode}-{dtype}")
        assert f"speedup-{op}-{mode}-{dtype}" in full_page.ids and f"peer-{op}-{mode}-{dtype}" in full_page.ids


def test_a_provider_keeps_its_colour_in_every_figure(full_page):
    for provider in ("normlib", "torch", "torch_compile"):
        drawn = re.findall(rf'data-p="{provider}" data-s="[^"]*" style="stroke:([^;]+);fill:([^"]+)"', full_page.html)
        assert len(drawn) > 10 and len(set(drawn)) == 1 and drawn[0][0] == drawn[0][1]


def test_a_chart_tells_each_providers_own_figures_where_they_are_drawn_and_leads_to_their_cells(run_dir):
    """No two providers, sizes or figures of this run share a value."""
    made = {
        (name, n): record(axes={"tokens": n, "hidden": 64}, provider=name, latency_us=us * n)
        for name, us in (("normlib", 0.11), ("torch", 0.17), ("cudnn", 0.13))
        for n in (8, 512)
    }
    shown = page(run_dir(list(made.values())))
    at = lambda one, us: f"{number(one.gbps * one.latency_us / us)} GB/s"
    for chart, axes, written in (
        (
            "gbps-layer-norm-fwd-fp16",
            ["size of x", "GB/s"],
            lambda one: f"{at(one, one.latency_us)}, {at(one, one.latency_us_p90)} to {at(one, one.latency_us_p10)}",
        ),
        (
            "time-layer-norm-fwd-fp16",
            ["size of x", "time of a call"],
            lambda one: "{}, {} to {}".format(*map(duration, (one.latency_us, one.latency_us_p10, one.latency_us_p90))),
        ),
        (
            "roofline-layer-norm-fwd-fp16",
            ["bytes that must move", "GB/s"],
            lambda one: f"{number(one.gbps)} GB/s, {size(one.bytes_moved)}",
        ),
    ):
        found = points(shown, chart)
        (drawn,) = re.findall(rf'id="{chart}".*?</svg>', shown.html)
        assert re.findall(r'<text class="axis"[^>]*>([^<]*)', drawn) == axes
        assert {(provider, cell) for provider, _, cell, *_ in found} == {
            (name, one.cell) for (name, _), one in made.items()
        }
        by_cell = {cell: (text, x, y) for _, text, cell, x, y in found}
        for one in made.values():
            assert by_cell[one.cell][0] == written(one)
        small, large = (by_cell[made["normlib", n].cell] for n in (8, 512))
        assert small[1] < large[1]
        heights = [by_cell[made[name, 512].cell][2] for name in ("normlib", "cudnn", "torch")]
        assert heights == sorted(heights, reverse=chart.startswith("time"))


def test_the_dashed_line_of_times_is_what_a_copy_takes(run_dir):
    """Of a provider that takes as long as a copy at 4000 GB/s."""
    us = {n: n * 4096 * 4 / 4e6 for n in (8192, 65536)}
    sized = [({"tokens": n, "hidden": 4096}, copy) for n, copy in us.items()]
    takes = {"normlib": 2.0, "torch": 1.0}
    shown = page(run_dir([record(axes=a, provider=p, latency_us=k * t) for a, t in sized for p, k in takes.items()]))
    (roof,) = re.findall(r'id="time-layer-norm-fwd-fp16".*?class="roof" d="M([^"]+)"', shown.html)
    x, y, right, down = map(int, re.split("[ l]", roof))
    told = points(shown, "time-layer-norm-fwd-fp16")
    assert [at for name, _, _, *at in told if name == "torch"] == [[x, y], [x + right, y + down]]


def test_a_map_of_very_many_squares_writes_no_numbers(run_dir, monkeypatch):
    """Else the page of a hundred thousand cells holds as many words."""
    grid = [{"tokens": 2**m, "hidden": 2**n} for m in range(4, 12) for n in range(5, 13)]
    folder = run_dir([record(axes=axes, provider=name) for axes in grid for name in ("normlib", "torch")])
    words = []
    for most in (len(grid), len(grid) - 1):
        monkeypatch.setattr("bench.report.figures.maps.SQUARES_WRITTEN", most)
        (drawn,) = re.findall(r'<svg class="chart" id="speedup-layer-norm-fwd.*?</svg>', page(folder).html)
        words.append(drawn.count("<text"))
    assert words[0] - words[1] == len(grid)


def test_a_heat_map_shows_the_lowest_speedup_and_what_is_not_ok(run_dir):
    names = ("batch", "channels", "spatial")
    speedups = {(1, 64, "7x7"): 1.9, (1, 64, "14x14"): 0.81, (256, 64, "7x7"): 1.3, (32, 128, "7x7"): 1.5}
    records = [
        record("batch_norm", dict(zip(names, axes, strict=True)), layout="nchw", baseline_us=10.0 * speedup)
        for axes, speedup in speedups.items()
    ]
    records.append(record("batch_norm", {"batch": 256, "channels": 128, "spatial": "7x7"}, layout="nchw", status="oom"))
    shown = page(run_dir(records))
    drawn = re.search(r'<svg[^>]*aria-label="speedup over torch by batch and channels".*?</svg>', shown.html)
    assert drawn
    words = re.findall(r"<text[^>]*>([^<]+)</text>", drawn[0])
    assert words.index("256") < words.index("32") < words.index("1")  # from the bottom
    assert {"0.810", "1.30", "1.50", "oom"} <= set(words) and "1.90" not in words
    told = {text: (cell, x, y) for _, text, cell, x, y in points(shown, "speedup-batch-norm-fwd-fp16-nchw")}
    assert told["0.810× over torch"][0] == records[1].cell and told["oom"][0] == records[-1].cell  # noqa: RUF001
    # Channels 64 left of 128, batch 32 above 256.
    assert told["1.30× over torch"][1] < told["1.50× over torch"][1] == told["oom"][1]  # noqa: RUF001
    assert told["1.50× over torch"][2] < told["1.30× over torch"][2] == told["oom"][2]  # noqa: RUF001
    squares = dict(re.findall(r'<path class="paper" fill="(#[0-9a-f]+)" d="M([0-9.]+ [0-9.]+)', drawn[0]))
    blue, orange = (
        sum(int(c[5:], 16) - int(c[1:3], 16) > 0 for c in squares),
        sum(int(c[5:], 16) - int(c[1:3], 16) < 0 for c in squares),
    )
    assert (blue, orange) == (2, 1)


def test_the_labels_of_a_large_map_do_not_touch(run_dir):
    grid = [{"tokens": 2**m, "hidden": 2**n} for m in range(2) for n in range(18)]
    shown = page(run_dir([record(axes=axes, provider=name) for axes in grid for name in ("normlib", "torch")]))
    (drawn,) = re.findall(r'<svg class="chart" id="speedup-layer-norm-fwd.*?</svg>', shown.html)
    labels = re.findall(r'class="tick" text-anchor="middle" x="([0-9.]+)"[^>]*>([^<]+)', drawn)
    ends = [(float(x) - 3.2 * len(text), float(x) + 3.2 * len(text)) for x, text in labels]
    assert len(ends) > 3 and all(right < left for (_, right), (left, _) in pairwise(ends))


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_provider_stands_out_from_light_and_from_dark_paper():
    sheet = (ROOT / "bench/page/style.css").read_text(encoding="utf-8")
    pairs = {name: (light, dark) for name, light, dark in re.findall(r"--(\w+): light-dark\((#\w+), (#\w+)\)", sheet)}
    for place in range(len(palette.COLOURS)):
        for paper in ("paper", "ground"):
            for colour, under in zip(pairs[f"p{place}"], pairs[paper], strict=True):
                low, high = sorted((luminance(colour), luminance(under)))
                assert (high + 0.05) / (low + 0.05) >= 3, (place, colour, under)


# Deuteranopia and protanopia on linear RGB, Machado, Oliveira and Fernandes 2009.
SEEN = {
    "all": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}


@pytest.mark.parametrize("paper", ["light", "dark"])
@pytest.mark.parametrize("seen", SEEN)
def test_no_two_providers_look_alike_to_the_colour_blind(paper, seen):
    """Distances in Oklab; 0.02 is just noticeable side by side."""
    sheet = (ROOT / "bench/page/style.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--p\d: light-dark\((#\w+), (#\w+)\)", sheet)
    rgb = np.array([[int(pair[paper == "dark"][at : at + 2], 16) / 255 for at in (1, 3, 5)] for pair in pairs])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ SEEN[seen].T
    to_lms = [[0.41222, 0.53633, 0.05145], [0.2119, 0.6807, 0.1074], [0.0883, 0.28172, 0.62998]]
    to_lab = [[0.21045, 0.79362, -0.00407], [1.978, -2.42859, 0.45059], [0.0259, 0.78277, -0.80868]]
    lab = np.cbrt(linear.clip(0) @ np.array(to_lms).T) @ np.array(to_lab).T
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(lab, 2)) > 0.06


def test_known_providers_have_the_same_colour_and_shape_whoever_else_is_there():
    few, many = palette.keys(["normlib", "liger"]), palette.keys(["apex", "torch", "normlib", "mine", "liger", "cudnn"])
    drawn = lambda key: (key.colour, key.css, key.marker, key.path)
    assert all(drawn(few[name]) == drawn(many[name]) for name in few)
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


def test_a_line_of_very_many_sizes_keeps_its_extremes():
    """Else a panel of a long sweep holds thousands of markers, which cover each other."""
    x = np.arange(1.0, 200.0) * 128
    high = np.where(np.arange(199) == 100, 40.0, 12.0)
    found = points_of(x, np.full(199, 10.0), np.full(199, 9.0), high, np.arange(199))
    assert len(found.x) <= 40 and found.high.max() == 40.0 and found.count.sum() == 199
    assert found.x.min() == pytest.approx(128) and found.x.max() == pytest.approx(199 * 128, rel=0.1)


def test_a_point_is_the_median_of_its_size_and_the_cell_in_the_middle():
    found = points_of(*(np.array(c, float) for c in ([1, 2, 2, 2, 1], [5, 9, 1, 4, 7], [0] * 5, [9] * 5)), np.arange(5))
    assert found.y.tolist() == [6.0, 4.0] and found.place.tolist() == [0, 3] and found.count.tolist() == [2, 3]


def test_a_model_is_one_bar_a_provider_and_who_lacks_a_shape_is_named(run_dir):
    records = resnet50()
    next(one for one in records if one.provider == "cudnn").status = "oom"
    shown = page(run_dir(records, arguments={"preset": "resnet50"}))
    (label,) = [label for label in shown.labels if label.startswith("all 53 batch norms")]
    sums = dict(re.findall(r"(\w+) ([0-9.]+) ms", label.partition(": ")[2]))
    assert list(sums) == ["normlib", "torch_compile", "torch"]  # the fastest first; cudnn has none
    (drawn,) = re.findall(r'<svg class="chart" id="model-resnet50.*?</svg>', shown.html)
    assert re.findall(r'<text x="[^"]*" y="[^"]*">([^<]*)', drawn) == list(sums.values())
    assert "cudnn has no sum: it lacks 64x112x112 (oom)." in shown.section("throughput")
