"""What the templates of throughput, accuracy and trust are filled with: their figures, panel by panel."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.page import figure as figures
from bench.page import formatting
from bench.page.axes import slug
from bench.page.palette import Key
from bench.report import facts, trust
from bench.report.figures import clocks, errors, maps, models, speed
from bench.results import thresholds
from bench.results.headline import Headline
from bench.results.load import Run, ordered

Legend = dict[str, Key]


def throughput(run: Run, op: str, legend: Legend) -> dict[str, Any]:
    """The panels of one operator, by mode; every panel of bandwidth of an operator has the same vertical scale."""
    cells = run.cells[run.cells["op"] == op]
    plotted = cells[cells["timed"] & cells["gbps"].notna()]
    copy = run.environment["copy_gbps"]
    top = 1.12 * max([*plotted["gbps"], copy or 0], default=1.0)
    axes = list(next(record.axes for record in run.records if record.op == op))
    modes = []
    for mode in ordered(cells["mode"]):
        panels: dict[str, Any] = {"mode": mode, "lines": [], "times": [], "roofs": [], "maps": [], "note": ""}
        of_mode = plotted[plotted["mode"] == mode]
        for (dtype, layout), here in _by_dtype_and_layout(cells[cells["mode"] == mode]):
            title = " ".join(part for part in (dtype, layout) if part)
            names = [slug(kind, op, mode, dtype, layout) for kind in ("gbps", "time", "speedup")]
            part = here[here["timed"] & here["gbps"].notna()]
            if len(part):
                image = speed.throughput(part, legend, copy, top, names[0])
                panels["lines"].append(figures.Panel(title, image))
                panels["times"].append(figures.Panel(title, speed.latency(part, legend, copy, names[1])))
            ours = here[here["provider"] == thresholds.SUBJECT]
            pair = maps.heat_axes(ours, axes)
            if pair and ours["speedup"].notna().any():
                panels["maps"].append(figures.Panel(title, maps.speedup_map(ours, pair, names[2])))
                rest = [axis for axis in axes if axis not in pair and ours[axis].nunique() > 1]
                panels["note"] = f"Each square is the lowest over {', '.join(rest)}." if rest else ""
        if len(of_mode):
            for dtype in ordered(of_mode["dtype"]):
                part = of_mode[of_mode["dtype"] == dtype]
                least = float(plotted["latency_us"].min())
                image = speed.roofline(part, legend, copy, least, slug("roofline", op, mode, dtype))
                panels["roofs"].append(figures.Panel(dtype, image))
        if panels["lines"] or panels["maps"]:
            modes.append(panels)
    timed = set(plotted["provider"])
    return {"op": op, "modes": modes, "legend": [key for key in legend.values() if key.provider in timed]}


def _by_dtype_and_layout(cells: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    parts = dict(iter(cells.groupby(["dtype", "layout"])))
    places = [(dtype, layout) for layout in ordered(cells["layout"]) for dtype in ordered(cells["dtype"])]
    return [(place, parts[place]) for place in places if place in parts]


def of_models(found: list[Headline], legend: Legend) -> list[figures.Panel]:
    """A bar a provider for everything that a model's norms take."""
    panels = []
    for headline in found:
        words = (headline.model, headline.what, headline.operator, headline.batch, headline.dtype, headline.layout)
        without = [f"{name} has no sum: it lacks {', '.join(shapes)}." for name, shapes in headline.lacking.items()]
        image = models.stacked(headline, legend, slug("model", *words))
        panels.append(figures.Panel(headline.about, image, " ".join(without)))
    return panels


def accuracy(run: Run, op: str, legend: Legend) -> dict[str, Any]:
    """The judged figure and the scale error of one operator, a panel a dtype; each tensor; the worst cells."""
    of_op = run.errors[run.errors["op"] == op]
    panels = []
    for dtype in ordered(of_op["dtype"]):
        part = of_op[of_op["dtype"] == dtype]
        for figure_name in dict.fromkeys((thresholds.JUDGED_BY.get(dtype, "rel_l2_error"), "scale_error")):
            bounds = errors.bounds_of(of_op, figure_name, dtype)
            name = slug("error", op, dtype, figure_name)
            drawn = errors.error_figure(part, figure_name, bounds, legend, name)
            if drawn:
                ends = [formatting.short(bound) for bound in dict.fromkeys(bounds or ())]
                notes = [f"Bound {' to '.join(ends)}." if ends else "No bound."]
                if drawn.undrawn:
                    notes.append(f"{formatting.plural(drawn.undrawn, 'value')} not finite, not drawn.")
                panels.append(figures.Panel(f"{dtype} tensors: {figure_name}", drawn.image, " ".join(notes)))
    present = set(of_op["provider"])
    return {
        "op": op,
        "panels": panels,
        "sizes": _tensors(of_op[of_op["inputs"] == "normal"], "size", legend),
        "offsets": _tensors(_with_offsets(of_op), "mean/std", legend),
        "families": facts.families(run, op),
        "worst": [
            {
                **row,
                "value": formatting.figure(row["decided_by"], row.get(row["decided_by"])),
                "limit": formatting.short(row["bound"]) if formatting.present(row["bound"]) else "",
            }
            for row in facts.worst_errors(run, op).head(thresholds.WORST_SHOWN).to_dict("records")
        ],
        "legend": [key for key in legend.values() if key.provider in present],
    }


def _tensors(errors_of_op: pd.DataFrame, x: str, legend: Legend) -> list[figures.Panel]:
    """A panel a tensor and dtype, of those with more than one value of `x`."""
    panels = []
    for dtype in ordered(errors_of_op["dtype"]):
        of_dtype = errors_of_op[errors_of_op["dtype"] == dtype]
        figure_name = thresholds.DRAWN_BY.get(dtype, "rel_l2_error")
        # NaN and Inf are as wrong as a result can be, and are drawn where that is; a ratio's bound is 1.05.
        top = thresholds.LARGEST_ERROR_DRAWN * (1 if figure_name == "rel_l2_error" else 1 / thresholds.LEAST_ERROR)
        drawn = of_dtype.assign(**{figure_name: of_dtype[figure_name].fillna(top).clip(thresholds.LEAST_ERROR, top)})
        for tensor, part in drawn.groupby("tensor", sort=False):
            if part[x].nunique() < 2:
                continue
            bounds = errors.bounds_of(part, figure_name, dtype)
            first = part.iloc[0]
            name = slug("against", x, first["op"], dtype, str(tensor))
            image = errors.against(part, figure_name, x, bounds, legend, name)
            panels.append(figures.Panel(f"{tensor}, {dtype}", image))
    return panels


def _with_offsets(errors_of_op: pd.DataFrame) -> pd.DataFrame:
    """Errors of normal inputs and of inputs with a given mean, by `mean/std`; none where there are none with one."""
    found = errors_of_op[errors_of_op["inputs"].isin(("normal", "offset"))]
    if not (found["inputs"] == "offset").any():
        return found[:0].assign(**{"mean/std": []})
    at = found["offset"].where(found["inputs"] == "offset", thresholds.LARGEST_NORMAL_OFFSET)
    return found.assign(**{"mean/std": at})


# What is drawn over the run: the record's field, its words, its unit, and the key of the limit among the conditions.
OVER_THE_RUN = (
    ("sm_clock_mhz", "SM clock", "MHz", "max_sm_clock_mhz"),
    ("mem_clock_mhz", "memory clock", "MHz", "max_mem_clock_mhz"),
    ("power_w", "power", "W", "power_limit_w"),
    ("temperature_c", "temperature", "°C", ""),
)


def trusted(run: Run) -> dict[str, Any]:
    """Noise by provider, the GPU over the run, and the machine before and after."""
    conditions = run.environment["conditions"]
    before = conditions.get("before") if isinstance(conditions, dict) else None
    limits = before if isinstance(before, dict) else {}
    cells = run.cells[run.cells["timed"]]
    panels = []
    for column, title, unit, limit in OVER_THE_RUN:
        if pd.to_numeric(cells[column]).notna().any():
            top = limits.get(limit)
            drawn = cells.assign(**{column: pd.to_numeric(cells[column])})
            at = float(top) if formatting.present(top) else None
            note = f"The dashed line is the limit, {formatting.number(top, 4)} {unit}." if at else ""
            panels.append(figures.Panel(title, clocks.over_the_run(drawn, column, unit, at, slug("run", column)), note))
    return {"noise": trust.noise(run), "panels": panels, "conditions": trust.conditions(run)}
