"""Reads machine code: registers, spills, and the widths of global loads and stores."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

# SASS: LDG.E.U16, STG.E.EF.128, LDGSTS.E.BYPASS.128 (a load to shared memory); 32 bits where no part is a width.
_SASS = re.compile(r"\b(?:(LDG|LDGSTS)|STG)\.E((?:\.\w+)*)")
_SASS_BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}
_SASS_LINE = re.compile(r"\s*/\*[0-9a-f]+\*/")  # begins with its address
_SASS_BYTES = 16  # of an instruction, since compute capability 7.0
# GCN: global_load_dwordx4, buffer_store_short_d16_hi, global_load_ubyte.
_GCN = re.compile(r"\b(?:global|buffer)_(?:(load)|store)_(?:lds_)?[us]?(dword|short|byte)(?:x(\d))?")
_GCN_BITS = {"dword": 32, "short": 16, "byte": 8}
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True)
class MachineCode:
    """The figures of one kernel; widths in bits, each with the number of instructions that have it."""

    registers: int  # vector registers of a lane
    spill: int  # bytes of stack on NVIDIA, spilled vector registers on AMD
    loads: dict[int, int]
    stores: dict[int, int]


def inspect(kernels: Sequence[Any]) -> list[MachineCode]:
    """Reads kernels as triton.compile returns them, all of one target."""
    if kernels and "cubin" in kernels[0].asm:
        return _nvidia(f"SM{kernels[0].metadata.target.arch}", [kernel.asm["cubin"] for kernel in kernels])
    return [_amd(kernel.asm["amdgcn"]) for kernel in kernels]


def _amd(text: str) -> MachineCode:
    usage = _number(r"\.vgpr_count:\s*(\d+)", text), _number(r"\.vgpr_spill_count:\s*(\d+)", text)
    return MachineCode(*usage, *gcn_widths(text))


def _nvidia(arch: str, cubins: Sequence[bytes]) -> list[MachineCode]:
    usages = [_tool("cuobjdump", "--dump-resource-usage", content=cubin) for cubin in cubins]
    # nvdisasm takes a quarter of a second to start, and no time to disassemble: the kernels go through it as one.
    codes = [instructions(cubin) for cubin in cubins]
    text = _tool("nvdisasm", "--binary", arch, "-raw", content=b"".join(codes))
    lines = [line for line in text.splitlines() if _SASS_LINE.match(line)]
    if len(lines) * _SASS_BYTES != sum(map(len, codes)):
        raise ValueError(f"nvdisasm found {len(lines)} instructions in {sum(map(len, codes))} bytes")
    found, begin = [], 0
    for usage, code in zip(usages, codes, strict=True):
        end = begin + len(code) // _SASS_BYTES
        widths = sass_widths("\n".join(lines[begin:end]))
        found.append(MachineCode(_number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage), *widths))
        begin = end
    return found


def instructions(cubin: bytes) -> bytes:
    """Returns the contents of a cubin's code sections: ELF's 64-bit format, as elf(5) describes it."""
    (table,), (size, number, names) = struct.unpack_from("<Q", cubin, 40), struct.unpack_from("<3H", cubin, 58)
    sections = [struct.unpack_from("<2I4Q", cubin, table + i * size) for i in range(number)]
    names_at = sections[names][4]
    return b"".join(
        cubin[offset : offset + length]
        for name, _, _, _, offset, length in sections
        if cubin.startswith(b".text.", names_at + name)
    )


def sass_widths(code: str) -> tuple[dict[int, int], dict[int, int]]:
    """Returns (loads, stores) of global memory in NVIDIA's assembly: bits -> instructions."""
    return _tally(
        (bool(load), next((_SASS_BITS[part] for part in parts.split(".") if part in _SASS_BITS), 32))
        for load, parts in _SASS.findall(code)
    )


def gcn_widths(code: str) -> tuple[dict[int, int], dict[int, int]]:
    """Returns (loads, stores) of global memory in AMD's assembly: bits -> instructions."""
    return _tally((bool(load), _GCN_BITS[kind] * int(times or 1)) for load, kind, times in _GCN.findall(code))


def _tally(accesses: Iterable[tuple[bool, int]]) -> tuple[dict[int, int], dict[int, int]]:
    loads, stores = Counter[int](), Counter[int]()
    for is_load, bits in accesses:
        (loads if is_load else stores)[bits] += 1
    return dict(sorted(loads.items())), dict(sorted(stores.items()))


def _tool(name: str, *arguments: str, content: bytes) -> str:
    """Returns the output of one of the CUDA tools that come with triton, for a file of this content."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        command = [str(_TOOLS / name), *arguments, file.name]
        return subprocess.run(command, capture_output=True, errors="replace", check=True).stdout


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"the compiler's report has no {pattern}")
    return int(match[1])
