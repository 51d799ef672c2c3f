"""The report as a page: one file that asks for nothing, the same bytes every time, hostile text escaped."""

import json
import subprocess
import sys

import pytest
from report_runs import GRIDS, HOSTILE, PROVIDERS, ROOT, page, record, sweep, tensor_error, write

from bench.page import machine
from bench.report import render, sections
from bench.results.load import load

RUNS = {
    "a run on a GPU": (sweep(), {}),
    "an interpreted run": (sweep("interpreter", {"layer_norm": GRIDS["layer_norm"][:2]}), {"clock": "interpreter"}),
    "an interrupted run": (sweep()[:31], {"complete": False, "stopped_by": "interrupt", "cells_planned": 900}),
    "a run with no ok cell": ([record(provider=p, status="oom", reason="out of memory") for p in PROVIDERS], {}),
    "a run without the subject": ([record(provider=p) for p in PROVIDERS[1:]], {}),
    "one record": ([record()], {"copy_gbps": None}),
    "no record": ([], {"complete": False, "stopped_by": "error"}),
}


@pytest.fixture(scope="module", params=RUNS)
def any_page(request, tmp_path_factory):
    records, described = RUNS[request.param]
    return page(write(tmp_path_factory.mktemp("run"), records, **described))


def test_a_report_asks_for_nothing_from_outside_and_its_links_lead_somewhere(any_page):
    any_page.assert_whole()


def test_no_missing_value_is_shown_as_a_programmer_sees_it(any_page):
    # An empty value of the table is null there, and a dash where the script shows it.
    table = json.dumps([[value for value in row["is"] if value is not None] for row in any_page.data["rows"]])
    any_page.assert_no_word_of_a_programmers(table)


def test_every_section_is_there_in_every_run(any_page):
    for name in sections.every():
        if name != "throughput" or name in any_page.ids:
            assert len(any_page.section(name)) > 20


def test_a_new_section_is_a_file_and_a_template(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "__path__", [*sections.__path__, str(tmp_path)])
    section = 'SECTION = Section(45, "Extra", lambda run: {"count": len(run.records)})'
    (tmp_path / "extra.py").write_text(f"from bench.report.sections import Section\n{section}\n")
    template = '<section id="extra"><h2>Extra</h2>{{ count }} record</section>'
    (tmp_path / "extra.html.j2").write_text("{% macro definitions() %}a new term{% endmacro %}" + template)
    shown = page(run_dir([record()]))
    assert "1 record" in shown.section("extra") and "a new term" in shown.section("method")
    assert 'href="#extra"' in shown.html and shown.ids.index("failed") > shown.ids.index("extra")


@pytest.mark.chance
def test_the_same_records_give_the_same_bytes_in_this_process_and_in_another(run_dir):
    folder = run_dir(sweep()[:8])
    first = render(folder).read_bytes()
    assert render(folder).read_bytes() == first
    command = [sys.executable, "-m", "bench.report", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert (folder / "report.html").read_bytes() == first


def test_an_interpreted_run_shows_no_speed(run_dir):
    """Even where a record claims one."""
    claims = record(clock="interpreter", gbps=3000.0, speedup=2.5, roofline_fraction=0.75)
    slow = record(provider="torch", clock="interpreter", latency_us=90.0, gbps=333.0, speedup=1.0)
    shown = page(run_dir([claims, slow], clock="interpreter"))
    assert "No GPU: the kernels ran in Triton's interpreter. The errors are real; nothing here says any" in shown.text
    assert "throughput" not in shown.ids and not shown.titles & {"GB/s", "of copy %", "speedup"}
    hidden = {column["title"] for column in shown.data["columns"] if column["hidden"]}
    assert {"time µs", "p10 µs", "p90 µs"} <= hidden
    assert set(shown.column("clock").values()) == {"interpreter"}
    assert not any("GB/s against" in label or "speedup" in label for label in shown.labels)
    assert "×" not in shown.section("verdict")  # noqa: RUF001


def test_an_interpreted_run_has_no_speed_whatever_its_records_call_their_clock(run_dir):
    run = load(run_dir([record(), record(provider="torch")], interpreted=True))
    assert not run.has_speed
    assert run.cells["speedup"].isna().all()


def test_a_host_clock_supports_no_speed(run_dir):
    records = [record(provider=p, clock="host_cpu", speedup=3.0, gbps=50.0) for p in ("normlib", "torch")]
    shown = page(run_dir(records, clock="host_cpu", interpreted=False))
    assert "interpreter" not in shown.section("verdict")
    assert "speedup" not in shown.titles and "throughput" not in shown.ids


def test_hostile_text_is_shown_and_never_run(run_dir):
    records = [
        record(status="crash", reason=HOSTILE),
        record(provider=HOSTILE, latency_us=16.0),
        record(op=HOSTILE, layout=HOSTILE),
        record(dtype="fp32", errors=[tensor_error(HOSTILE, "fp32", 0.5)]),
    ]
    described = {"notes": [HOSTILE], "command": HOSTILE, "device_name": HOSTILE, "baseline": HOSTILE}
    shown = page(run_dir(records, **described))
    clean = page(run_dir([record()]))
    assert shown.tags.count("script") == clean.tags.count("script") == 3
    assert "img" not in shown.tags
    assert "{{ 7 * 7 }}" in shown.text
    assert any(row["why"] == HOSTILE[:160] for row in shown.data["rows"])


def test_the_head_says_what_the_environment_does(run_dir):
    assert dict(machine.facts(load(run_dir([record()])).environment)) == {
        "Device": "Example GPU", "GPU driver": "1.2.3", "PyTorch": "2.13.0", "Triton": "3.7.1", "CUDA": "13.0",
        "cuDNN": "91000", "Commit": "0123456789ab clean", "Copy bandwidth": "4,000 GB/s",
        "Started": "2026-01-02 03:04 UTC", "Finished": "2026-01-02 03:14 UTC",
    }  # fmt: skip


def test_an_environment_that_lacks_most_keys_still_renders(run_dir):
    folder = run_dir(sweep()[:8])
    (folder / "environment.json").write_text("{}")
    assert "All cells" in page(folder).text


def test_a_cell_takes_its_share_of_five_megabytes(run_dir):
    """A full sweep of four providers has 14,112 cells; its page, figures of seven operators included, had 3.8 MB."""
    grid = [{"tokens": 2**m, "hidden": 64 * n} for m in range(16) for n in range(1, 11)]
    records = sweep(grids={"layer_norm": grid})
    path = render(run_dir(records))
    assert path.stat().st_size < 5e6 * len(records) / 14_112
