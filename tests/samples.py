"""Runs one sample through PyTorch and normlib, in several layouts, and compares everything that comes back.

The reference is PyTorch's own module or function in float64, on the values as rounded to the sample's dtype: its
16-bit backward is several roundings off in places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import pytest
import torch
from calls import Ran
from term_bounds import assert_one_rounding_away, buffer_terms, terms
from torch import Tensor

from normlib.kernels.numerics import INTERPRETED

# It imports expecttest, which PyTorch does not install.
noncontiguous_like = pytest.importorskip("torch.testing._internal.common_utils").noncontiguous_like

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SUBSET_DTYPES = (torch.bfloat16, torch.float32)
LEAVES = ("input", "weight", "bias")
RUNNING = ("running_mean", "running_var")
BUFFERS = (*RUNNING, "num_batches_tracked")
STRIDED = [LEAVES, ("dy",)]

Tensors = dict[str, Tensor | None]
# From the tensors to what calls with them, and to those that are used: a module has parameters of its own.
Prepare = Callable[[Tensors], tuple[Callable[[], Tensor], Tensors]]


@dataclass
class Sample:
    name: str
    tensors: Tensors  # LEAVES and BUFFERS, None for those it has not
    ours: Prepare
    theirs: Prepare
    truth: Prepare  # PyTorch's, told `eps`: its default depends on the dtype
    norm: str
    eps: float
    normalized: int = 0  # how many of the last dimensions a row spans
    given: bool = False  # whether the running statistics normalize
    grouped: tuple[int, ...] | None = None  # of group norm, the input as (N, groups, channels of one, positions)


def few(images: Tensor) -> Tensor:
    """Returns the first two images in the interpreter, which takes some milliseconds for each."""
    return images[:2] if INTERPRETED.value else images


def outcome(prepare: Prepare, tensors: Tensors, dy: Tensor, needs, strided=()) -> Tensors:
    """Returns y, the gradients that `needs` asks for (None for the others) and the buffers after the call."""
    copies = {n: None if t is None else t.detach().clone() for n, t in tensors.items()}
    call, used = prepare({n: noncontiguous_like(t) if n in strided and t is not None else t for n, t in copies.items()})
    for name in LEAVES:
        if used[name] is not None:
            used[name].requires_grad_(name in needs)
    y = call()
    assert y.requires_grad == bool(needs)
    if needs:
        y.backward(noncontiguous_like(dy) if "dy" in strided else dy)
    gradients = {f"d{n}": None if used[n] is None else used[n].grad for n in LEAVES}
    return {"y": y.detach(), **gradients, **{n: used[n] for n in BUFFERS}}


def widened(tensors: Tensors) -> Tensors:
    return {n: t.double() if t is not None and t.is_floating_point() else t for n, t in tensors.items()}


def present(sample: Sample) -> list[str]:
    return [n for n in LEAVES if sample.tensors[n] is not None]


def variants(sample: Sample):
    """Returns pairs (strided tensors, leaves that want a gradient): all leaves in each layout, each subset contiguous.

    Subsets only in a 16-bit and a wide dtype, to save time: they choose launches and outputs, on which the dtype has no
    effect except whether it accumulates in itself. Group norm, whose databases are long, has no subsets and no layouts
    of dy; test_group_norm.py and test_layouts.py have them.
    """
    leaves = present(sample)
    if sample.grouped:
        return [(strided, leaves) for strided in ((), LEAVES)]
    found = [((), leaves), *((strided, leaves) for strided in STRIDED)]
    if sample.tensors["input"].dtype in SUBSET_DTYPES:
        found += [((), subset) for k in range(len(leaves)) for subset in combinations(leaves, k)]
    return found


def check(sample: Sample) -> bool:
    """Compares every variant of the sample; returns True if the kernels ran it, False if PyTorch did."""
    x = sample.tensors["input"]
    dy = torch.randn(x.shape, device=x.device).to(x.dtype)
    truth = outcome(sample.truth, widened(sample.tensors), dy.double(), present(sample))
    on_kernels = {check_variant(sample, dy, truth, *variant) for variant in variants(sample)}
    assert len(on_kernels) == 1, f"{sample.name}: by layout or subset"
    return on_kernels.pop()


def check_variant(sample: Sample, dy: Tensor, truth: Tensors, strided, needs) -> bool:
    label = f"{sample.name}, strided {strided}, gradients {needs}"
    theirs = outcome(sample.theirs, sample.tensors, dy, needs, strided)
    with Ran() as ran:
        ours = outcome(sample.ours, sample.tensors, dy, needs, strided)

    for name, b in theirs.items():
        a = ours[name]
        assert (a is None) == (b is None), f"{label}: {name}"
        assert a is None or (a.shape, a.dtype) == (b.shape, b.dtype), f"{label}: {name}"
    if dy.numel():  # without an element, strides mean nothing: PyTorch's RMS norm gives (1, 0) for shape (0, 1)
        assert ours["y"].stride() == theirs["y"].stride(), f"{label}: {ours['y'].stride()}, {theirs['y'].stride()}"

    if not ran.ours:  # it is PyTorch's, so the bits are
        assert_identical(ours, theirs, label)
        return False
    assert any(name.endswith("_backward") for name in ran.ours) == bool(needs), label
    assert_right(sample, ours, dy, truth, label)
    return True


def assert_identical(ours: Tensors, theirs: Tensors, label: str) -> None:
    for name, t in theirs.items():
        if t is not None:
            message = f"{label}: {name}: {{}}".format
            torch.testing.assert_close(ours[name], t, rtol=0, atol=0, equal_nan=True, msg=message)


def assert_right(sample: Sample, ours: Tensors, dy: Tensor, truth: Tensors, label: str) -> None:
    before = {n: sample.tensors[n] for n in RUNNING if sample.tensors[n] is not None}
    moved = {n: t for n, t in before.items() if not torch.equal(truth[n], t.double())}
    magnitudes = {
        **terms(sample.norm, sample.tensors, dy, sample.normalized, sample.eps, sample.given, sample.grouped),
        **buffer_terms(sample.tensors["input"], moved, truth, sample.grouped),
    }
    for name, t in ours.items():
        if t is not None and name in magnitudes:
            assert_one_rounding_away(t, truth[name], magnitudes[name], f"{label}: {name}")
        elif t is not None:  # counts, and buffers that stay as they are
            assert torch.equal(t, truth[name].to(t.dtype)), f"{label}: {name}"


def complaint(make: Callable[[], object]) -> tuple[type, str] | None:
    """Returns the type and text of what `make` raises, or None."""
    try:
        make()
    except Exception as error:
        return type(error), str(error)
    return None
