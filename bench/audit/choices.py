"""The names that --op and --preset of the audit accept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from bench.audit import synchronized
from bench.cases import models as shapes
from bench.cases.operators import Operator, operators


@cache
def audited() -> Mapping[str, Operator]:
    """Returns the operators that can be audited, by name: all that can be measured, and synchronized batch norm."""
    return {**operators(), synchronized.OPERATOR.name: synchronized.OPERATOR}


def presets(ops: Iterable[str]) -> tuple[str, ...]:
    """Returns what can be audited of these operators: their presets, and `extra`."""
    return (*dict.fromkeys(name for op in ops for name in audited()[op].presets), "extra")


def models(ops: Iterable[str]) -> tuple[str, ...]:
    """Returns the presets that are models, and `extra`: what is audited by default."""
    return (*(name for name in presets(ops) if name in shapes.names()), "extra")
