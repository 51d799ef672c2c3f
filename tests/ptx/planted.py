"""Kernels that reduce, copy, merge and wait, and bugs planted in their PTX, each of which must be found."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from normlib.kernels.barrier import arrive, leave, wait
from normlib.kernels.host import counters
from normlib.kernels.plan import Device
from normlib.kernels.traffic import Moves, launch
from ptx.emulated import Emulation, emulated

PROGRAMS, BLOCK, STEPS = 6, 1024, 5


@triton.jit
def _reducing_kernel(x_ptr, w_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """y[p] = sum of x[p] w, in one block."""
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * n + i, mask=i < n, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + i, mask=i < n, other=0.0)
    tl.store(y_ptr + tl.program_id(0), tl.sum(x * w, 0))


@triton.jit
def _copying_kernel(x_ptr, w_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """The same in steps, each with w transposed, which is copied ahead by some threads and read by others."""
    i, j = tl.arange(0, 32)[:, None], tl.arange(0, BLOCK // 32)[None, :]
    total = tl.zeros([32, BLOCK // 32], tl.float32)
    for start in tl.range(0, n, BLOCK, num_stages=3):
        across, along = start + i * (BLOCK // 32) + j, start + i + j * 32
        x = tl.load(x_ptr + tl.program_id(0) * n + across, mask=across < n, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + along, mask=along < n, other=0.0)
        total += x * w
    tl.store(y_ptr + tl.program_id(0), tl.sum(total))


@triton.jit
def _partial_products(x_ptr, w_ptr, partials_ptr, n, BLOCK: tl.constexpr):
    """partials[p] = x[p] w, by column."""
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * n + i, mask=i < n, other=0.0).to(tl.float32)
    tl.store(partials_ptr + tl.program_id(0) * BLOCK + i, x * tl.load(w_ptr + i, mask=i < n, other=0.0))


@triton.jit
def _merging_kernel(x_ptr, w_ptr, y_ptr, partials_ptr, counters_ptr, n, P: tl.constexpr, BLOCK: tl.constexpr):
    """y = the programs' sums; the last program to finish adds them up."""
    _partial_products(x_ptr, w_ptr, partials_ptr, n, BLOCK)
    tl.debug_barrier()
    if tl.atomic_add(counters_ptr, 1, sem="acq_rel", scope="gpu") == P - 1:
        tl.debug_barrier()
        for p in range(P):
            products = tl.load(partials_ptr + p * BLOCK + tl.arange(0, BLOCK))
            tl.store(y_ptr + p, tl.sum(products, 0))
        tl.atomic_and(counters_ptr, 0, sem="relaxed", scope="gpu")


@triton.jit
def _waiting_kernel(x_ptr, w_ptr, y_ptr, partials_ptr, counters_ptr, n, P: tl.constexpr, BLOCK: tl.constexpr):
    """The same, where each program waits for all and adds up what the next one has stored."""
    _partial_products(x_ptr, w_ptr, partials_ptr, n, BLOCK)
    arrive(counters_ptr)
    wait(counters_ptr, P)
    p = (tl.program_id(0) + 1) % P
    tl.store(y_ptr + p, tl.sum(tl.load(partials_ptr + p * BLOCK + tl.arange(0, BLOCK)), 0))
    leave(counters_ptr + 1, P, counters_ptr)


KERNELS = {
    "reducing": _reducing_kernel,
    "copying": _copying_kernel,
    "merging": _merging_kernel,
    "waiting": _waiting_kernel,
}


def _run(name: str, x: Tensor, w: Tensor) -> Tensor:
    y, shared, constants = torch.empty(PROGRAMS), (), {"BLOCK": BLOCK, "num_warps": 4}
    if name in ("merging", "waiting"):
        shared, constants = (torch.empty(PROGRAMS, BLOCK), counters(2, x.device)), {**constants, "P": PROGRAMS}
    nothing = lambda: Moves(None, {}, ())
    launch(KERNELS[name], (PROGRAMS,), x, w, y, *shared, x.shape[1], moves=nothing, **constants)
    return y


def _replaced(old: str, new: str, count: int = 0) -> Callable[[str], str]:
    return lambda ptx: re.sub(old, new, ptx, count=count)


def _without_barrier(before: str = "", after: str = "") -> Callable[[str], str]:
    """Drops the last bar.sync before the last place of an instruction, or the first one after its first place."""
    barrier = r"\tbar\.sync[^;]*;\n"

    def edit(ptx: str) -> str:
        at = [m.start() for m in re.finditer(before or after, ptx)]
        found = [m for m in re.finditer(barrier, ptx) if (m.start() < at[-1] if before else m.start() > at[0])]
        drop = found[-1 if before else 0]
        return ptx[: drop.start()] + ptx[drop.end() :]

    return edit


ATOMIC = r"(?s)(@%p\d+ )?atom\.global\.gpu\.acq_rel\.add(\.u32[^;]*;)"


def _fenced(before: bool = True, after: bool = True) -> Callable[[str], str]:
    """A relaxed atomic operation with fences around it instead of one that acquires and releases."""
    fence = "fence.acq_rel.gpu; "
    return _replaced(ATOMIC, rf"{fence * before}\1atom.global.gpu.relaxed.add\2 {fence * after}")


@dataclass(frozen=True)
class Plant:
    """A bug: the kernel, the change of its PTX, and what one of the findings has to say; nothing, if it is no bug."""

    label: str
    kernel: str
    found: str
    edit: Callable[[str], str] | None = None
    resident: int | None = None

    def __str__(self) -> str:
        return f"{self.kernel}: {self.label}"

    def run(self) -> tuple[bool, list[str]]:
        """Returns whether the edit changed anything, and all that was found."""
        changed = []

        def edit(ptx: str) -> str:
            edited = self.edit(ptx) if self.edit else ptx
            changed.append(edited != ptx)
            return edited

        generator = torch.Generator().manual_seed(0)
        n = STEPS * BLOCK - 8 if self.kernel == "copying" else BLOCK - 8
        x = torch.randn(PROGRAMS, n, generator=generator).half()
        w = torch.randn(n, generator=generator)
        with emulated(Device(PROGRAMS), Emulation(edit=edit, resident=self.resident)) as launches:
            y = _run(self.kernel, x, w)
        found = [": ".join(kinds) for kinds in sum(launches, start=Counter())]
        if self.kernel == "copying":
            x, w = (torch.nn.functional.pad(t, (0, STEPS * BLOCK - n)) for t in (x, w))
            w = w.view(STEPS, 32, 32).mT.flatten()
        truth, scale = x.double() @ w.double(), x.double().abs() @ w.double().abs()
        wrong = not bool(((y.double() - truth).abs() <= 1e-6 * scale).all())
        return any(changed), [*found, *["wrong results"] * wrong]


def planted(name: str) -> tuple[bool, list[str]]:
    return PLANTS[name].run()


LOAD = r"(ld\.global[^\[]*\[ %rd\d+ \+ )0 \]"
_PLANTS = (
    *(Plant("as compiled", kernel, "") for kernel in KERNELS),
    Plant("fences around a relaxed atomic", "merging", "", _fenced()),
    Plant("no barrier within the sum", "reducing", "read after write in shared", _without_barrier(after=r"st\.shared")),
    Plant("loads far outside", "reducing", "out of bounds", _replaced(LOAD, r"\g<1>1048576 ]")),
    Plant("a misaligned load", "reducing", "misaligned", _replaced(LOAD, r"\g<1>1 ]", 1)),
    Plant("a butterfly cut short", "reducing", "wrong", _replaced(r"(shfl\.sync\.bfly[^;]*, )16, 31", r"\g<1>0, 31")),
    Plant("an unknown instruction", "reducing", "implemented: tanh",
          _replaced(r"\tret;", "\ttanh.approx.f32 %r1, %r1;\n\tret;")),
    Plant("an unknown modifier", "reducing", "no .sat", _replaced(r"add\.f32", "add.sat.f32", 1)),
    Plant("waits for one group too few", "copying", "under way", _replaced(r"(wait_group \t)1", r"\g<1>2")),
    Plant("waits for no group", "copying", "under way", _replaced(r"cp\.async\.wait_group[^;]*;", "")),
    Plant("groups are never closed", "copying", "under way", _replaced(r"cp\.async\.commit_group;", "")),
    Plant("no barrier after the wait", "copying", "read after write in shared", _without_barrier(after=r"wait_group")),
    Plant("a stage is overwritten while it is read", "copying", "write after read in shared",
          _without_barrier(before=r"cp\.async\.ca")),
    Plant("no zeros behind the end", "copying", "out of bounds", _replaced(r", 0x4, %r\d+;", ", 0x4;")),
    Plant("no barrier before the release", "merging", "read after write in global", _without_barrier(before="acq_rel")),
    Plant("nothing is acquired", "merging", "read after write in global", _replaced("acq_rel", "release")),
    Plant("nothing is released", "merging", "read after write in global", _replaced("acq_rel", "acquire")),
    Plant("no fence before", "merging", "read after write in global", _fenced(before=False)),
    Plant("no fence after", "merging", "read after write in global", _fenced(after=False)),
    Plant("the counter is not reset", "merging", "not left at zero", _replaced(r"@%p\d+ atom[^;]*\.and\.[^;]*;", "")),
    Plant("no barrier before the release", "waiting", "read after write in global", _without_barrier(before="release")),
    Plant("nothing is released", "waiting", "read after write in global", _replaced("release.add", "relaxed.add")),
    Plant("nothing is acquired", "waiting", "read after write in global", _replaced("gpu.acquire", "gpu.relaxed")),
    Plant("no arrival", "waiting", "deadlock",
          _replaced(r"(atom\.global\.gpu\.release\.add\.u32 %r\d+, \[ %rd\d+ \+ 0 \], )%r\d+", r"\g<1>0")),
    Plant("one program at a time", "waiting", "deadlock", resident=1),
)  # fmt: skip
PLANTS = {str(plant): plant for plant in _PLANTS}
