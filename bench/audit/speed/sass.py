"""SASS as nvdisasm prints it: instructions with the compiler's stalls and scoreboards, loops, the order of execution.

The upper half of an instruction's encoding has, from bit 41, the cycles before the warp's next instruction, the
scoreboard that its result sets, the one that is set when its operands have been read, and those that it waits for.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import triton

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?(.*?)\s*;\s+/\* 0x[0-9a-f]{16} \*/")
_ENCODING = re.compile(r"^\s+/\* 0x([0-9a-f]{16}) \*/")
_LABEL = re.compile(r"^(\.L_x_\d+|[\w$]+):")
_TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"

# Pipes, by the numbers that sim.c knows them by.
FMA, IMAD, ALU, XU, FP64, CONTROL, MEMORY, UNIFORM = range(8)
_PIPES = {
    FMA: "FFMA FADD FMUL HADD2 HMUL2 HFMA2 FSWZADD FFMA32I FADD32I FMUL32I",
    IMAD: "IMAD IDP",
    XU: "MUFU F2F I2F F2I FRND POPC FLO BREV I2FP64",
    FP64: "DADD DMUL DFMA DSETP DMNMX",
    MEMORY: "LDG STG LDS STS LDL STL SHFL ATOM ATOMG ATOMS RED REDG REDUX LDSM STSM LDGSTS LD ST",
    CONTROL: "BAR LDC ULDC S2R S2UR MEMBAR CCTL ERRBAR B2R R2UR VOTEU BRA EXIT CALL RET BSSY BSYNC NOP WARPSYNC YIELD "
    "DEPBAR BREAK BMOV JMP BRX NANOSLEEP LDGDEPBAR",
}
_PIPE_OF = {name: pipe for pipe, names in _PIPES.items() for name in names.split()}
# Cycles until the result of an instruction that sets a scoreboard; of others 4.
_LATENCY = {
    **dict.fromkeys(("S2R", "S2UR", "MUFU", "ULDC", "DADD", "DFMA", "DMUL", "DSETP"), 30),
    **dict.fromkeys(("F2F", "I2F"), 25),
    **dict.fromkeys(("LDC", "LDL"), 40),
    **dict.fromkeys(("ATOMG", "ATOM"), 700),
    "SHFL": 22,
    "LDS": 26,
    "R2UR": 12,
    "REDUX": 20,
}
_WIDTHS = ((".128", 16), (".64", 8), (".U16", 2), (".S16", 2), (".U8", 1), (".S8", 1))
_WITHOUT_RESULT = frozenset(
    (
        *(
            "STG",
            "STS",
            "STL",
            "ST",
            "RED",
            "REDG",
            "MEMBAR",
            "CCTL",
            "BAR",
            "BRA",
            "EXIT",
            "BSSY",
            "BSYNC",
            "CALL",
            "RET",
        ),
        *("ISETP", "FSETP", "DSETP", "PLOP3", "UISETP", "R2P", "NOP"),
    )
)
_MOST = 400_000  # instructions of a warp
_AROUND_A_CALL = 60  # instructions at most of a slow path that calls a function

Parameters = Mapping[int, tuple[str, str]]  # by offset in the constant bank: name, type
Loop = tuple[int, int]  # the numbers of its first and its last instruction


@dataclass(eq=False)
class Instruction:
    """One instruction; a scoreboard of 7 is none."""

    predicate: str | None
    op: str  # with its modifiers
    operands: str
    stall: int
    sets: int
    sets_read: int
    waits: int  # a bit for each scoreboard
    target: str | None
    pointers: set[str] = field(default_factory=set)  # the parameters that its address derives from

    @functools.cached_property
    def name(self) -> str:
        return self.op.split(".")[0]

    @functools.cached_property
    def pipe(self) -> int:
        return _PIPE_OF.get(self.name, UNIFORM if self.name[0] == "U" else ALU)

    @property
    def latency(self) -> int:
        return _LATENCY.get(self.name, 4)

    @property
    def bytes(self) -> int:
        """Of a whole warp, where it accesses memory."""
        if self.name in ("LDG", "STG", "LDGSTS", "LDS", "STS", "LDL", "STL"):
            return 32 * next((size for mark, size in _WIDTHS if mark in self.op), 4)
        return 32 if self.name in ("ATOM", "ATOMG", "RED", "REDG") else 0


@dataclass(frozen=True)
class Code:
    """The instructions of a kernel and of the functions that it calls, and where labels point to."""

    instructions: list[Instruction]
    labels: dict[str, int]

    @functools.cached_property
    def loops(self) -> list[Loop]:
        """The loops by their backward branches, in the order of their heads, outermost first."""
        found: dict[int, int] = {}
        for k, i in enumerate(self.instructions):
            head = self.labels.get(i.target or "", k)
            if i.op.startswith("BRA") and head < k:  # not the branch to itself that ends every kernel
                found[head] = max(found.get(head, 0), k)
        return sorted(found.items(), key=lambda loop: (loop[0], -loop[1]))

    def function(self, name: str) -> Code | None:
        """Returns a function that the kernel calls, from its first instruction on; None where there is none."""
        starts = [at for label, at in self.labels.items() if name in label and not label.startswith(".L")]
        if not starts:
            return None
        start = min(starts)
        return Code(self.instructions[start:], {n: at - start for n, at in self.labels.items() if at >= start})

    def in_loop(self, at: int) -> bool:
        return any(head <= at <= tail for head, tail in self.loops)

    def executed(self, trips: Callable[[int], int]) -> list[int]:
        """Returns the instructions' numbers in the order of execution; `trips(n)`: how often the n-th loop runs.

        A loop runs once at least. Forward branches are not taken, but for those around a call (a slow path) and those
        at an `if` whose other half has the loop.
        """
        number, done = {head: n for n, (head, _) in enumerate(self.loops)}, Counter[int]()
        order: list[int] = []
        at = 0
        while at < len(self.instructions) and len(order) <= _MOST:
            i = self.instructions[at]
            order.append(at)
            if i.name == "RET" or (i.name == "EXIT" and i.predicate is None):
                break
            target = self.labels.get(i.target or "")
            if i.name != "BRA" or target is None:
                at += 1
            elif target <= at:
                done[target] += 1
                again = done[target] < trips(number.get(target, -1))
                done[target] *= again
                at = target if again else at + 1
            else:
                condition = i.operands.split("`")[0]
                always = i.predicate is None and not re.search(r"!?U?P\d", condition)
                between = self.instructions[at + 1 : target]
                call = len(between) < _AROUND_A_CALL and any(x.op.startswith("CALL") for x in between)
                at = target if always or call or self._other_half_loops(at, target) else at + 1
        return order

    def _other_half_loops(self, at: int, target: int) -> bool:
        """Returns whether `if (at) A else (target) B` has its loop in B only."""
        end = self.instructions[target - 1]
        after = self.labels.get(end.target or "", -1)
        if not (end.op.startswith("BRA") and end.predicate is None and after > target):
            return False
        heads = [head for head, _ in self.loops]
        return any(target <= head < after for head in heads) and not any(at < head < target for head in heads)

    def trace_pointers(self, order: Sequence[int], parameters: Parameters) -> None:
        """Notes at every access to global memory which pointer parameters its address derives from."""
        pointer = {at: name for at, (name, kind) in parameters.items() if kind.startswith("*")}
        held: dict[tuple[str, int], set[str]] = {}
        for k in order:
            i = self.instructions[k]
            source: set[str] = set()
            for m in re.finditer(r"c\[0x0\]\[(?:R\w+\+)?(0x[0-9a-f]+)\]", i.operands):
                at = int(m[1], 16)
                for step in (0, 4, 8, 12) if ".128" in i.op else (0, 4) if ".64" in i.op else (0,):
                    source |= {pointer[q] for q in (at + step, at + step - 4) if q in pointer}
            results = _results(i)
            if i.name in ("LDG", "STG", "LDGSTS", "ATOMG", "RED", "REDG", "ATOM"):
                address = re.search(r"desc\[UR\d+\]\[(.*?)\]", i.operands)
                if not address and i.name == "LDGSTS":
                    address = re.search(r", \[(.*?)\]", i.operands)
                if address := address or re.search(r"\[(.*?)\]", i.operands):
                    for bank, n in _registers(address[1]):
                        source |= held.get((bank, n), set()) | held.get((bank, n + 1), set())
                i.pointers |= source
                held |= {r: set() for r in results}
                continue
            rest = i.operands.split(",", 1)[1] if results and "," in i.operands else i.operands
            operands = rest.split(",")
            for place, operand in enumerate(operands):
                pair = ".64" in operand or (".64" in i.op and "LDC" not in i.op)
                pair |= "WIDE" in i.op and place == len(operands) - 1
                for bank, n in _registers(operand):
                    source |= held.get((bank, n), set()) | (held.get((bank, n + 1), set()) if pair else set())
            for r in results:
                held[r] = held.get(r, set()) | source if i.predicate else set(source)


def _registers(text: str) -> list[tuple[str, int]]:
    return [(m[1], int(m[2])) for m in re.finditer(r"\b(R|UR)(\d+)\b", text)]


def _results(i: Instruction) -> list[tuple[str, int]]:
    if i.name in _WITHOUT_RESULT:
        return []
    for operand in i.operands.split(",")[:2]:
        if found := re.match(r"^\s*(R|UR)(\d+)\b", operand):
            pair = ".64" in i.op or "WIDE" in i.op or i.name in ("CS2R", "DADD", "DFMA", "DMUL")
            count = 4 if ".128" in i.op else 2 if pair else 1
            return [(found[1], int(found[2]) + k) for k in range(count)]
    return []


@functools.cache
def code_of(cubin: bytes) -> Code:
    """Disassembles the kernel in a cubin."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [_TOOL, "-c", "-hex", file.name], capture_output=True, errors="replace", check=True
        ).stdout
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    lines = text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if found := _LABEL.match(line):
            labels[found[1]] = len(instructions)
        encoding = _ENCODING.match(following)
        if not (found := _INSTRUCTION.match(line)) or not encoding:
            continue
        upper, (op, _, operands) = int(encoding[1], 16), found[2].partition(" ")
        target = re.search(r"`\((\S+?)\)", operands)
        fields = (upper >> 41 & 15, upper >> 46 & 7, upper >> 49 & 7, upper >> 52 & 63)
        instructions.append(Instruction(found[1], op, operands.strip(), *fields, target[1] if target else None))
    return Code(instructions, labels)
