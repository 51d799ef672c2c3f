"""Every page of ours under axe-core, on light paper and on dark."""

from collections import defaultdict
from pathlib import Path

import axe
import pytest
import study_runs
from pages import DESKTOP, PHONE
from report_runs import record, resnet50, sweep, write

from bench.audit import markdown
from bench.audit.page import html
from bench.compare.__main__ import main as compare
from bench.report import index, render
from bench.study import page as study_page

pytestmark = pytest.mark.chance

GRID = {"layer_norm": [{"tokens": m, "hidden": 768} for m in (16, 1024)]}


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    return axe.source(tmp_path_factory.mktemp("axe"))


def timed(folder):
    throttled = record(axes={"tokens": 5, "hidden": 7}, throttle="sw_power_cap", retaken=3)
    records = [one for one in sweep(grids=GRID) if one.dtype == "fp16"] + resnet50()[:8] + [throttled]
    return render(write(folder / "axe-gpu", records))


def interpreted(folder):
    records = [one for one in sweep("interpreter", GRID) if one.dtype == "fp32" or one.status != "ok"]
    return render(write(folder / "axe-cpu", records, clock="interpreter"))


def studied(folder):
    """The page of a study with every verdict and kind of figure."""
    return study_page.render(study_runs.write(folder / "study", study_runs.runs()))


@pytest.mark.parametrize("make", [timed, interpreted, studied])
def test_axe_finds_nothing_serious_in_a_report(make, browser, script, folder):
    page = make(folder)
    for dark, size in ((False, DESKTOP), (True, PHONE)):
        browser.dark(dark)
        browser.size(*size)
        browser.open(page, wait="#table tbody tr")
        browser.run("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
        browser.run("document.querySelector('#table tbody a').click()")
        browser.wait("return document.querySelector('tr.more') !== null")
        assert axe.findings(browser, script) == []


def compared(folder):
    """Two runs of which the second is slower in one cell and wrong in another."""
    a = write(folder / "a", [one for one in sweep(grids=GRID) if one.dtype == "fp16"])
    changed = [one for one in sweep(grids=GRID) if one.dtype == "fp16"]
    changed[0].status, changed[0].reason = "wrong", "y: floor_ratio 1.7 is beyond 1.05"
    changed[5].latency_us = 3 * (changed[5].latency_us or 0.0)
    compare([str(a), str(write(folder / "b", changed))])
    return folder / "b" / "compare.html"


def listed(folder):
    """The list of runs, one of which cannot be read."""
    runs = folder / "runs"
    for name in ("before", "good"):  # two, so that there is a history
        render(write(runs / name, resnet50()[:8]))
    study_page.render(study_runs.write(runs / "study", study_runs.runs()[:4]))
    (runs / "broken").mkdir()
    (runs / "broken" / "records.jsonl").write_text("not json\n{}\n")
    return index.write(runs)


def audited(folder):
    """The page of an audit, from the first records of each kind of the one that is kept."""
    kept = Path(__file__).parents[2] / "reports" / "2026-11-29-audit-sm_90"
    rows = defaultdict(list)
    for row in markdown.read(kept):
        rows[row["record"]].append(row)
    page = folder / index.AUDIT
    page.write_text(html([row for kind in rows.values() for row in kind[:20]], "python -m bench.audit"))
    return page


@pytest.mark.parametrize("make", [compared, listed, audited, studied])
def test_the_pages_beside_the_report_ask_for_nothing_fit_a_telephone_and_axe_finds_nothing_serious(
    make, browser, script, tmp_path
):
    page = make(tmp_path)
    for dark, size in ((False, DESKTOP), (True, PHONE)):
        browser.dark(dark)
        browser.size(*size)
        browser.open(page, wait="#theme")
        assert (browser.requests(), browser.console()) == ([page.as_uri()], [])
        assert browser.beyond_the_edge() == []
        assert axe.findings(browser, script) == []
