"""Records on disk."""

import json
import math
from dataclasses import asdict, replace

import pytest
from report_runs import record as made_up
from report_runs import tensor_error

from bench.results import records as results
from bench.results.records import TensorError


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


def test_names_of_cells_do_not_round_offset_or_eps():
    values = [(offset, eps) for offset in (100.0, 120.0) for eps in (1e-5, 1.0000001e-5)]
    near = [replace(record(), inputs="offset", offset=offset, eps=eps) for offset, eps in values]
    assert len({one.key for one in near}) == len({one.case_key for one in near}) == 4
    assert len({one.case.label for one in near}) == 2
    assert "offset1e+02" in near[0].key and near[0].key.endswith("/1e-05")


def test_records_are_strict_json_and_numbers_that_json_lacks_come_back(tmp_path):
    odd = record()
    odd.errors = [TensorError("y", "fp32", math.inf, None, math.nan, -math.inf, None, None, False, False, "x", None)]
    results.append(tmp_path / "r", odd)
    refuse = lambda word: pytest.fail(f"{word} is no JSON")
    json.loads((tmp_path / "r").read_text(), parse_constant=refuse)
    (error,) = next(results.read(tmp_path / "r")).errors
    assert (error.rel_l2_error, error.scale_error) == (math.inf, -math.inf) and math.isnan(error.error_vs_torch)


def test_whole_numbers_stay_whole_where_another_row_has_none():
    several = [replace(record(), axes={"tokens": 4}, samples=20), replace(record(), axes={"batch": 2})]
    text = results.to_frame(several).to_csv(index=False)
    frame = results.to_frame(several)
    assert [str(frame[name].dtype) for name in ("tokens", "batch", "samples")] == ["Int64"] * 3
    assert "4.0" not in text and "20.0" not in text
