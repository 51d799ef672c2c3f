"""Writes figures of error, and numbers that somebody chose."""

import math
import re
from typing import Any, TypeGuard

DASH = "–"  # noqa: RUF001


def present(value: Any) -> TypeGuard[float]:
    """Returns whether there is a finite number to show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def short(value: Any, digits: str = ".4g") -> str:
    """A chosen number as it was chosen: 1.05, 2, 1e-5."""
    if not present(value):
        return DASH
    return re.sub(r"e([+-])0?(?=\d)", lambda match: f"e{match[1].strip('+')}", f"{value:{digits}}")


def scientific(value: Any) -> str:
    """Two digits and a short exponent: 3.1e-6."""
    return "0" if value == 0 else short(value, ".1e")


def error_figure(name: str, value: Any) -> str:
    """A figure of error: ratios as 1.003, small errors as 3.1e-6."""
    if value is None:
        return DASH
    if not present(value):
        return "not finite"
    if name not in ("floor_ratio", "error_vs_torch"):
        return scientific(value)
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 99.95 else f"{value:,.0f}"
