"""Launches of compiled kernels on a simulated H200: how long, how busy, and how many bytes under way."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bench.audit.speed import sass
from bench.audit.speed.trips import LAST, TRIPS, Arguments, merges
from normlib.kernels.plan import cdiv
from normlib.kernels.traffic import ACTIVATIONS, KernelLaunch, Traffic

SMS, CLOCK, REGISTERS, SHARED, WARPS, BLOCKS = 132, 1.755e9, 65536, 233472, 64, 32
DRAM = 4.3e12  # bytes a second that a copy reaches
L2 = 5.7e12  # assumed
LATENCY = {"dram_latency": 1200, "l2_latency": 270, "l1_latency": 36, "jitter": 300, "launch": 1000}  # cycles
SIMULATED = 12  # multiprocessors, with their share of L2 and DRAM; all of them for a small grid
_ACCESS, _SIZE = 5, 6  # of an operation's numbers
# What sim.c knows of an access.
NONE, DRAM_LOAD, L2_LOAD, L1_LOAD, DRAM_STORE, BARRIER, L2_STORE = range(7)
ASYNC_DRAM, ASYNC_L2, COMMIT, WAIT_GROUP = range(8, 12)
_LOADS = (DRAM_LOAD, L2_LOAD, ASYNC_DRAM, ASYNC_L2)
_PIPE_CYCLES = {sass.ALU: 2, sass.XU: 8, sass.FP64: 2}
_PARAMETERS_AT = 0x210  # of the constant bank, on sm_90
_IN_L1 = 16384  # columns of a row's weight at most
_SOURCE = Path(__file__).with_name("sim.c")

Ops = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Simulated:
    """The expected times and resources of one launch."""

    seconds: float
    issue: float  # seconds that issuing takes if nothing else limits
    pipe: float  # the same of the busiest pipe
    resident: int  # programs on a multiprocessor
    in_flight: float  # bytes of loads from DRAM on a multiprocessor, mean
    can_fly: int  # bytes of such loads that its threads issue before they first wait for one
    barriers: int  # that a program's threads wait at
    waves: float  # of programs
    merge: float  # seconds of the last program's merge, of `seconds`


class _Config(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("sms", "resident", "warps")),
        *((name, ctypes.c_double) for name in ("dram_rate", "l2_rate")),
        *((name, ctypes.c_int) for name in LATENCY),
    )


def compiler() -> str | None:
    """Returns the C compiler that builds the simulator, None where there is none."""
    return shutil.which("cc") or shutil.which("gcc")


@functools.cache
def _simulator() -> ctypes.CDLL:
    name = f"normlib-sim-{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]}-{os.getuid()}.so"
    built = Path(tempfile.gettempdir()) / name
    if not built.exists():
        part = built.with_suffix(f".{os.getpid()}")
        subprocess.run([str(compiler()), "-O2", "-shared", "-fPIC", str(_SOURCE), "-o", str(part)], check=True)
        part.rename(built)
    return ctypes.CDLL(str(built))


class Machine:
    """One launch's kernel on the simulated multiprocessors."""

    def __init__(self, launch: KernelLaunch, kernel: Any, registers: int) -> None:
        self._code = sass.code_of(kernel.asm["cubin"])
        self._name = launch.kernel.__name__
        self._warps, self._shared, self._registers = kernel.metadata.num_warps, kernel.metadata.shared, registers
        named = {**dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)), **launch.constants}
        shapes = {name: tuple(v.shape) if isinstance(v, Tensor) else v for name, v in named.items()}
        self._arguments = Arguments(launch.grid, shapes)
        self._parameters = _parameters(kernel.src.signature)
        columns = shapes.get("weight_ptr") or (0,)
        self._weights_in_l1 = "splits" in named or columns[0] <= _IN_L1

    @property
    def resident(self) -> int:
        """The programs that fit on a multiprocessor."""
        held = REGISTERS // (cdiv(self._registers * 32, 256) * 256)
        by_registers = (held // 4 * 4 if self._warps >= 4 else held) // self._warps
        fits = min(by_registers, SHARED // (self._shared + 1024), WARPS // self._warps, BLOCKS)
        return int(max(fits, 1))

    def run(self, moved: Traffic, found_in_l2: bool) -> Simulated | None:
        """Simulates it, None where nobody has said how often its loops run.

        `moved` is what it declares to move. `found_in_l2`: the cache has what it loads, because an earlier launch of
        the pass has just loaded it.
        """
        if self._name not in TRIPS:
            return None
        trips = TRIPS[self._name](self._arguments, len(self._code.loops))
        inside: Container[int] = ()
        if found_in_l2:
            inside = range(len(self._code.instructions))
        elif trips.again is not None:
            head, tail = self._code.loops[trips.again]
            inside = range(head, tail + 1)
        grid = math.prod(self._arguments.grid)
        long_blocks = round(grid * trips.share)
        long_order, long_ops = self._trace(self._code, trips.most, inside)
        short_order, short_ops = self._trace(self._code, trips.least, inside)
        traced = ((long_order, long_ops, long_blocks), (short_order, short_ops, grid - long_blocks))
        self._leave_masked_out(traced, moved)
        sms = SIMULATED if grid >= SMS else SMS
        cycles, in_flight = self._simulate(long_ops, short_ops, grid, long_blocks, sms)
        merge = self._merge()
        count = Counter[int]()
        for order, _, blocks in traced:
            for pipe, n in Counter(self._code.instructions[k].pipe for k in order).items():
                count[pipe] += n * blocks * self._warps
        slot = 1 / SMS / 4 / CLOCK  # seconds that an instruction of a warp takes all schedulers
        fma = max(count[sass.FMA] + count[sass.IMAD], 2 * count[sass.IMAD])
        pipe = max(fma, *(cycles_of * count[p] for p, cycles_of in _PIPE_CYCLES.items()))
        return Simulated(
            cycles / CLOCK + merge,
            count.total() * slot,
            pipe * slot,
            self.resident,
            in_flight,
            self._loads_before_use() * self._warps * self.resident,
            sum(self._code.instructions[k].op.startswith("BAR") for k in long_order),
            grid / (SMS * self.resident),
            merge,
        )

    def _leave_masked_out(self, traced: Sequence[tuple[list[int], Ops, int]], moved: Traffic) -> None:
        """Scales the sizes of accesses to activations, whose masked lanes move nothing, to what is declared to move."""
        declared = [access for name, access in moved.accesses.items() if name in {*ACTIVATIONS} - {"signs"}]
        loads, stores = sum(access.loads for access in declared), sum(access.stores for access in declared)
        for what, kinds, bytes_moved in (("load", _LOADS, loads), ("store", (DRAM_STORE,), stores)):
            chosen = [np.isin(ops[:, _ACCESS], kinds) & self._of_activations(order) for order, ops, _ in traced]
            sizes = zip(traced, chosen, strict=True)
            masked = sum(int(ops[those, _SIZE].sum()) * n * self._warps for (_, ops, n), those in sizes)
            if masked < bytes_moved:
                raise RuntimeError(f"{self._name}: its loops {what} {masked} bytes of {bytes_moved}: see trips.py")
            for (_, ops, _), those in zip(traced, chosen, strict=True):
                ops[those, _SIZE] = np.round(ops[those, _SIZE] * (bytes_moved / max(masked, 1)))

    def _of_activations(self, order: list[int]) -> npt.NDArray[np.bool_]:
        return np.array(["activation" in _kinds(self._code.instructions[k]) for k in order])

    def _merge(self) -> float:
        """Returns the seconds of what the last program of a channel group does for all."""
        code = next((found for name in LAST if (found := self._code.function(name))), None)
        if code is None:
            return 0.0
        _, ops = self._trace(code, [merges(self._arguments)] * len(code.loops), ())
        cycles, _ = self._simulate(ops, ops, 1, 1, SMS)
        return max(cycles - LATENCY["launch"] * 3 / 2, 0.0) / CLOCK

    def _trace(self, code: sass.Code, trips: Sequence[int], again: Container[int]) -> tuple[list[int], Ops]:
        order = code.executed(lambda n: trips[n] if 0 <= n < len(trips) else 1)
        code.trace_pointers(order, self._parameters)
        # A pipeline asks ahead, before its loop and in it: as much before the loop's end there is nothing left to copy.
        left = sum(code.instructions[k].name == "LDGSTS" and code.in_loop(k) for k in order)
        ops = []
        for k in order:
            op = self._op(code.instructions[k], k in again)
            if op[_ACCESS] in (ASYNC_DRAM, ASYNC_L2):
                op = op if left > 0 else (*op[:_ACCESS], NONE, *op[_ACCESS + 1 :])
                left -= 1
            ops.append(op)
        return order, np.array(ops, np.int32)

    def _op(self, i: sass.Instruction, again: bool) -> tuple[int, ...]:
        """Returns the numbers that describe an instruction to sim.c."""
        access, size, latency = NONE, i.bytes, i.latency
        if i.name in ("LDG", "STG", "LDGSTS"):
            access = self._access(i, again)
            if not _kinds(i) & {"activation", "weight"}:
                size = min(size, 128)
            if i.name == "LDGSTS":
                access = ASYNC_DRAM if access == DRAM_LOAD else ASYNC_L2
        elif i.name in ("ATOM", "ATOMG", "RED", "REDG", "LDL"):
            access = L2_LOAD
        elif i.name == "STL":
            access = L2_STORE
        elif i.name == "LDGDEPBAR":
            access = COMMIT
        elif i.name == "DEPBAR":
            found = re.search(r"SB0, (0x[0-9a-f]+)", i.operands)
            access, latency = WAIT_GROUP, int(found[1], 16) if found else 0
        elif i.op.startswith("BAR"):
            access = BARRIER
        return i.stall, i.pipe, i.waits, i.sets, i.sets_read, access, size, latency

    def _access(self, i: sass.Instruction, again: bool) -> int:
        kinds = _kinds(i)
        if i.name == "STG":
            return DRAM_STORE if "activation" in kinds else L2_STORE
        if "activation" in kinds:
            return L2_LOAD if again else DRAM_LOAD
        return L1_LOAD if "weight" in kinds and self._weights_in_l1 else L2_LOAD

    def _simulate(self, long_ops: Ops, short_ops: Ops, grid: int, long_blocks: int, sms: int) -> tuple[float, float]:
        """Returns cycles, and bytes in flight on a multiprocessor."""
        share = sms / SMS
        rates = DRAM / CLOCK * share, L2 / CLOCK * share
        config = _Config(sms, self.resident, self._warps, *rates, *LATENCY.values())
        results = (ctypes.c_double * 4)()
        pointers = [ops.ctypes.data_as(ctypes.c_void_p) for ops in (long_ops, short_ops)]
        failed = _simulator().run(
            *(ctypes.byref(config), pointers[0], len(long_ops), pointers[1], len(short_ops)),
            *(
                max(round(grid * share), 1),
                max(round(long_blocks * share), 1) if grid == 1 else round(long_blocks * share),
            ),
            results,
        )
        if failed:
            raise RuntimeError(f"{self._name}: simulated warps wait at barriers that cannot open: see trips.py")
        return results[0], results[2]

    def _loads_before_use(self) -> int:
        """Returns the bytes of activations that a warp asks for before it first waits for any of them."""
        most = asked = waiting = 0
        order = self._code.executed(lambda _: 2)
        self._code.trace_pointers(order, self._parameters)
        for k in order:
            i = self._code.instructions[k]
            if i.waits & waiting:
                most, asked, waiting = max(most, asked), 0, 0
            if i.name == "LDG" and "activation" in _kinds(i):
                asked += i.bytes
                waiting |= 1 << i.sets if i.sets < 6 else 0
        return max(most, asked)


def _kinds(i: sass.Instruction) -> set[str]:
    names = {name.removesuffix("_ptr") for name in i.pointers}
    found = {"activation"} if names & {*ACTIVATIONS} - {"signs"} else set()
    return found | ({"weight"} if names & {"weight", "bias"} else set())


def _parameters(signature: dict[str, str]) -> sass.Parameters:
    at, found = _PARAMETERS_AT, {}
    for name, kind in signature.items():
        if kind != "constexpr":
            digits = re.search(r"\d+$", kind)
            width = 8 if kind.startswith("*") else max(int(digits[0]) // 8, 1) if digits else 1
            at = cdiv(at, width) * width
            found[at] = (name, kind)
            at += width
    return found
