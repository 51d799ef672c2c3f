"""The time of all norms of a model: a bar for each provider, stacked by shape."""

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
    height = 0.75 + 0.42 * len(order)
    with svg.drawing(WIDTH, height, (0.2, 0.98, 0.5 / height, 1 - 0.06 / height)) as (figure, axes):
        for row, provider in enumerate(order):
            colour, left = legend[provider].colour, 0.0
            red, green, blue = (0.7 * light + 0.3 for light in to_rgb(colour))
            parts = sorted(headline.parts[provider].items(), key=lambda part: (-part[1], part[0]))
            for place, (shape, part) in enumerate(parts):
                # Neighbours differ in lightness, and paper parts them.
                shade = to_hex((red, green, blue)) if place % 2 else colour
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
        sums = ", ".join(f"{provider} {number(headline.milliseconds[provider])} ms" for provider in order)
        return svg.inline(figure, name, f"{headline.about}: {sums}")


def _light(colour: str) -> bool:
    """Returns whether dark text is easier to read, by WCAG's relative luminance: 0.18 is the middle."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18
