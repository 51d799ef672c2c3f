"""Watches every address that kernels touch in Triton's interpreter, lane by lane.

Each launch runs on copies of its arguments, far enough apart in one arena that a stray address falls between them. A
shadow of the arena knows which bytes begin an element of an argument, who wrote it and who read it. So what is seen is
an access outside the arguments, be it in the gap between two rows or one element beyond a slice of a larger tensor, and
an element that one program writes and another one touches, where a result would depend on which comes first: unless
the first has released a counter since, and the second has acquired it. It sees no more than what these inputs make the
programs do; symbolic_bounds.py asks about all programs and lanes.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, TensorHandle, interpreter_builder

NOBODY, SEVERAL = -1, -2
LINE = 64  # bytes; arguments begin at multiples of it, as PyTorch's allocations do


@dataclass(frozen=True)
class Finding:
    kernel: str
    program: tuple[int, ...]
    access: str  # load or store
    problem: str

    def __str__(self) -> str:
        return f"{self.kernel}, program {self.program}: {self.access} {self.problem}"


OUTSIDE, CONTENDED = "outside", "of what another program"


class Watch:
    """The kernel of every launch that was watched, and the findings."""

    def __init__(self) -> None:
        self.launches: list[str] = []
        self.findings: list[Finding] = []

    def kernels(self, problem: str, access: str = "") -> set[str]:
        return {f.kernel for f in self.findings if f.problem.startswith(problem) and f.access.startswith(access)}


def _flat(tensor: Tensor) -> Tensor:
    """All memory from the tensor's first element to its last."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((extent,), (1,))


def _number() -> int:
    """The number of the program that runs."""
    (x, y, z), (_, height, depth) = interpreter_builder.grid_idx, interpreter_builder.grid_dim
    return (x * height + y) * depth + z


def _up(n: int) -> int:
    return -(-n // LINE) * LINE


class _Arena:
    def __init__(self, kernel: str, arguments: dict[str, Tensor], watch: Watch) -> None:
        self.kernel, self.watch = kernel, watch
        sizes = {name: _up(_flat(t).nbytes) for name, t in arguments.items()}
        gap = sum(sizes.values())  # a stray step is seldom longer than all that there is
        length = gap * (len(sizes) + 2)
        memory = torch.zeros(length + LINE, dtype=torch.uint8)
        skip = -memory.data_ptr() % LINE
        self.base = memory.data_ptr() + skip
        self.owner = np.zeros(length, np.int8)
        self.writer, self.reader = (np.full(length, NOBODY, np.int32) for _ in range(2))
        # The programs whose stores so far are known to each program, and to whoever acquires a counter.
        self.known: dict[int, set[int]] = defaultdict(set)
        self.released: dict[int, set[int]] = defaultdict(set)
        self.starts: dict[str, int] = {}
        self.copies: dict[str, Tensor] = {}
        begin = gap
        for number, (name, t) in enumerate(arguments.items(), 1):
            flat = _flat(t)
            copy = memory[skip + begin : skip + begin + flat.nbytes].view(t.dtype)
            copy.copy_(flat)
            self.copies[name] = copy.as_strided(t.shape, t.stride())
            index = torch.arange(begin, begin + flat.nbytes, t.element_size()).as_strided(t.shape, t.stride())
            self.owner[index.flatten().numpy()] = number
            self.starts[name] = begin
            begin += sizes[name] + gap
        self.length = length

    def check(self, access: str, addresses: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The mask without the lanes that are outside."""
        program = interpreter_builder.grid_idx
        mask = mask.astype(bool)  # the interpreter has integers for some
        at = addresses.astype(np.int64) - self.base
        known = (at >= 0) & (at < self.length)
        inside = known & (self.owner[np.where(known, at, 0)] > 0)
        stray = at[mask & ~inside]
        if stray.size:
            self._report(access, program, f"{OUTSIDE}: {stray.size} lanes, the first {self._where(int(stray[0]))}")
        touched = at[mask & inside]
        self._contend(access, program, _number(), touched)
        return mask & inside

    def synchronize(self, counter: int, semantics: str) -> None:
        program = _number()
        if "RELEASE" in semantics:
            self.released[counter] |= self.known[program] | {program}
        if "ACQUIRE" in semantics:
            self.known[program] |= self.released[counter]

    def _contend(self, access: str, program: tuple[int, ...], number: int, touched: np.ndarray) -> None:
        writer, reader = self.writer[touched], self.reader[touched]
        others = np.unique(writer[(writer != NOBODY) & (writer != number)])
        if not self.known[number].issuperset(others.tolist()):
            self._report(access, program, f"{CONTENDED} has written")
        if access == "store":
            if np.any((reader != NOBODY) & (reader != number)):
                self._report(access, program, f"{CONTENDED} has read")
            self.writer[touched] = number
        else:
            self.reader[touched] = np.where((reader == NOBODY) | (reader == number), number, SEVERAL)

    def _report(self, access: str, program: tuple[int, ...], problem: str) -> None:
        self.watch.findings.append(Finding(self.kernel, program, access, problem))

    def _where(self, at: int) -> str:
        name = max((n for n, start in self.starts.items() if start <= at), key=self.starts.get, default="the first")
        return f"{at - self.starts.get(name, 0)} bytes from the start of {name}"

    def stored(self, name: str) -> bool:
        number = list(self.starts).index(name) + 1
        return bool((self.writer[self.owner == number] != NOBODY).any())


@contextmanager
def watching() -> Iterator[Watch]:
    """Every launch in the interpreter is watched; strays are masked off, so that the rest goes on."""
    watch = Watch()
    launch = GridExecutor.__call__
    load, store = interpreter_builder.create_masked_load, interpreter_builder.create_masked_store
    rmw = interpreter_builder.create_atomic_rmw
    arena: _Arena | None = None

    def watched_launch(self, *args, **kwargs):
        nonlocal arena
        watch.launches.append(self.fn.__name__)
        named = dict(zip(self.arg_names, args, strict=False)) | kwargs
        tensors = {name: t for name, t in named.items() if isinstance(t, Tensor)}
        # One tensor that is two arguments, as x and dy may be, is one in the arena too.
        first = {(t.data_ptr(), t.shape, t.stride()): name for name, t in reversed(tensors.items())}
        alias = {name: first[t.data_ptr(), t.shape, t.stride()] for name, t in tensors.items()}
        arena = _Arena(self.fn.__name__, {name: tensors[name] for name in dict.fromkeys(alias.values())}, watch)
        moved = {name: arena.copies[alias[name]] if name in alias else value for name, value in named.items()}
        launch(self, **moved)
        for name, copy in arena.copies.items():
            if arena.stored(name):
                _flat(tensors[name]).copy_(_flat(copy))

    def watched_load(pointers, mask, *rest):
        return load(pointers, TensorHandle(arena.check("load", pointers.data, mask.data), tl.int1), *rest)

    def watched_store(pointers, value, mask, *rest):
        return store(pointers, value, TensorHandle(arena.check("store", pointers.data, mask.data), tl.int1), *rest)

    def watched_rmw(operation, pointers, value, mask, semantics, scope):
        arena.synchronize(int(pointers.data.flat[0]), str(semantics))
        return rmw(operation, pointers, value, mask, semantics, scope)

    GridExecutor.__call__ = watched_launch
    interpreter_builder.create_atomic_rmw = watched_rmw
    interpreter_builder.create_masked_load = watched_load
    interpreter_builder.create_masked_store = watched_store
    try:
        yield watch
    finally:
        GridExecutor.__call__ = launch
        del interpreter_builder.create_masked_load, interpreter_builder.create_masked_store
        del interpreter_builder.create_atomic_rmw
