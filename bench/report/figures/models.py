"""The time of all norms of a model: a bar for each provider, stacked by shape."""

from bench.page.chart import Chart, Scale, linear
from bench.page.formatting import number
from bench.page.palette import Key
from bench.page.templating import Panel
from bench.results.headline import Headline

WIDTH, ROW = 760, 34
LETTER = 5.0  # pixels that a letter of a shape's name takes


def stacked(headline: Headline, legend: dict[str, Key], name: str, note: str) -> Panel:
    """Draws the milliseconds of each provider, the fastest on top; a part is all norms of one shape."""
    order = sorted(headline.milliseconds, key=lambda provider: (headline.milliseconds[provider], provider))
    longest = max(headline.milliseconds.values())
    rows = Scale(len(order) - 0.5, -0.5, list(enumerate(order)))
    margin = 16 + 7 * max(map(len, order))
    chart = Chart(
        name, linear(0, longest * 1.14, number, "ms"), rows, WIDTH, 46 + ROW * len(order), (margin, 10, 4, 40)
    )  # fmt: skip
    for row, provider in enumerate(order):
        left, drawn = 0.0, ""
        parts = sorted(headline.parts[provider].items(), key=lambda part: (-part[1], part[0]))
        for place, (shape, part) in enumerate(parts):
            x, end, y = float(chart.at_x(left)), float(chart.at_x(left + part)), float(chart.at_y(row)) - 11
            # Neighbours differ in lightness, and paper parts them.
            faint = ' fill-opacity=".6"' if place % 2 else ""
            drawn += f'<rect class="paper" x="{x:.1f}" y="{y:.1f}" width="{end - x:.1f}" height="22"{faint}/>'
            chart.point(left + part / 2, row, provider, f"{shape}: {number(part)} ms")
            left += part
        chart.series(legend[provider], drawn)
        chart.text(float(chart.at_x(left)) + 5, float(chart.at_y(row)) + 4, number(left))
    sums = ", ".join(f"{provider} {number(headline.milliseconds[provider])} ms" for provider in order)
    return chart.panel(headline.about, f"{headline.about}: {sums}", note, grid="x")
