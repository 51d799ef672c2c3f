"""The data of the table of all cells."""

from urllib.parse import unquote

import pytest
from report_runs import GRIDS, page, record, sweep, write

from bench.results import samples
from bench.results.load import load

FEW = {"layer_norm": GRIDS["layer_norm"]}


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    return page(write(tmp_path_factory.mktemp("run"), sweep(grids=FEW)))


def test_what_was_measured_beside_the_time_is_in_the_table_and_what_was_not_is_no_column(run_dir):
    bare = page(run_dir([record()]))
    assert not bare.titles & {"hot µs", "with host µs", "in a graph µs", "launches", "throttled by"}
    more = record(mode="bwd", hot_us=8.0, graph_us=9.0, noise=0.002, sm_clock_mhz=1512.0, retaken=3, throttle="power")
    shown = page(run_dir([record(), more]))
    values = {title: shown.column(title)[more.cell] for title in ("hot µs", "in a graph µs", "SM MHz", "retaken")}
    assert values == {
        "hot µs": [8.0, "8.00"], "in a graph µs": [9.0, "9.00"], "SM MHz": [1512.0, "1,512"], "retaken": [3.0, "3"],
    }  # fmt: skip
    assert set(shown.column("throttled by").values()) == {"power", None}
    assert "with host µs" not in shown.titles


def test_the_table_holds_every_cell_and_links_lead_to_its_rows(full_page):
    cells = [one.cell for one in sweep(grids=FEW)]
    assert [row["id"] for row in full_page.data["rows"]] == cells
    linked = {unquote(reference[6:]) for reference in full_page.references if reference.startswith("#cell=")}
    assert linked and linked <= set(cells)


def test_a_cell_that_was_run_again_counts_once_with_its_last_record(run_dir):
    run = load(run_dir([record(status="skipped", reason="time budget"), record()]))
    assert list(run.cells["status"]) == ["ok"]


def test_a_table_without_room_for_all_says_so_and_leaves_out_what_is_unsupported_first(run_dir, monkeypatch):
    monkeypatch.setattr("bench.report.sections.cells.TABLE_ROWS", 5)
    monkeypatch.setattr("bench.results.thresholds.TABLE_ROWS", 5)
    monkeypatch.setattr("bench.results.thresholds.LISTED", 1)
    ended = {"torch": "ok", "normlib": "ok", "cudnn": "crash", "liger": "unsupported"}
    records = [
        record(dtype=dtype, provider=name, status=status, reason="it fell")
        for dtype in ("fp16", "bf16")
        for name, status in ended.items()
    ]
    shown = page(run_dir(records))
    assert [row["id"] for row in shown.data["rows"]] == [records[place].cell for place in (0, 1, 2, 5, 6)]
    assert shown.data["places"] == [0, 1, 2, 5, 6]
    assert "room for 5 of 8 cells" in shown.section("cells") and "records.jsonl" in shown.section("cells")
    assert "2 cells, the first 1 here and all in records.jsonl" in shown.section("failed")


def test_a_cells_samples_are_told_by_twenty_quantiles(run_dir):
    one = record(latency_us=10.0)
    folder = run_dir([one])
    samples.append(folder / "samples.jsonl", samples.Samples(one.key, {"cold_us": [10.0] * 90 + [20.0] * 10}))
    (row,) = page(folder).data["rows"]
    assert row["dots"] == [0] * 18 + [1000, 0]  # each less the one before


def test_samples_that_cannot_be_read_cost_their_figure_alone(run_dir):
    folder = run_dir([record()])
    (folder / "samples.jsonl").write_text("broken\n{}\n")
    assert "dots" not in page(folder).data["rows"][0]


def test_a_cell_has_the_command_that_measures_it_alone(run_dir):
    from bench.cases import sweep
    from bench.cases.operators import operators

    made = [
        record(layout="rows"),
        record("batch_norm", {"batch": 2, "channels": 3, "spatial": "7x7"}, layout="nhwc", dtype="bf16", mode="bwd"),
        record(layout="rows", inputs="offset", offset=1e4),
    ]
    data = page(run_dir(made)).data
    for one, row in zip(made, data["rows"], strict=True):
        command = data["commands"][row["case"]].split()
        assert command[:3] == ["python", "-m", "bench.run"]
        typed = {name.removeprefix("--"): value for name, value in zip(command[3::2], command[4::2], strict=True)}
        (case,) = sweep.cases(sweep.parse(typed, operators(), "quick"), operators())
        assert case.label == one.case.label and case.shape == tuple(one.shape)
    assert data["baseline"] == "torch"


# Each column with a number of its own, so that no other field can stand in its place.
OWN = {
    "op": ("operator", "rms_norm"), "dtype": ("dtype", "bf16"), "layout": ("layout", "rows"), "mode": ("mode", "bwd"),
    "provider": ("provider", "liger"), "status": ("status", "ok"), "speedup": ("speedup", 1.25),
    "latency_us": ("time µs", 11.0), "gbps": ("GB/s", 1012.0), "roofline_fraction": ("of copy %", 0.253),
    "gap_closed": ("of gap %", 0.61), "speedup_low": ("speedup from", 1.2), "speedup_high": ("speedup to", 1.3),
    "latency_us_p10": ("p10 µs", 10.5), "latency_us_p90": ("p90 µs", 12.5), "latency_us_low": ("median from µs", 10.9),
    "latency_us_high": ("median to µs", 11.1), "hot_us": ("hot µs", 8.0), "call_us": ("with host µs", 19.0),
    "graph_us": ("in a graph µs", 9.0), "kernel_us": ("kernels only µs", 7.0), "launches": ("launches", 3),
    "communication_us": ("communication µs", 21.0), "bytes_sent": ("bytes sent", 4096), "rank": ("rank", 5),
    "noise": ("standard error", 0.004), "samples": ("samples", 123), "retaken": ("retaken", 6),
    "throttle": ("throttled by", "power"), "sm_clock_mhz": ("SM MHz", 1512.0), "mem_clock_mhz": ("memory MHz", 2619.0),
    "energy_mj": ("energy mJ", 4.5), "energy_mj_low": ("energy from mJ", 4.4), "energy_mj_high": ("energy to mJ", 4.7),
    "power_w": ("W", 431.0), "temperature_c": ("°C", 51.0), "compile_ms": ("compile ms", 240.0),
    "clock": ("clock", "cuda_event"), "backend": ("backend", "its triton"), "plan": ("plan", "one kernel"),
    "ran": ("ran", "_its_kernel"), "deviations": ("deviates", "grad mode is on"), "eps": ("eps", 2e-6),
}  # fmt: skip
PERCENT = ("of copy %", "of gap %")


def test_each_column_shows_its_own_field(run_dir):
    one = record(**{"mode": "bwd", "batch_invariant": False, **{field: value for field, (_, value) in OWN.items()}})
    shown = page(run_dir([one]))
    told = {title: shown.column(title)[one.cell] for title, _ in OWN.values()}
    expected = {title: 100 * value if title in PERCENT else value for title, value in OWN.values()}
    numbers = {title: value if isinstance(value, str) else pytest.approx(value) for title, value in expected.items()}
    assert shown.column("batch invariant")[one.cell] == "no"
    assert {title: value[0] if isinstance(value, list) else value for title, value in told.items()} == numbers
    assert shown.titles - set(told) == {"shape", "inputs", "worst figure", "of bound %", "spread %", "batch invariant"}
