"""Tables of a run, and the schema of its records."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
from report_runs import record

from bench import run
from bench.results import tables
from bench.results.records import to_frame

SCHEMA = Path(__file__).parents[3] / "docs" / "record.schema.json"


def test_the_schema_in_docs_is_that_of_the_records():
    """Made by `python -m bench.results.tables > docs/record.schema.json`."""
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == tables.schema()


def fits(value, schema, defs):
    """Returns whether a value is of a schema, of those words of JSON schema that ours uses."""
    if "$ref" in schema:
        schema = defs[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return any(fits(value, one, defs) for one in schema["anyOf"])
    kinds = {
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
        "array": list,
        "object": dict,
    }
    wanted = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(isinstance(value, kinds[name]) for name in wanted) or value not in schema.get("enum", [value]):
        return False
    if isinstance(value, list):
        return all(fits(one, schema["items"], defs) for one in value)
    if isinstance(value, dict):
        named, rest = schema.get("properties", {}), schema.get("additionalProperties")
        return set(schema.get("required", ())) <= set(value) and all(
            fits(one, named.get(key, rest), defs) for key, one in value.items() if named.get(key, rest)
        )
    return True


def test_a_record_as_it_is_written_fits_the_schema_and_a_broken_one_does_not():
    schema = tables.schema()
    row = json.loads(json.dumps(asdict(record(mode="bwd"))))
    assert set(row) == set(schema["properties"]) and fits(row, schema, schema["$defs"])
    broken = [{**row, "status": "fine"}, {**row, "shape": ["4"]}, {**row, "latency_us": "10"}]
    broken.append({**row, "errors": [{**row["errors"][0], "ok": "yes"}]})
    assert not any(fits(one, schema, schema["$defs"]) for one in broken)


def test_parquet_holds_what_csv_holds(tmp_path):
    pytest.importorskip("pyarrow")
    records = [record(), record(mode="bwd"), record(dtype="fp32")]
    records[1].axes, records[2].axes = {"batch": 4, "p": 2}, {"batch": 4, "p": "inf"}
    tables.write(tmp_path, records)
    csv, parquet = pd.read_csv(tmp_path / tables.CSV), pd.read_parquet(tmp_path / tables.PARQUET)
    assert list(csv.columns) == list(parquet.columns) and list(csv["cell"]) == list(parquet["cell"])
    assert parquet["latency_us"].tolist() == csv["latency_us"].tolist() and parquet["p"].tolist()[1:] == ["2", "inf"]


def test_without_pyarrow_there_is_the_csv(tmp_path, monkeypatch):
    monkeypatch.setattr(tables.importlib.util, "find_spec", lambda name: None)
    tables.write(tmp_path, [record()])
    assert [path.name for path in tmp_path.iterdir()] == [tables.CSV]


def test_the_lines_of_seaborn_in_the_docs_draw_a_runs_frame():
    text = (SCHEMA.parent / "measuring.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(import seaborn.*?)```", text, re.DOTALL)
    made = [record(axes={"tokens": 8, "hidden": n}, provider=p) for n in (64, 512) for p in ("normlib", "torch")]
    names = {"frame": to_frame(made)}
    exec(lines, names)
    (axes,) = names["grid"].axes.flat
    assert len(axes.lines) >= 2 and axes.get_xscale() == "log"


@pytest.mark.parametrize("file", ["examples/github-actions.yml", "docs/measuring.md", "README.md"])
def test_commands_that_are_shown_can_be_parsed(file):
    text = (SCHEMA.parents[1] / file).read_text(encoding="utf-8")
    found = re.findall(r"python -m bench\.run ([^\n#`]*)", text)
    assert found
    for typed in found:
        run._parser().parse_args(typed.split())
