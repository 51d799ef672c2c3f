"""The records of a run as tables: records.csv, records.parquet where pyarrow is installed, and their JSON schema."""

import dataclasses
import importlib.util
import json
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import writing
from bench.results.records import STATUSES, Record, TensorError, to_frame

CSV, PARQUET = "records.csv", "records.parquet"
_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}


def write(folder: Path, records: list[Record]) -> None:
    """Writes one row a cell (see `to_frame`) as CSV, and as Parquet where pyarrow is installed."""
    frame = to_frame(records)
    with writing.replacing(folder / CSV) as part:
        frame.to_csv(part, index=False)
    if importlib.util.find_spec("pyarrow"):
        # A column of Parquet has one type: an axis that is 2 in one row and "inf" in another is text in all.
        mixed = [name for name, column in frame.items() if {int, str} <= set(map(type, column))]
        # Opened here, because pyarrow takes only paths that are UTF-8.
        with writing.replacing(folder / PARQUET) as part, part.open("wb") as file:
            frame.astype(dict.fromkeys(mixed, str)).to_parquet(file, index=False)


def schema() -> dict[str, Any]:
    """Returns the JSON schema (2020-12) of a line of records.jsonl, from the fields of Record and TensorError."""
    made = _object(Record)
    made["properties"]["status"]["enum"] = list(STATUSES)
    made["$defs"] = {"TensorError": _object(TensorError)}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A cell of records.jsonl", **made}


def _object(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    needed = [one.name for one in fields if one.default is one.default_factory is dataclasses.MISSING]
    return {"type": "object", "properties": {one.name: _typed(hints[one.name]) for one in fields}, "required": needed}


def _typed(hint: Any) -> dict[str, Any]:
    inside: Sequence[Any] = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return {"type": "array", "items": _typed(inside[0])}
    if typing.get_origin(hint) is dict:
        return {"type": "object", "additionalProperties": _typed(inside[1])}
    if hint is TensorError:
        return {"$ref": "#/$defs/TensorError"}
    if not inside:
        return {"type": _NAMES[hint]}
    alternatives = [_typed(one) for one in inside]
    plain = all(set(one) == {"type"} for one in alternatives)
    return {"type": [one["type"] for one in alternatives]} if plain else {"anyOf": alternatives}


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1))
