"""The file of every single measurement of a run, beside its records. Imports no torch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import writing
from bench.results import json_lines

FILE = "samples.jsonl"
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Samples:
    """The measurements of one cell: microseconds by series (`cold_us`, `hot_us`, `graph_us`), in the order taken."""

    key: str  # Record.key
    series: Mapping[str, Sequence[float]]


def append(path: Path, samples: Samples) -> None:
    """Appends one line and hands it to the operating system before returning."""
    rounded = {name: [round(sample, 4) for sample in series] for name, series in samples.series.items()}
    writing.append(path, json.dumps({"key": samples.key, **rounded}) + "\n")


def mend(path: Path) -> None:
    """Drops a last line that was cut short, so that the next line is whole; does nothing if there is no file."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, 2)
        while end:
            # Backwards, block by block: a line is short beside the file.
            start = max(0, end - _BLOCK)
            file.seek(start)
            line_ends = file.read(end - start).rfind(b"\n")
            if line_ends >= 0:
                file.truncate(start + line_ends + 1)
                return
            end = start
        file.truncate(0)


def read(path: Path) -> Iterator[Samples]:
    """Yields the samples of a file in order, a cell perhaps more than once; drops a last line that was cut short."""
    return json_lines.read(path, lambda row: Samples(row.pop("key"), row))
