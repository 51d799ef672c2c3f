"""`python -m bench.audit.markdown reports/NAME`: a table in Markdown from a kept audit, a few calls of each kind.

It stands in a document between two comments, the first of which names this command, so that a test finds it and makes
it again from the records.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import cli
from bench.audit import groups
from bench.audit.groups import Row
from bench.page.formatting import spoken

# Operator, shape, dtype, layout: the widths of language models, the widest rows that no peer takes without spilling,
# ResNet-50's largest norms in both layouts, and small ones; and each fused form.
CALLS = (
    ("rms_norm", (8192, 4096), "bf16", "rows"),
    ("rms_norm", (4096, 7168), "bf16", "rows"),
    ("rms_norm", (131072, 128), "bf16", "rows"),
    ("layer_norm", (8192, 1600), "fp16", "rows"),
    ("layer_norm", (8192, 12288), "fp16", "rows"),
    ("layer_norm", (4096, 65536), "bf16", "rows"),
    ("rms_norm_add", (8192, 4096), "bf16", "rows"),
    ("batch_norm", (32, 64, 112, 112), "fp16", "nchw"),
    ("batch_norm", (32, 64, 112, 112), "fp16", "nhwc"),
    ("batch_norm", (32, 256, 56, 56), "fp16", "nchw"),
    ("batch_norm", (32, 256, 56, 56), "fp16", "nhwc"),
    ("batch_norm", (32, 256, 14, 14), "fp16", "nhwc"),
    ("batch_norm", (32, 2048, 7, 7), "fp16", "nchw"),
    ("batch_norm_relu", (32, 64, 112, 112), "fp16", "nchw"),
    ("batch_norm_add_relu", (32, 256, 56, 56), "fp16", "nchw"),
)
_HEAD = (
    "| training, forward / backward | launches | units asked for | behind the cache | at least | spilled bytes |\n"
    "|---|---|---|---|---|---|"
)


def table(rows: Iterable[Row]) -> str:
    """Returns the table, without its comments; raises KeyError if the records lack one of its calls."""
    of = {
        (row["op"], tuple(row["shape"]), row["dtype"], row["layout"], row["mode"]): row
        for row in reversed(groups.passes(rows))  # the first of a call is the one with all its tensors
    }
    return "\n".join((_HEAD, *(_line([of[*call, mode] for mode in ("fwd", "bwd")]) for call in CALLS)))


def _line(ways: Sequence[Row]) -> str:
    row = ways[0]
    columns = (
        f"{spoken(row['op'])} {' x '.join(map(str, row['shape']))} {row['dtype']}"
        + {"nchw": "", "rows": "", "nhwc": ", channels-last"}[row["layout"]],
        " / ".join(str(len(way["launches"])) for way in ways),
        *(" / ".join(f"{way[key]:.2f}" for way in ways) for key in ("units", "device_units", "least_units")),
        str(sum(launch["spill"] for way in ways for launch in way["launches"])),
    )
    return f"| {' | '.join(columns)} |"


def block(folder: str, rows: Iterable[Row]) -> str:
    """Returns the table between the comments that mark it in a document."""
    return f"<!-- python -m bench.audit.markdown {folder} -->\n{table(rows)}\n<!-- end -->"


def read(folder: Path) -> list[Row]:
    """Returns the records of a kept audit."""
    return [json.loads(line) for line in (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()]


@cli.command("bench.audit.markdown")
def main(arguments: Sequence[str]) -> int:
    """Prints the table of the audit in the one folder that is given."""
    if len(arguments) != 1 or not (Path(arguments[0]) / "records.jsonl").is_file():
        raise cli.BadArgument("arguments", "give one folder that bench.audit --out has written")
    print(block(arguments[0].rstrip("/"), read(Path(arguments[0]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
