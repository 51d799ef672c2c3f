"""Records on disk."""

import json
import math
from dataclasses import asdict

import pytest
from report_runs import record as made_up
from report_runs import tensor_error

from bench.results import records as results


def record(provider="torch", **changes):
    errors = [tensor_error(tensor, "fp32", 0.5) for tensor in ("y", "dx")]
    known = {"axes": {"tokens": 4, "hidden": 8}, "dtype": "fp32", "provider": provider, "errors": errors}
    return made_up(**{**known, **changes})


def test_what_is_appended_is_read_back(tmp_path):
    path = tmp_path / "records.jsonl"
    written = [record(), record("normlib", status="crash", reason='RuntimeError: "quoted", ü and \u2028')]
    for each in written:
        results.append(path, each)
        assert json.loads(path.read_bytes().splitlines()[-1]) == asdict(each)  # before another line is written
    assert list(results.read(path)) == written
    assert len(path.read_bytes().splitlines()) == 2


def test_a_cut_last_line_is_dropped(tmp_path):
    path = tmp_path / "records.jsonl"
    results.append(path, record("a"))
    results.append(path, record("b"))
    path.write_text(path.read_text()[:-20])
    assert [r.provider for r in results.read(path)] == ["a"]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "records.jsonl"
    results.append(path, record("a"))
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        list(results.read(path))


def test_keys_of_a_newer_version_are_dropped(tmp_path):
    path = tmp_path / "records.jsonl"
    row = asdict(record())
    row["fan_speed"] = 700
    row["errors"][0]["l1"] = 0.5
    path.write_text(json.dumps(row) + "\n")
    assert list(results.read(path)) == [record()]


def test_nan_and_infinite_errors_survive(tmp_path):
    path = tmp_path / "records.jsonl"
    results.append(path, record(errors=[tensor_error("y", "fp32", 0.5, rel_l2_error=math.nan, max_ulp=math.inf)]))
    (found,) = results.read(path)
    assert math.isnan(found.errors[0].rel_l2_error)
    assert math.isinf(found.errors[0].max_ulp)


def test_rewriting_makes_a_cut_file_whole_so_that_the_next_line_stands_by_itself(tmp_path):
    path = tmp_path / "records.jsonl"
    results.append(path, record("a"))
    results.append(path, record("b"))
    path.write_text(path.read_text()[:-20])
    results.rewrite(path, list(results.read(path)))
    results.append(path, record("c"))
    assert [r.provider for r in results.read(path)] == ["a", "c"]
    assert [p.name for p in tmp_path.iterdir()] == ["records.jsonl"]


def test_the_cells_name_tells_everything_but_eps_apart():
    base = record()
    changes = {"op": "rms_norm", "shape": [4, 9], "dtype": "bf16", "layout": "x", "mode": "bwd", "provider": "normlib"}
    assert len({base.cell, *(record(**{name: value}).cell for name, value in changes.items())}) == 7
    assert base.cell == record(eps=1e-6).cell == "layer_norm/4x8/fp32//fwd/torch"


def test_a_frame_has_a_row_a_cell_a_column_an_axis_and_a_column_a_figure():
    frame = results.to_frame([record(), record("normlib", errors=[])])
    assert list(frame["cell"]) == [record().cell, record("normlib").cell]
    assert list(frame["hidden"]) == [8, 8]
    assert frame["dx.error_vs_torch"][0] == 1.0
    assert math.isnan(frame["dx.error_vs_torch"][1])


def test_a_frame_of_nothing_is_empty():
    assert results.to_frame([]).empty
