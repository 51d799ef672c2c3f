"""A pair of cells in words, for the terminal and the page."""

from __future__ import annotations

from bench.compare.comparison import FASTER, FIXED, NEWLY_WRONG, SLOWER, Pair
from bench.page.formatting import DASH, duration, present


def change(share: float | None) -> str:
    """A change with its sign: +5.1%."""
    return f"{round(100 * share, 1) + 0.0:+,.1f}%" if present(share) else DASH  # + 0.0: no -0.0


def span(pair: Pair) -> str:
    """The interval of a change: +3.9% to +6.3%."""
    return f"{change(pair.low)} to {change(pair.high)}" if present(pair.low) else ""


def told(pair: Pair, word: str) -> str:
    """What there is to say of a cell of which `word` is said, in one line."""
    if word in (SLOWER, FASTER):
        return f"{change(pair.change)} ({span(pair)}), {duration(pair.a.latency_us)} → {duration(pair.b.latency_us)}"
    if word == NEWLY_WRONG:
        return f"{pair.b.status}: {pair.b.reason}" if pair.b.reason else pair.b.status
    if word == FIXED:
        return f"{pair.a.status} → {pair.b.status}"
    return str(pair.growth or pair.why)
