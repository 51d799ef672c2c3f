"""Errors against float64: by tensor, against size and against the mean, by family of inputs, and the worst cells."""

from typing import Any

import pandas as pd

from bench.cases.case import INPUTS
from bench.page import palette
from bench.page.chart import slug
from bench.page.formatting import plural
from bench.page.palette import Key
from bench.page.templating import Panel
from bench.report import facts
from bench.report.figures import errors
from bench.report.sections import Section
from bench.results import thresholds
from bench.results.load import LoadedRun, ordered
from bench.results.numbers import error_figure, present, short

Legend = dict[str, Key]


def of_operator(run: LoadedRun, op: str, legend: Legend) -> dict[str, Any]:
    """Returns the figures and tables of one operator."""
    of_op = run.errors[run.errors["op"] == op]
    worst = facts.worst_errors(run)
    worst = worst[worst["op"] == op].head(thresholds.WORST_SHOWN).to_dict("records")
    for row in worst:
        row["value"] = error_figure(row["decided_by"], row.get(row["decided_by"]))
        row["limit"] = short(row["bound"]) if present(row["bound"]) else ""
    present_here = set(of_op["provider"])
    return {
        "op": op,
        "panels": _by_tensor(of_op, legend),
        "sizes": _against(of_op[of_op["inputs"] == "normal"], "size", legend, run.subject),
        "offsets": _against(_with_offsets(of_op), "mean/std", legend, run.subject),
        "families": families(run, op),
        "batches": batches(run, op),
        "worst": worst,
        "legend": [key for key in legend.values() if key.provider in present_here],
    }


def _by_tensor(of_op: pd.DataFrame, legend: Legend) -> list[Panel]:
    """Draws the judged figure and the scale error of every tensor, a panel a dtype."""
    panels = []
    for dtype in ordered(of_op["dtype"]):
        for figure_name in dict.fromkeys((thresholds.JUDGED_BY.get(dtype, "rel_l2_error"), "scale_error")):
            bounds = errors.bounds_of(of_op, figure_name, dtype)
            name = slug("error", of_op["op"].iloc[0], dtype, figure_name)
            of_dtype = of_op[of_op["dtype"] == dtype]
            title = f"{dtype} tensors: {figure_name}"
            if panel := errors.error_figure(of_dtype, figure_name, bounds, legend, name, title):
                panels.append(panel)
    return panels


def _against(errors_of_op: pd.DataFrame, x: str, legend: Legend, subject: str) -> list[Panel]:
    """Draws errors against `x`, a panel a tensor and dtype that has more than one value of it."""
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
            panels.append(errors.against(part, figure_name, x, bounds, legend, name, subject))
    return panels


def _with_offsets(errors_of_op: pd.DataFrame) -> pd.DataFrame:
    """Returns errors of normal inputs and of those with a given mean, by `mean/std`; none where no mean was given."""
    found = errors_of_op[errors_of_op["inputs"].isin(("normal", "offset"))]
    if not (found["inputs"] == "offset").any():
        return found[:0].assign(**{"mean/std": []})
    at = found["offset"].where(found["inputs"] == "offset", thresholds.LARGEST_NORMAL_OFFSET)
    return found.assign(**{"mean/std": at})


def families(run: LoadedRun, op: str) -> list[dict[str, Any]]:
    """Returns, by family of inputs, each provider's right and judged cells; nothing where all inputs are normal."""
    cells = facts.judged(run.cells[run.cells["op"] == op])
    if set(cells["inputs"]) <= {"normal"}:
        return []
    rank = {name: place for place, name in enumerate(INPUTS)}
    found = set(zip(cells["inputs"], cells["offset"], strict=True))
    rows = []
    for name, offset in sorted(found, key=lambda family: (rank.get(family[0], len(rank)), family[1])):
        here = cells[(cells["inputs"] == name) & (cells["offset"] == offset)]
        counts = {p: (int((part["status"] == "ok").sum()), len(part)) for p, part in here.groupby("provider")}
        about = f"mean/std {short(offset)} in every statistic" if offset else INPUTS.get(name, "")
        rows.append({"name": name, "about": about, "right": counts})
    return rows


def batches(run: LoadedRun, op: str) -> str:
    """Returns a sentence on whose rows have other bits without the rest of the batch; "" where that was not tried."""
    cells = run.cells[(run.cells["op"] == op) & run.cells["batch_invariant"].notna()]
    found = {name: list(one) for name, one in cells.groupby("provider")["batch_invariant"]}
    same = [name for name, one in found.items() if all(one)]
    other = [f"{n} (in {plural(one.count(False), 'cell')} of {len(one)})" for n, one in found.items() if n not in same]
    parts = [f"are the same whatever rows are beside it: {', '.join(same)}"] * bool(same)
    parts += [f"depend on them: {', '.join(other)}"] * bool(other)
    return f"The bits of a row {'; they '.join(parts)}." if parts else ""


def _context(run: LoadedRun) -> dict[str, Any]:
    legend = palette.keys(run.providers)
    return {"operators": [of_operator(run, op, legend) for op in ordered(run.errors["op"])]}


SECTION = Section(40, "Accuracy", _context)
