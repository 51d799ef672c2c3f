"""The time of all norms of a model: a bar for each provider, stacked by shape."""

from collections.abc import Mapping

from markupsafe import Markup
from matplotlib.colors import to_hex, to_rgb

from bench.page import svg
from bench.page.formatting import number
from bench.page.palette import Key
from bench.results.headline import Headline

WIDTH = 7.6  # inches: a bar has many parts
LETTER = 0.0115  # of the longest bar: about what a letter of a shape's name takes at this width


def stacked(headline: Headline, legend: dict[str, Key], name: str) -> Markup:
    """Draws the milliseconds of each provider, the fastest on top; a part is all norms of one shape."""
    order = sorted(headline.milliseconds, key=lambda provider: (headline.milliseconds[provider], provider))
    longest = max(headline.milliseconds.values())
    with svg.style():
        figure = svg.new(WIDTH, 0.75 + 0.42 * len(order))
        axes = figure.subplots()
        for row, provider in enumerate(order):
            colour, left = legend[provider].colour, 0.0
            for place, (shape, part) in enumerate(_largest_first(headline.parts[provider])):
                # Neighbours differ in lightness, and paper parts them.
                shade = _lighter(colour) if place % 2 else colour
                axes.barh(row, part, left=left, height=0.62, color=shade, edgecolor=svg.PAPER, linewidth=0.7)
                if part > LETTER * len(shape) * longest:
                    on = "#1d2023" if _light(shade) else "#fefefe"
                    axes.text(left + part / 2, row, shape, ha="center", va="center", fontsize=6.5, color=on)
                left += part
            axes.text(left, row, f" {number(left)}", va="center", fontsize=8.5, color=svg.INK)
        axes.set_yticks(range(len(order)), order)
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.set_xlim(0, longest * 1.14)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("ms")
        height = figure.get_figheight()
        figure.subplots_adjust(left=0.2, right=0.98, bottom=0.5 / height, top=1 - 0.06 / height)
        sums = ", ".join(f"{provider} {number(headline.milliseconds[provider])} ms" for provider in order)
        return svg.inline(figure, name, f"{headline.about}: {sums}")


def _largest_first(parts: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(parts.items(), key=lambda part: (-part[1], part[0]))


def _lighter(colour: str) -> str:
    red, green, blue = (0.7 * part + 0.3 for part in to_rgb(colour))
    return to_hex((red, green, blue))


def _light(colour: str) -> bool:
    """Returns whether dark text is easier to read, by WCAG's relative luminance: 0.18 is the middle."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18
