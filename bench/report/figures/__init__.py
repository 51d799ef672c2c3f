"""The report's figures, drawn with seaborn and matplotlib and handed over as inline SVG."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Panel:
    """One figure with the words above and below it."""

    title: str
    image: Markup
    note: str = ""
