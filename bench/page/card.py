"""A verdict as a page shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """One verdict: a title, the figure, and what stands behind it."""

    title: str
    value: str
    detail: str
    tone: str = "plain"  # good, bad, caution, plain
