"""What a compiled kernel's machine code says: registers, spills, and the widths of its global loads and stores."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

# SASS: LDG.E.U16, STG.E.EF.128, LDGSTS.E.BYPASS.128 (a load to shared memory); 32 bits where no part is a width.
_SASS = re.compile(r"\b(?:(LDG|LDGSTS)|STG)\.E((?:\.\w+)*)")
_SASS_BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}
# GCN: global_load_dwordx4, buffer_store_short_d16_hi, global_load_ubyte.
_GCN = re.compile(r"\b(?:global|buffer)_(?:(load)|store)_(?:lds_)?[us]?(dword|short|byte)(?:x(\d))?")
_GCN_BITS = {"dword": 32, "short": 16, "byte": 8}


@dataclass(frozen=True)
class MachineCode:
    """Of one kernel; widths in bits, each with how many instructions have it."""

    registers: int  # vector registers of a lane
    spill: int  # bytes of stack on NVIDIA, spilled vector registers on AMD
    loads: dict[int, int]
    stores: dict[int, int]


def inspect(kernel: Any) -> MachineCode:
    """Reads a kernel as triton.compile returns it."""
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]
        usage = _number(r"\.vgpr_count:\s*(\d+)", text), _number(r"\.vgpr_spill_count:\s*(\d+)", text)
        return MachineCode(*usage, *gcn_widths(text))
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        code = _output(tools / "nvdisasm", "-c", file.name)
    return MachineCode(_number(r"REG:(\d+)", text), _number(r"STACK:(\d+)", text), *sass_widths(code))


def sass_widths(code: str) -> tuple[dict[int, int], dict[int, int]]:
    """(loads, stores) of global memory in NVIDIA's assembly: bits -> instructions."""
    return _tally(
        (bool(load), next((_SASS_BITS[part] for part in parts.split(".") if part in _SASS_BITS), 32))
        for load, parts in _SASS.findall(code)
    )


def gcn_widths(code: str) -> tuple[dict[int, int], dict[int, int]]:
    """The same in AMD's."""
    return _tally((bool(load), _GCN_BITS[kind] * int(times or 1)) for load, kind, times in _GCN.findall(code))


def _tally(accesses: Iterable[tuple[bool, int]]) -> tuple[dict[int, int], dict[int, int]]:
    loads, stores = Counter[int](), Counter[int]()
    for is_load, bits in accesses:
        (loads if is_load else stores)[bits] += 1
    return dict(sorted(loads.items())), dict(sorted(stores.items()))


def _output(tool: Path, *arguments: str) -> str:
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"the compiler's report has no {pattern}")
    return int(match[1])
