"""Bandwidth and time against size, the roofline, speedup over two axes, and what the norms of a model take."""

from typing import Any

import pandas as pd

from bench.cases.case import MODES
from bench.page import palette
from bench.page.chart import slug
from bench.page.palette import Key
from bench.page.templating import Panel
from bench.report import facts
from bench.report.figures import maps, models, speed
from bench.report.sections import Section
from bench.results.headline import Headline
from bench.results.load import LoadedRun, ordered

Legend = dict[str, Key]


def of_operator(run: LoadedRun, op: str, legend: Legend) -> dict[str, Any]:
    """Returns the panels of one operator by mode; all its panels of bandwidth have the same vertical scale."""
    cells = run.cells[run.cells["op"] == op]
    plotted = cells[cells["timed"] & cells["gbps"].notna()]
    top = 1.12 * max([*plotted["gbps"], run.environment["copy_gbps"] or 0], default=1.0)
    axes = list(next(record.axes for record in run.records if record.op == op))
    peers = run.duels.drop_duplicates("case").set_index("case")["ratio"]
    modes = []
    for mode in ordered(cells["mode"]):
        panels: dict[str, Any] = {"mode": mode, "lines": [], "times": [], "roofs": [], "maps": {}, "note": ""}
        for (dtype, layout), here in _by_dtype_and_layout(cells[cells["mode"] == mode]):
            title = " ".join(part for part in (dtype, layout) if part)
            names = [slug(kind, op, mode, dtype, layout) for kind in ("gbps", "time")]
            part = here[here["timed"] & here["gbps"].notna()]
            if len(part):
                panels["lines"].append(speed.throughput(run, part, legend, top, names[0], title))
                panels["times"].append(speed.latency(run, part, legend, names[1], title))
            ours = here[here["provider"] == run.subject]
            ours = ours.assign(peer=ours["case"].map(peers))
            if pair := maps.heat_axes(ours, axes):
                for ratio, over in (("speedup", run.baseline), ("peer", "the best peer")):
                    if ours[ratio].notna().any():
                        name = slug(ratio, op, mode, dtype, layout)
                        image = maps.speedup_map(ours, ratio, f"over {over}", pair, name, title)
                        panels["maps"].setdefault(over, []).append(image)
                rest = [axis for axis in axes if axis not in pair and ours[axis].nunique() > 1]
                panels["note"] = f"Each square is the lowest over {', '.join(rest)}." if rest else ""
        of_mode = plotted[plotted["mode"] == mode]
        for dtype in ordered(of_mode["dtype"]):
            part, least = of_mode[of_mode["dtype"] == dtype], float(plotted["latency_us"].min())
            panels["roofs"].append(speed.roofline(run, part, legend, least, slug("roofline", op, mode, dtype), dtype))
        if panels["lines"] or panels["maps"]:
            modes.append(panels)
    return {"op": op, "modes": modes}


def _by_dtype_and_layout(cells: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    parts = dict(iter(cells.groupby(["dtype", "layout"])))
    places = [(dtype, layout) for layout in ordered(cells["layout"]) for dtype in ordered(cells["dtype"])]
    return [(place, parts[place]) for place in places if place in parts]


def of_models(found: list[Headline], legend: Legend) -> list[Panel]:
    """Draws a bar a provider for everything that a model's norms take."""
    panels = []
    for headline in found:
        words = (headline.model, headline.what, headline.operator, headline.batch, headline.dtype, headline.layout)
        without = [f"{name} has no sum: it lacks {', '.join(shapes)}." for name, shapes in headline.lacking.items()]
        panels.append(models.stacked(headline, legend, slug("model", *words), " ".join(without)))
    return panels


def _context(run: LoadedRun) -> dict[str, Any]:
    if not run.has_speed:  # the template writes nothing then
        return {}
    legend = palette.keys(run.providers)
    return {
        "operators": [of_operator(run, op, legend) for op in ordered(run.cells["op"])],
        "models": of_models(facts.models(run), legend),
        "modes": MODES,
        "heat_ends": palette.HEAT_ENDS,
    }


SECTION = Section(30, "Throughput", _context)
