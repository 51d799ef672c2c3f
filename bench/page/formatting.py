"""Numbers as text: three digits, a unit, and a dash where there is none."""

import math
from typing import Any

from bench.results.numbers import DASH as DASH  # for pages, which import it from here
from bench.results.numbers import present, scientific


def number(value: Any, digits: int = 3) -> str:
    """`digits` significant digits without an exponent: 0.123, 12.3, 1,230."""
    if not present(value):
        return DASH
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")  # 9.996 is 10.0, not 10.00
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{decimals}f}" if decimals <= 6 else scientific(value)


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> tuple[float, str]:
    return next(((scale, unit) for scale, unit in units if abs(value) >= scale), units[-1])


TIME_UNITS = ((1e6, "s"), (1e3, "ms"), (1.0, "µs"))
BYTE_UNITS = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))


def duration(us: Any) -> str:
    """Microseconds in the unit that fits: 12.3 µs, 4.56 ms."""
    if not present(us):
        return DASH
    scale, unit = _scaled(us, TIME_UNITS)
    return f"{number(us / scale)} {unit}"


def round_duration(us: float) -> str:
    """A round time on an axis: 3 µs, 1 ms."""
    scale, unit = _scaled(us, TIME_UNITS)
    return f"{us / scale:g} {unit}"


def size(count: Any) -> str:
    """Bytes in the unit that fits: 64 KiB, 1.5 MiB."""
    if not present(count):
        return DASH
    scale, unit = _scaled(count, BYTE_UNITS)
    return f"{count / scale:.3g} {unit}" if count / scale < 1000 else f"{count / scale:,.0f} {unit}"


def times(ratio: Any) -> str:
    """A ratio of times: 1.42x, with the multiplication sign."""
    return f"{number(ratio)}×" if present(ratio) else DASH  # noqa: RUF001


def percent(fraction: Any) -> str:
    """A fraction as a percentage: 87%, 2.1%."""
    if not present(fraction):
        return DASH
    text = f"{100 * fraction:.1f}" if abs(fraction) < 0.1 else f"{100 * fraction:,.0f}"
    return f"{text.removesuffix('.0')}%"


def change(share: Any) -> str:
    """A change with its sign: +5.1%."""
    return f"{round(100 * share, 1) + 0.0:+,.1f}%" if present(share) else DASH  # + 0.0: no -0.0


def count(value: Any) -> str:
    """A whole number: 1,200; a median of counts is rounded."""
    return f"{value:,.0f}" if present(value) else DASH


def plural(count: int, noun: str) -> str:
    """1 cell, 1,200 cells."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def spoken(name: str) -> str:
    """An operator's name in words: batch norm, RMS norm."""
    return " ".join("RMS" if word == "rms" else word for word in name.split("_"))


def day(moment: Any) -> str | None:
    """An ISO 8601 time without seconds, or None: 2026-01-02 03:04 UTC."""
    return str(moment)[:16].replace("T", " ") + " UTC" if moment else None
