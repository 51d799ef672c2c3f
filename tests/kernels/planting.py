"""Faults for the sanitizers to find, planted in the kernels themselves or in their plans."""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import triton
import triton.language as tl
from every_kernel import MODULES

from normlib.kernels.batch_norm import plan as batch_norm_plan
from normlib.kernels.numerics import STAYS
from normlib.kernels.row_norm import plan as row_plan


@triton.jit
def _load_without_mask(pointer, mask, ACC: tl.constexpr, EVICT: tl.constexpr = STAYS):
    return tl.load(pointer).to(ACC)


@triton.jit
def _load_narrow_without_mask(pointer, mask, EVICT: tl.constexpr = STAYS):
    return tl.load(pointer)


@triton.jit
def _store_without_mask(pointer, value, mask, EVICT: tl.constexpr = STAYS):
    tl.store(pointer, value.to(pointer.dtype.scalar.element_ty))


UNMASKED = {
    "load": {"load": _load_without_mask, "load_narrow": _load_narrow_without_mask},
    "store": {"store": _store_without_mask},
}


def drop_masks(access: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of every load, or of every store, of every kernel."""
    for module in MODULES:
        for name, unmasked in UNMASKED[access].items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, unmasked)


def _shorter(p: Any) -> Any:
    return replace(p, chunks=p.chunks - 1)


# By the function whose plans leave something out: its module, and how they do.
OMISSIONS: dict[str, tuple[ModuleType, Callable[[Any], Any]]] = {
    "row_forward": (row_plan, _shorter),
    "row_backward": (row_plan, lambda p: replace(p, rows=_shorter(p.rows))),
    "batch_norm": (batch_norm_plan, lambda p: replace(p, positions=p.positions - 1)),
}


def omit(chooser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, leave_out = OMISSIONS[chooser]
    choose = getattr(plan, chooser)
    monkeypatch.setattr(plan, chooser, lambda *args, **kwargs: leave_out(choose(*args, **kwargs)))


@triton.jit
def write_one_place(out_ptr):
    """Every program its own number, to the same place."""
    tl.store(out_ptr, tl.program_id(0))


@triton.jit
def pass_along(out_ptr, BACKWARDS: tl.constexpr):
    """Every program its number, and it reads a neighbour's: the one before it, or the one after it."""
    i = tl.program_id(0)
    j = i + 1 if BACKWARDS else i - 1
    neighbour = tl.load(out_ptr + j, mask=(j >= 0) & (j < tl.num_programs(0)), other=0)
    tl.store(out_ptr + i, neighbour * 0 + i)
