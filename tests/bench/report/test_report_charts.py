"""Every chart of a run in which no two values are alike, read back by its own labels and compared with the records."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from itertools import product
from statistics import median

import pytest
from drawn_chart import along, charts
from report_runs import page, record, resnet50, shape_of, tensor_error, write

from bench.page import palette
from bench.page.chart import slug
from bench.results.thresholds import LEAST_ERROR

# The sizes of x are no powers of two of each other, and no axis is as long as another.
GRIDS = {
    "layer_norm": [{"tokens": m, "hidden": n} for m in (24, 700, 20000) for n in (96, 1100)],
    "batch_norm": [
        {"batch": n, "channels": c, "spatial": s} for n, c, s in ((2, 48, "5x5"), (30, 48, "9x7"), (2, 640, "9x7"))
    ],
}
LAYOUTS = {"layer_norm": ("",), "batch_norm": ("nchw", "nhwc")}


def asymmetric():
    """Each record has times, errors and clocks of its own; one cell of the subject is out of memory, one is wrong."""
    dice = random.Random(11)
    made = []
    for op, grid in GRIDS.items():
        for axes, dtype, layout, mode in product(grid, ("fp32", "bf16"), LAYOUTS[op], ("fwd", "bwd")):
            moved = 2 * math.prod(shape_of(axes)) * (4 if dtype == "fp32" else 2)
            us = {name: (3 + moved / 2e6) * dice.uniform(1, 4) for name in ("normlib", "torch", "cudnn")}
            for name, latency_us in us.items():
                one = record(op, axes, dtype, layout, mode, name, latency_us=latency_us, baseline_us=us["torch"])
                one.latency_us_p10, one.latency_us_p90 = (
                    latency_us * dice.uniform(*ends) for ends in ((0.8, 0.9), (1.1, 1.4))
                )
                one.errors = [tensor_error(error.tensor, dtype, dice.uniform(0.4, 0.99)) for error in one.errors]
                for error in one.errors:
                    error.scale_error *= dice.uniform(0.5, 2)
                one.sm_clock_mhz, one.mem_clock_mhz = dice.uniform(1200, 1900), dice.uniform(2000, 2600)
                one.power_w, one.temperature_c = dice.uniform(200, 650), dice.uniform(30, 80)
                made.append(one)
    ours = [one for one in made if one.provider == "normlib"]
    for one, status in ((ours[3], "oom"), (ours[-1], "wrong")):
        one.status, one.speedup = status, None
    return made


@pytest.fixture(scope="module")
def made():
    return {one.cell: one for one in asymmetric()}


@pytest.fixture(scope="module")
def shown(made, tmp_path_factory):
    return page(write(tmp_path_factory.mktemp("run"), [*made.values()]))


@pytest.fixture(scope="module")
def drawn(shown):
    return charts(shown)


def size_of(one):
    return math.prod(one.shape) * (4 if one.dtype == "fp32" else 2)


def tensor_of(one, name):
    return next(error for error in one.errors if error.tensor == name)


# By kind of chart: the titles of its axes, and the values of a record on them.
LINES = {
    "gbps": (("size of x", size_of), ("GB/s", lambda one: one.gbps)),
    "time": (("size of x", size_of), ("time of a call", lambda one: one.latency_us)),
    "roofline": (("bytes that must move", lambda one: one.bytes_moved), ("GB/s", lambda one: one.gbps)),
}


def of_case(one, *kind):
    return slug(*kind, one.op, one.mode, one.dtype, one.layout)


def timed(made):
    return [one for one in made.values() if one.status == "ok"]


@pytest.mark.parametrize("kind", LINES)
def test_each_point_of_a_line_is_its_cells_and_each_cell_has_one(kind, made, drawn):
    (x_title, x_of), (y_title, y_of) = LINES[kind]
    named = lambda one: slug(kind, one.op, one.mode, one.dtype) if kind == "roofline" else of_case(one, kind)
    mine = {name: one for name, one in drawn.items() if name.startswith(f"{kind}-")}
    assert set(mine) == {named(one) for one in timed(made)}
    for name, chart in mine.items():
        expected = [one for one in timed(made) if named(one) == name]
        assert (chart.x.title, chart.y.title) == (x_title, y_title)
        assert chart.title == " ".join(
            filter(None, (expected[0].dtype, "" if kind == "roofline" else expected[0].layout))
        )
        found, every = (Counter((one.provider, one.cell) for one in some) for some in (chart.told, expected))
        if kind == "roofline":  # leaves out a dot that another would cover
            assert found <= every and found.total() >= 0.75 * every.total()
        else:
            assert found == every
        for told in chart.told:
            one = made[told.cell]
            assert chart.x.is_near(told.x, x_of(one)), (name, told, x_of(one))
            assert chart.y.is_near(told.y, y_of(one)), (name, told, y_of(one))


@pytest.mark.parametrize("kind", LINES)
def test_a_providers_line_goes_through_its_points_in_its_own_colour(kind, drawn):
    keys = palette.keys(["normlib", "torch", "cudnn"])
    for name, chart in drawn.items():
        if not name.startswith(f"{kind}-"):
            continue
        series = chart.series()
        assert set(series) == {told.provider for told in chart.told}
        for provider, (colour, parts) in series.items():
            line = parts[-1]
            assert colour == keys[provider].css and f"marker:url(#{keys[provider].id})" in line.get("style")
            assert sorted(along(line)) == sorted((told.x, told.y) for told in chart.told if told.provider == provider)


def test_a_band_is_from_the_tenth_to_the_ninetieth_percentile(made, drawn):
    """Of times the 10th is below, of bandwidths what belongs to it is above."""
    ends = {
        "time": lambda one: (one.latency_us_p10, one.latency_us_p90),
        "gbps": lambda one: (one.bytes_moved / one.latency_us_p90 / 1e3, one.bytes_moved / one.latency_us_p10 / 1e3),
    }
    looked = 0
    for name, chart in drawn.items():
        if (kind := name.split("-")[0]) not in ends:
            continue
        for provider, (_, parts) in chart.series().items():
            mine = [told for told in chart.told if told.provider == provider]
            if len(mine) < 2:
                continue
            (band,) = [one for one in parts if one.get("class") == "band"]
            at = {}
            for x, y in along(band):
                at.setdefault(x, []).append(y)
            for told in mine:
                low, high = ends[kind](made[told.cell])
                bottom, top = max(at[told.x]), min(at[told.x])
                assert chart.y.is_near(bottom, low) and chart.y.is_near(top, high), (name, told)
                looked += 1
    assert looked > 50


def test_the_copys_line_is_at_the_bandwidth_of_the_run(drawn):
    for name, chart in drawn.items():
        if name.startswith("gbps-"):
            (roof,) = [one for one in chart.element if one.get("class") == "roof"]
            assert all(chart.y.is_near(y, 4000) for _, y in along(roof))
            assert "copy 4,000" in chart.words("").values()


@pytest.mark.parametrize("kind", ["speedup", "peer"])
def test_each_square_of_a_map_is_the_subjects_cell_of_its_labels(kind, made, drawn):
    mine = {name: one for name, one in drawn.items() if name.startswith(f"{kind}-")}
    ours = [one for one in made.values() if one.provider == "normlib"]
    assert set(mine) == {of_case(one, kind) for one in ours}
    others = {"speedup": ("torch",), "peer": ("cudnn", "torch")}[kind]
    over = {"speedup": "torch", "peer": "the best peer"}[kind]
    for name, chart in mine.items():
        cells = [one for one in ours if of_case(one, kind) == name]
        down, across = chart.y.title, chart.x.title
        told = {(chart.y.label(one.y), chart.x.label(one.x)): one for one in chart.told}
        assert len(told) == len(chart.told) and set(told) == {(str(o.axes[down]), str(o.axes[across])) for o in cells}
        written = {
            (chart.y.label(y - 3.5), chart.x.label(x)): text
            for kind_ in ("small fixed middle", "small muted middle")
            for (x, y), text in chart.words(kind_).items()
        }
        colours = {
            (chart.y.label(float(y) + high / 2), chart.x.label(float(x) + wide / 2)): square.get("fill")
            for square in chart.element
            if square.get("class") == "paper"
            for x, y, wide, high in [
                map(float, one) for one in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h", square.get("d"))
            ]
        }
        for square, one in told.items():
            (cell,) = [o for o in cells if (str(o.axes[down]), str(o.axes[across])) == square]
            assert one.cell == cell.cell
            if cell.status != "ok":
                assert (one.text, written[square]) == (cell.status, cell.status) and square not in colours
                continue
            best = min(made[cell.cell.replace("normlib", name)].latency_us for name in others)
            ratio = best / cell.latency_us
            assert float(re.match(r"[\d.]+", one.text)[0]) == pytest.approx(ratio, rel=6e-3)
            assert one.text.endswith(f"× over {over}") and float(written[square]) == pytest.approx(ratio, rel=6e-3)  # noqa: RUF001
            place = palette.DIVERGING.index(colours[square])
            assert place == 20 if abs(math.log2(ratio)) < 0.01 else (place > 20) == (ratio > 1)


def test_each_bar_of_errors_is_a_tensors_of_its_provider(made, drawn):
    mine = {name: one for name, one in drawn.items() if name.startswith("error-")}
    judged = {"fp32": "error_vs_torch", "bf16": "floor_ratio"}
    assert set(mine) == {slug("error", op, d, f) for op in GRIDS for d in judged for f in (judged[d], "scale_error")}
    for op, dtype in product(GRIDS, judged):
        for figure in (judged[dtype], "scale_error"):
            chart = mine[slug("error", op, dtype, figure)]
            assert chart.x.title == figure and chart.title == f"{dtype} tensors: {figure}"
            found = {}
            for one in made.values():
                if (one.op, one.dtype) == (op, dtype):
                    for error in one.errors:
                        found.setdefault((error.tensor, one.provider), []).append((getattr(error, figure), one.cell))
            ends = {(t.provider, chart.y.label(t.y)): t for t in chart.told}
            assert len(ends) == len(chart.told) and set(ends) == {(who, tensor) for tensor, who in found}
            for (tensor, who), values in found.items():
                told, ordered = ends[who, tensor], sorted(values)
                assert chart.x.is_near(told.x, median(value for value, _ in values))
                assert told.text.startswith(f"{tensor}: ") and told.cell == ordered[-1][1]
                bar, dots = chart.series()[who][1]
                assert (told.x, told.y) in along(dots)
                (reach,) = [
                    (float(left), float(right))
                    for left, y, right in re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)", bar.get("d"))
                    if chart.y.label(float(y)) == tensor
                ]
                assert chart.x.is_near(reach[0], ordered[0][0]) and chart.x.is_near(reach[1], ordered[-1][0])


def test_errors_against_size_are_those_of_the_tensor_and_size(made, drawn):
    mine = {name: one for name, one in drawn.items() if name.startswith("against-size-")}
    assert mine
    drawn_by = {"fp32": "rel_l2_error", "bf16": "floor_ratio"}
    for op, dtype in product(GRIDS, drawn_by):
        for tensor in ("y", "dx", "dw", "db"):
            chart = mine[slug("against", "size", op, dtype, tensor)]
            assert chart.title == f"{tensor}, {dtype}" and chart.x.title == "size of x"
            for told in chart.told:
                one = made[told.cell]
                assert (one.op, one.dtype, one.provider) == (op, dtype, told.provider)
                assert chart.x.is_near(told.x, size_of(one))
                alike = [
                    max(getattr(tensor_of(o, tensor), drawn_by[dtype]), LEAST_ERROR)
                    for o in made.values()
                    if (o.op, o.dtype, o.provider, size_of(o)) == (op, dtype, told.provider, size_of(one))
                    and any(error.tensor == tensor for error in o.errors)
                ]
                assert chart.y.is_near(told.y, median(alike)), (chart.name, told)
            sizes = {(o.provider, size_of(o)) for o in made.values() if (o.op, o.dtype) == (op, dtype)}
            assert len(chart.told) == len(sizes)


@pytest.mark.parametrize(
    ("column", "unit"),
    [("sm_clock_mhz", "MHz"), ("mem_clock_mhz", "MHz"), ("power_w", "W"), ("temperature_c", "°C")],
)
def test_the_state_over_the_run_is_each_cells_in_its_turn(column, unit, made, drawn):
    chart = drawn[slug("run", column)]
    cells = timed(made)
    assert chart.y.title == unit and {told.cell for told in chart.told} <= {one.cell for one in cells}
    for told in chart.told:
        place = next(i for i, one in enumerate(cells, 1) if one.cell == told.cell)
        assert chart.x.is_near(told.x, place) and chart.y.is_near(told.y, getattr(made[told.cell], column))
        assert told.provider == made[told.cell].provider


def test_each_part_of_a_models_bar_is_the_time_of_its_shape_under_its_provider(tmp_path):
    """Lengths by the axis's own labels, so that a bar of another provider, or in another unit, is seen."""
    records = resnet50()
    found = charts(page(write(tmp_path / "run", records, arguments={"preset": "resnet50"})))
    (chart,) = [one for name, one in found.items() if name.startswith("model-")]
    assert chart.x.title == "ms"
    series = chart.series()
    sums = set(chart.words("").values())
    for provider in ("normlib", "torch", "torch_compile", "cudnn"):
        colour, bars = series[provider]
        assert colour == palette.keys([*series])[provider].css
        told = [one for one in chart.told if one.provider == provider]
        assert {chart.y.label(one.y) for one in told} == {provider}
        assert {chart.y.label(float(bar.get("y")) + 11) for bar in bars} == {provider}
        each = {"x".join(map(str, one.shape[1:])): one.latency_us / 1e3 for one in records if one.provider == provider}
        left = 0.0
        for one, bar in zip(told, bars, strict=True):
            count, shape, ms = re.fullmatch(r"(?:(\d+) of )?(\S+): ([\d.]+) ms", one.text).groups()
            part = int(count or 1) * each.pop(shape)
            assert float(ms) == pytest.approx(part, rel=6e-3)
            begins, wide = float(bar.get("x")), float(bar.get("width"))
            assert chart.x.is_near(begins, left) and chart.x.is_near(begins + wide, left + part)
            assert begins - 1 <= one.x <= begins + wide + 1
            left += part
        assert not each
        assert any(float(text) == pytest.approx(left, rel=6e-3) for text in sums)
