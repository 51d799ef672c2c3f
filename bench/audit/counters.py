"""Hardware counters beside the model of a cache: what each launch reads and writes of device memory, by Nsight Compute.

Where there is an NVIDIA GPU and `ncu`, it profiles this module as a program, which makes the calls one pass after
another, each behind a flush of the cache. Caches and clocks are left alone between the launches of a pass: what the
second one finds is what is asked. Anywhere else nothing is read, and the audit says so.

`python -m bench.audit.counters CALL ...` counts the calls that it is given, such as rms_norm:4096x12288:bf16:rows.

A result that is still in the cache when its launch ends is not written yet, and never counted: writes may come out
lower than what is stored, by up to the size of the cache a pass.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench import cli, writing
from bench.audit.calls import DTYPES, Call
from bench.cases.operators import operators
from bench.measure.launches import RecordedPass
from normlib.kernels.host import device_of
from normlib.kernels.plan import Device

READ, WRITTEN = "dram__bytes_read.sum", "dram__bytes_write.sum"
NCU = (
    *("ncu", "--csv", "--print-units", "base", "--metrics", f"{READ},{WRITTEN}"),
    *("--kernel-name", "regex:^_[a-z].*_kernel$"),  # as those here are called, and none of PyTorch's
    *("--cache-control", "none", "--clock-control", "none"),
)


class Unreadable(Exception):
    """Raised if no counter was read; the text says why, in one line."""


@dataclass(frozen=True)
class Counted:
    """One launch: bytes of device memory."""

    kernel: str
    read_bytes: int
    written_bytes: int


def collect(calls: Iterable[Call], rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields a record a pass, with what the rows expect of it; or one note that says why there is none."""
    try:
        if not torch.cuda.is_available() or torch.version.hip is not None:
            raise Unreadable("there is no NVIDIA GPU here")
        if shutil.which(NCU[0]) is None:
            raise Unreadable("ncu (Nsight Compute) is not installed")
        here = torch.empty(1, device="cuda")
        calls, capability = list(calls), torch.cuda.get_device_capability()
        yield from records(
            calls,
            parse(_profiled(calls)),
            device_of(here),
            torch.cuda.get_device_name(),
            [row for row in rows if row.get("target") == "sm_{}{}".format(*capability)],
        )
    except Unreadable as error:
        yield {"record": "note", "text": f"No hardware counters: {error}.", "problems": []}


def _profiled(calls: Sequence[Call]) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(call)) + "\n" for call in calls)
        file.flush()
        command = [*NCU, sys.executable, "-m", __spec__.name, "--make", file.name]
        # Of the locale, which decides how ncu writes a number.
        done = subprocess.run(command, env={**os.environ, "LC_ALL": "C"}, capture_output=True, errors="replace")
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("==ERROR==")]
        raise Unreadable(said[0].removeprefix("==ERROR==").strip() if said else f"ncu ended with {done.returncode}")
    return done.stdout


def parse(text: str) -> list[Counted]:
    """Returns the launches of ncu's `--csv` output, in order. A table follows the lines of the program and of ncu."""
    lines = text.splitlines()
    head = next((i for i, line in enumerate(lines) if line.startswith('"ID",')), None)
    if head is None:
        raise Unreadable("ncu printed no table")
    kernels: dict[str, str] = {}
    found: dict[str, dict[str, int]] = {}
    for row in csv.DictReader(line for line in lines[head:] if line.startswith('"')):
        kernels[row["ID"]] = row["Kernel Name"]
        metric, unit, value = row["Metric Name"], row["Metric Unit"], row["Metric Value"].replace(",", "")
        if metric in (READ, WRITTEN):
            if unit != "byte" or not value.replace(".", "").isdigit():
                raise Unreadable(f"ncu has {value!r} {unit!r} for {metric}")
            found.setdefault(row["ID"], {})[metric] = int(float(value))
    if any(len(metrics) < 2 for metrics in found.values()) or found.keys() != kernels.keys():
        raise Unreadable("ncu left metrics out")
    return [Counted(kernels[i], metrics[READ], metrics[WRITTEN]) for i, metrics in found.items()]


def records(
    calls: Iterable[Call],
    counted: Sequence[Counted],
    device: Device,
    name: str,
    expected: Iterable[Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Yields what was counted, by pass, in the order of the calls; raises Unreadable if it is not their launches."""
    of = {_key(row): row["device_units"] for row in expected if row["record"] == "pass"}
    rest = iter(counted)
    for call, recorded in passes(calls, device):
        launches = [one for _, one in zip(recorded.launches, rest, strict=False)]
        if [one.kernel for one in launches] != [one.kernel for one in recorded.launches]:
            raise Unreadable(f"ncu saw other launches than {call} {recorded.mode} makes")
        row = {"op": call.op, "mode": recorded.mode, "dtype": call.dtype, "layout": call.layout, "shape": call.shape}
        row["options"] = call.options
        yield {
            "record": "counters",
            "device": name,
            **row,
            "plan": recorded.kind,
            "unit_bytes": call.activation_bytes,
            "expected_units": of.get(_key(row)),
            "launches": [asdict(one) for one in launches],
            "problems": [],
        }
    if next(rest, None) is not None:
        raise Unreadable("ncu saw more launches than the calls make")


def passes(calls: Iterable[Call], device: Device) -> Iterator[tuple[Call, RecordedPass]]:
    """Yields the passes that are counted: of calls with all their tensors, as others share their shape."""
    for call in calls:
        if not call.without:
            for one in call.recorded(device):
                yield call, one


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["op"], row["mode"], row["dtype"], row["layout"], tuple(row["shape"]), tuple(row["options"])


def make(file: Path) -> None:
    """Makes the calls that stand in a file, a JSON object a line."""
    device = device_of(torch.empty(1, device="cuda"))
    flush = torch.empty(4 * device.l2, dtype=torch.uint8, device="cuda")
    for line in file.read_text(encoding="utf-8").splitlines():
        said = json.loads(line)
        options = tuple(map(tuple, said["options"]))
        call = Call(**{**said, "shape": tuple(said["shape"]), "without": tuple(said["without"]), "options": options})
        for _, run in call.passes("cuda") if not call.without else ():
            flush.zero_()
            run()
    torch.cuda.synchronize()


@cli.command("bench.audit.counters")
def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns its exit status: 0 done, 1 nothing was read, 2 unusable arguments."""
    parser = cli.Parser(prog=f"python -m {__spec__.name}", description="Reads hardware counters of calls, by ncu.")
    parser.add_argument("calls", nargs="*", type=_call, metavar="CALL", help="such as rms_norm:4096x12288:bf16:rows")
    parser.add_argument("--out", type=Path, help="a file for the records, one JSON object a line")
    parser.add_argument("--make", type=Path, metavar="FILE", help="make this file's calls, which is what ncu profiles")
    given = parser.parse_args(argv)
    if given.make:
        make(given.make)
        return 0
    if not given.calls:
        raise cli.BadArgument("CALL", "give at least one, such as rms_norm:4096x12288:bf16:rows")
    found = list(collect(given.calls, []))
    if given.out:
        writing.write(given.out, "".join(json.dumps(row) + "\n" for row in found))
    for row in found:
        print(row["text"] if row["record"] == "note" else _told(row))
    return 1 if any(row["record"] == "note" for row in found) else 0


def _call(text: str) -> Call:
    """Returns the call that OPERATOR:SHAPE:DTYPE:LAYOUT stands for."""
    name, shape, dtype, layout = (*text.split(":"), "", "", "", "")[:4]
    operator = operators().get(name)
    allowed = operator is not None and not operator.choices and dtype in DTYPES and layout in operator.layouts
    if not allowed or text.count(":") != 3 or not re.fullmatch("[1-9][0-9]*(x[1-9][0-9]*)+", shape):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not OPERATOR:SHAPE:DTYPE:LAYOUT as rms_norm:4096x12288:bf16:rows"
        )
    return Call(name, tuple(map(int, shape.split("x"))), dtype, layout)


def _told(row: Mapping[str, Any]) -> str:
    """Returns a pass in a line: units of its activation that were read and written."""
    read, written = (sum(one[f"{way}_bytes"] for one in row["launches"]) for way in ("read", "written"))
    shape = "x".join(map(str, row["shape"]))
    units = f"{read / row['unit_bytes']:.2f} read, {written / row['unit_bytes']:.2f} written"
    return f"{row['op']} {shape} {row['dtype']} {row['layout']} {row['mode']}: units {units}"


if __name__ == "__main__":
    sys.exit(main())
