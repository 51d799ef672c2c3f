"""Triton-viz's sanitizer over the calls of launches.py: can any program and any lane leave the arguments?

A script, because triton-viz rewires Triton's interpreter for the whole process. It prints as JSON how often each kernel
was checked, and what is reported; with `load` and `store` as arguments, for a few calls without the masks of those.

Its solver knows program ids and lanes as variables, so it needs no input to go wrong. What it does not see, and
shadow_memory.py does: 32-bit wraparound, an access that leaves one argument for another, and lanes of two ranges of the
same length apart from each other. It is told seven things here that its release 3.0 does not know: that a
`tl.static_range` counts with Python's integers, what a loop's bounds are that follow from the program id, loops in
functions that a kernel calls, `tl.fma`, of which no address is made, where signs are, without what they are, that
groups' rows, which it cannot reshape, are of some shape, and nothing of random words.
"""

import builtins
import json
import sys
from itertools import product

import interpreter
import pytest
import torch
import triton
import triton.language as tl
import triton_viz
import z3
from every_kernel import MODULES
from launches import CALLS, RAGGED
from planting import drop_masks
from triton.runtime.interpreter import interpreter_builder
from triton_viz.clients.sanitizer import sanitizer
from triton_viz.core import patch
from triton_viz.core.config import config

from normlib.kernels import traffic
from normlib.kernels.batch_norm.activation import sign_addresses
from normlib.kernels.numerics import INTERPRETED

PROGRAM_ID = (sanitizer.SymbolicExpr.PID0, sanitizer.SymbolicExpr.PID1, sanitizer.SymbolicExpr.PID2)


class Sanitizer(sanitizer.SymbolicSanitizer):
    def __init__(self):
        super().__init__(abort_on_error=False)

    def grid_callback(self, grid):
        super().grid_callback(grid)
        self.any_program = self.solver

    def grid_idx_callback(self, grid_idx):
        super().grid_idx_callback(grid_idx)
        self.solver = z3.Solver()
        self.solver.add(self.any_program.assertions())

    def register_for_loop_callback(self):
        callbacks = super().register_for_loop_callback()
        wrap = callbacks.range_wrapper_factory

        def wrap_range(iterable, line, kind, args, kwargs, make):
            bounds = tuple(self._now(bound) for bound in args)
            # In a loop within a loop it knows only the inner one's bounds, and of what a loop passes on to its next
            # round only the first value: one that begins at the program's own number, and one that is pipelined and
            # counts addresses up, goes through its few values one by one.
            own = len(args) == 3 and not isinstance(args[0], (int, tl.constexpr))
            whole = kind in ("tl_static_range", "tl_range") or own
            return range(*bounds) if whole else wrap(iterable, line, kind, bounds, kwargs, make)

        callbacks.range_wrapper_factory = wrap_range
        return callbacks

    def _now(self, bound):
        """A loop's bound as a number: that of this program, and from here on this program alone is in question."""
        if isinstance(bound, (int, tl.constexpr)):
            return int(bound)
        symbolic, _ = sanitizer.SymbolicExpr.from_value(bound).eval()
        here = [(axis, z3.IntVal(i)) for axis, i in zip(PROGRAM_ID, self.grid_idx, strict=True)]
        number = z3.simplify(z3.substitute(symbolic, *here))
        if not z3.is_int_value(symbolic):
            self.need_full_grid = True
            self.solver.add(*(axis == i for axis, i in here))
        return number.as_long()


@triton.jit
def store_signs(signs_ptr, blocked, tile, c0, C, LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr):
    LANES: tl.constexpr = min(8, BLOCK_C * BLOCK_S)
    tl.store(sign_addresses(signs_ptr, tile, c0, C, BLOCK_C, BLOCK_S, LANES), 0)


@triton.jit
def load_signs(signs_ptr, tile, c0, C, LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr):
    LANES: tl.constexpr = min(8, BLOCK_C * BLOCK_S)
    tl.load(sign_addresses(signs_ptr, tile, c0, C, BLOCK_C, BLOCK_S, LANES))
    return tl.zeros([BLOCK_C, BLOCK_S], tl.int1)


@triton.jit
def merge_rows(mean, low, m2, c0, end, S, per_group, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr):
    groups = tl.zeros([BLOCK_C // ROWS, 1], ACC)
    return groups, groups, groups


@triton.jit
def sum_rows(value, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    return tl.zeros([BLOCK_C, 1], value.dtype)


@triton.jit
def over_rows(value, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    return tl.zeros([BLOCK_C, 1], value.dtype)


@triton.jit
def any_in_doubt(m2):
    return False  # what it leads to is masked by what was loaded, which only shadow memory knows


@triton.jit
def is_last(counter, programs):
    return True


@triton.jit
def words(seed, position, channel, STREAM: tl.constexpr):
    word = position + channel
    return word, word, word, word


@triton.jit
def standard_normal(radius_word, angle_word, ACC: tl.constexpr):
    return radius_word.to(ACC)


@triton.jit
def uniform(word, ACC: tl.constexpr):
    return word.to(ACC)


def check(launch, seen) -> None:
    """Checks a launch and does not run it; with a sanitizer of its own, which remembers no other."""
    sanitizer._fn_symbolic_cache_set.clear()
    client = Sanitizer()
    triton_viz.trace(client=client)(launch.kernel)[launch.grid](*launch.arguments, **launch.constants)
    triton_viz.clear()
    name = launch.kernel.__name__
    seen["launches"].append(name)
    seen["reports"] += [
        {"kernel": name, "access": r.op_type.__name__.lower(), "argument": r.tensor_name} for r in client.records
    ]


def main() -> None:
    assert INTERPRETED.value and config.enable_sanitizer
    interpreter.find_once()
    seen = {"launches": [], "reports": []}
    with pytest.MonkeyPatch.context() as monkeypatch:
        # Its rewritten loops look for this by name, and it puts it into the kernel's own module alone.
        monkeypatch.setattr(builtins, "_triton_viz_loop_patcher", patch._loop_patcher, raising=False)
        monkeypatch.setattr(interpreter_builder, "create_fma", lambda x, y, z: x)
        told = (store_signs, load_signs, merge_rows, sum_rows, over_rows, any_in_doubt, is_last)
        told += (words, standard_normal, uniform)
        for module, function in product(MODULES, told):
            if hasattr(module, function.__name__):
                monkeypatch.setattr(module, function.__name__, function)
        for access in sys.argv[1:]:
            drop_masks(access, monkeypatch)
        monkeypatch.setattr(traffic, "_observer", lambda launch: check(launch, seen))
        for each in RAGGED if sys.argv[1:] else CALLS:
            # Refused: rows that are one and the same; the reshaping by which signs are packed.
            if each.layout != "expanded" and each.call.op != "batch_norm_add_relu" and not each.device.l2:
                each.run(torch.device("cpu"))
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
