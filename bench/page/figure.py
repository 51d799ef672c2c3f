"""The report's figures, drawn with seaborn and matplotlib and handed over as inline SVG."""

from __future__ import annotations

from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True)
class Panel:
    """One figure with the words above and below it."""

    title: str
    image: Markup
    note: str = ""


@dataclass
class Gallery:
    """The figures of a page, which stand packed at its end: a full sweep has hundreds, and all are much alike."""

    images: list[Markup] = field(default_factory=list)

    def add(self, image: Markup) -> int:
        """The place of the figure, by which scripts/figures.js finds it."""
        self.images.append(image)
        return len(self.images) - 1
