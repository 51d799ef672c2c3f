"""Every single measurement of a run, in a file beside its records. Imports no torch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = "samples.jsonl"
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Samples:
    """What was taken of one cell: microseconds by series (`cold_us`, `hot_us`, `graph_us`), in the order taken."""

    key: str  # Record.key
    series: Mapping[str, Sequence[float]]


def append(path: Path, samples: Samples) -> None:
    """Adds one line and hands it to the operating system before returning."""
    rounded = {name: [round(sample, 4) for sample in series] for name, series in samples.series.items()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"key": samples.key, **rounded}) + "\n")


def mend(path: Path) -> None:
    """Drops a last line that was cut short, so that the next one stands by itself; no file is no fault."""
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
    """The samples of a file, in order; a last line that was cut short is dropped. A cell may come more than once."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                if line.endswith("\n"):
                    raise
                return
            yield Samples(row.pop("key"), row)
