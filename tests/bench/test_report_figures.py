"""The figures of speed."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from report_runs import Page, page, record, sweep, write

from bench.report import render


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page(write(tmp_path_factory.mktemp("run"), sweep()))


def test_every_provider_is_in_the_figures(full_page: Page) -> None:
    for provider in ("normlib", "torch", "torch-compile", "cudnn"):
        assert any(re.fullmatch(rf"gbps-batch-norm-fwd-fp16-nhwc-line-{provider}", name) for name in full_page.ids)
        assert any(re.fullmatch(rf"error-batch-norm-fp16-floor-ratio-dots-{provider}", name) for name in full_page.ids)
    for op, mode, dtype in product(("layer-norm", "rms-norm"), ("fwd", "bwd"), ("fp32", "fp16", "bf16")):
        assert f"gbps-{op}-{mode}-{dtype}-line-normlib" in full_page.ids
        assert f"speedup-{op}-{mode}-{dtype}-figure_1" in full_page.ids


def test_a_provider_keeps_its_colour_in_every_figure(full_page: Page) -> None:
    for provider in ("normlib", "torch", "torch-compile"):
        drawn = re.findall(rf'<g id="gbps-[a-z0-9-]+-line-{provider}"><path [^>]*?stroke: (#[0-9a-f]+)', full_page.html)
        assert len(drawn) > 10 and len(set(drawn)) == 1


def elements(html: str, start: str, tag: str) -> int:
    """How many elements of a kind the figures have whose ids begin so."""
    figures = re.findall(rf'<svg (?:(?!</svg>).)*?id="{start}.*?</svg>', html, re.DOTALL)
    assert figures
    return sum(figure.count(f"<{tag}") for figure in figures)


def test_a_map_of_very_many_squares_writes_no_numbers(
    run_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the page of a hundred thousand cells holds as many words."""
    grid: list[dict[str, int | str]] = [{"tokens": 2**m, "hidden": 2**n} for m in range(4, 12) for n in range(5, 13)]
    records = [record(axes=axes, provider=name) for axes in grid for name in ("normlib", "torch")]
    every = render(run_dir(records)).read_text(encoding="utf-8")
    monkeypatch.setattr("bench.report.figures.maps.SQUARES_WRITTEN", len(grid) - 1)
    few = page(run_dir([])).html
    words = [elements(html, "speedup-layer-norm-fwd", "text") for html in (every, few)]
    assert words[0] - words[1] >= len(grid)


def test_a_heat_map_shows_the_lowest_speedup_and_what_is_not_ok(run_dir: Callable[..., Path]) -> None:
    records = []
    for batch, channels, spatial, speedup in (
        (1, 64, "7x7", 1.9),
        (1, 64, "14x14", 0.81),
        (256, 64, "7x7", 1.3),
        (32, 128, "7x7", 1.5),
    ):
        axes: dict[str, int | str] = {"batch": batch, "channels": channels, "spatial": spatial}
        records.append(record("batch_norm", axes, layout="nchw", latency_us=10.0, baseline_us=10.0 * speedup))
    records.append(record("batch_norm", {"batch": 256, "channels": 128, "spatial": "7x7"}, layout="nchw", status="oom"))
    html = page(run_dir(records)).html
    drawn = re.search(r'<svg[^>]*aria-label="speedup of normlib over batch and channels".*?</svg>', html)
    assert drawn
    words = re.findall(r"<text[^>]*>([^<]+)</text>", drawn[0])
    assert words.index("1") < words.index("32") < words.index("256")
    assert {"0.810", "1.30", "1.50", "oom"} <= set(words) and "1.90" not in words
