"""References to what times and judges a cell, kept before a provider's code is imported, so that a replacement shows.

Python lets any code replace `torch.cuda.Event.elapsed_time` or the judge's bounds. Nothing prevents that in one
process; here it is noticed after each turn of a provider, put right, and said.
"""

from __future__ import annotations

import statistics
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

# What the clock, the judge and the statistics call in other packages.
_BORROWED: tuple[tuple[Any, str, str], ...] = (
    (torch.cuda, "torch.cuda", "Event Stream synchronize current_stream stream _sleep get_device_properties CUDAGraph"),
    (torch, "torch", "where isnan isposinf isneginf frexp ldexp ones_like equal hypot empty zeros"),
    (
        torch.Tensor,
        "torch.Tensor",
        "double norm square sum mean abs to isfinite where clone copy_ fill_ __eq__ __sub__",
    ),
    (time, "time", "perf_counter monotonic sleep process_time"),
    (statistics, "statistics", "median fmean"),
    (np, "numpy", "mean std median percentile"),
)
# The instrument's own modules, in which every function, method and constant is watched.
_OWN = ("bench.measure.", "bench.cases.", "bench.results.", "normlib.reference")
_NOT_OWN = ("bench.measure.providers.", "bench.measure.progress")
_CONSTANTS = (int, float, str, tuple, frozenset)


class KeptReferences:
    """The functions and constants that times and verdicts come from, as they are when this is made."""

    def __init__(self) -> None:
        kept = [(owner, f"{place}.{name}", name, vars(owner).get(name)) for owner, place, name in _watched()]
        # It is asked at every change of turns, so that each loop is as short as can be.
        self._bindings = [(vars(owner), name, value, owner, words) for owner, words, name, value in kept]
        self._code = [(value, value.__code__, words) for _, words, _, value in kept if hasattr(value, "__code__")]
        self._contents = [(value, dict(value), words) for _, words, _, value in kept if isinstance(value, dict)]

    def replaced(self) -> list[str]:
        """Returns the names that stand for something else by now, and lets them stand for what they did."""
        found = []
        for names, name, value, owner, words in self._bindings:
            if names.get(name) is not value:
                if value is None:  # inherited: what shadows it goes away
                    delattr(owner, name)
                else:
                    setattr(owner, name, value)
                found.append(words)
        for function, code, words in self._code:
            if function.__code__ is not code:
                function.__code__ = code
                found.append(words)
        for value, contents, words in self._contents:
            if value != contents:
                value.clear()
                value.update(contents)
                found.append(words)
        return found


def _watched() -> Iterator[tuple[Any, str, str]]:
    """Yields (owner, its name, attribute) of everything that is watched."""
    for owner, place, names in _BORROWED:
        yield from ((owner, place, name) for name in names.split())
    event = torch.cuda.Event
    yield from ((event, "torch.cuda.Event", name) for name in ("record", "elapsed_time", "query", "synchronize"))
    for place, module in list(sys.modules.items()):
        if not place.startswith(_OWN) or place.startswith(_NOT_OWN):
            continue
        for name, value in list(vars(module).items()):
            if name.startswith("__") or isinstance(value, types.ModuleType):
                continue
            if (name.isupper() and isinstance(value, (*_CONSTANTS, dict))) or callable(value):
                yield module, place, name
            if isinstance(value, type) and value.__module__ == place:
                methods = [n for n, v in vars(value).items() if isinstance(v, types.FunctionType | property)]
                yield from ((value, f"{place}.{name}", method) for method in methods)
