"""Puts the report together: facts and figures into the templates, everything inside one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from bench.case import MODES
from bench.report import cells_table, facts, figures, formatting, thresholds
from bench.report.data import Run, ordered
from bench.report.definitions import DEFINITIONS, STATUS_WORDS
from bench.report.templating import style, templates
from bench.report.verdict import Verdict

HERE = Path(__file__).parent


def html(run: Run) -> str:
    """The whole report as one HTML document."""
    return templates().get_template("report.html.j2").render(_context(run))


def _context(run: Run) -> dict[str, Any]:
    legend = figures.keys(run)
    verdict = Verdict(run)
    complete, completeness = facts.completeness(run)
    table = cells_table.payload(run)
    return {
        "run": run,
        "env": run.environment,
        "limits": thresholds,
        "subject": thresholds.SUBJECT,
        "style": style(),
        "script": Markup((HERE / "script.js").read_text(encoding="utf-8")),
        "complete": complete,
        "completeness": completeness,
        "facts_line": _measured(run),
        "machine": _machine(run.environment),
        "verdict": verdict,
        "summary": facts.summary_rows(run),
        "legend": legend,
        "throughput": [_throughput(run, op, legend) for op in ordered(run.cells["op"])] if run.has_speed else [],
        "accuracy": [_accuracy(run, op, legend) for op in ordered(run.errors["op"])],
        "own_failures": facts.failures(run, thresholds.SUBJECT),
        "failures": facts.failures(run),
        "warnings": facts.warnings(run),
        "providers": facts.providers(run),
        "modes": MODES,
        "heat_ends": figures.HEAT_ENDS,
        "environment": _flat(run.environment),
        "columns": table["columns"],
        "cells_json": htmlsafe_json_dumps(table, separators=(",", ":"), allow_nan=False),
        "definitions": DEFINITIONS,
        "status_words": STATUS_WORDS,
        "raw_file": "records.csv" if (run.folder / "records.csv").exists() else "records.jsonl",
    }


def _measured(run: Run) -> str:
    """What was measured, in one line."""
    cells = run.cells
    if not len(cells):
        return "No cell has a record."
    ops = ", ".join(formatting.spoken(op) for op in ordered(cells["op"]))
    return (
        f"{formatting.plural(len(cells), 'cell')}: {ops}; {', '.join(ordered(cells['dtype']))}; "
        f"{', '.join(ordered(cells['mode']))}; {formatting.plural(cells['provider'].nunique(), 'provider')} "
        f"({', '.join(run.providers)})."
    )


def _machine(env: dict[str, Any]) -> list[tuple[str, str]]:
    """The head's facts; what was not recorded is left out."""
    gpu = env["gpu"] if isinstance(env["gpu"], dict) else {}
    commit = str(env["git_commit"] or "")[:12]
    state = "" if env["git_dirty"] is None else "with uncommitted changes" if env["git_dirty"] else "clean"
    rows = [
        ("Device", env["device_name"] or env["device"]),
        ("GPU driver", gpu.get("driver")),
        ("PyTorch", env["torch"]),
        ("Triton", env["triton"]),
        ("CUDA", env["cuda"]),
        ("cuDNN", env["cudnn"]),
        ("Commit", f"{commit} {state}" if commit else None),
        ("Copy bandwidth", f"{formatting.number(env['copy_gbps'])} GB/s" if env["copy_gbps"] else None),
        ("Started", _date(env["started"])),
        ("Finished", _date(env["finished"])),
    ]
    return [(name, str(value)) for name, value in rows if value]


def _date(value: Any) -> str | None:
    return str(value)[:16].replace("T", " ") + " UTC" if value else None


def _flat(described: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested keys joined by blanks, in order, without what is empty or shown elsewhere."""
    rows = []
    for key, value in described.items():
        name = f"{before}{key}".replace("_", " ")
        if not before and key in ("providers", "notes"):
            continue
        if isinstance(value, dict):
            rows += _flat(value, f"{name} ")
        elif isinstance(value, bool):
            rows.append((name, "yes" if value else "no"))
        elif key.endswith("_bytes") and formatting.present(value):
            rows.append((name.removesuffix(" bytes"), formatting.size(value)))
        elif isinstance(value, float):
            rows.append((name, formatting.number(value, 4)))
        elif value not in (None, ""):
            rows.append((name, str(value)))
    return rows


def _throughput(run: Run, op: str, legend: dict[str, figures.Key]) -> dict[str, Any]:
    """The panels of one operator, by mode; every panel of an operator has the same vertical scale."""
    cells = run.cells[run.cells["op"] == op]
    plotted = cells[cells["timed"] & cells["gbps"].notna()]
    copy = run.environment["copy_gbps"]
    top = 1.12 * max([*plotted["gbps"], copy or 0], default=1.0)
    axes = list(next(record.axes for record in run.records if record.op == op))
    modes = []
    for mode in ordered(cells["mode"]):
        lines, maps, note = [], [], ""
        for dtype in ordered(cells["dtype"]):
            for layout in ordered(cells["layout"]):
                here = (cells["mode"] == mode) & (cells["dtype"] == dtype) & (cells["layout"] == layout)
                title = " ".join(part for part in (dtype, layout) if part)
                name = figures.slug("gbps", op, mode, dtype, layout)
                part = plotted[here.loc[plotted.index]]
                if len(part):
                    image = figures.throughput(part, legend, copy, top, name)
                    lines.append(figures.Panel(title, image))
                ours = cells[here & (cells["provider"] == thresholds.SUBJECT)]
                pair = figures.heat_axes(ours, axes)
                if pair and (ours["speedup"].notna().any()):
                    image = figures.speedup_map(ours, pair, figures.slug("speedup", op, mode, dtype, layout))
                    maps.append(figures.Panel(title, image))
                    rest = [axis for axis in axes if axis not in pair and ours[axis].nunique() > 1]
                    note = f"Each square is the lowest over {', '.join(rest)}." if rest else ""
        if lines or maps:
            modes.append({"mode": mode, "lines": lines, "maps": maps, "note": note})
    timed = set(plotted["provider"])
    return {"op": op, "modes": modes, "legend": [key for key in legend.values() if key.provider in timed]}


def _accuracy(run: Run, op: str, legend: dict[str, figures.Key]) -> dict[str, Any]:
    """The judged figure and the scale error of one operator, a panel a dtype, and the subject's worst cells."""
    errors = run.errors[run.errors["op"] == op]
    panels = []
    for dtype in ordered(errors["dtype"]):
        part = errors[errors["dtype"] == dtype]
        for figure_name in dict.fromkeys((thresholds.JUDGED_BY.get(dtype, "rel_l2_error"), "scale_error")):
            bounds = figures.bounds_of(errors, figure_name, dtype)
            name = figures.slug("error", op, dtype, figure_name)
            drawn = figures.error_figure(part, figure_name, bounds, legend, name)
            if drawn:
                ends = [formatting.short(bound) for bound in dict.fromkeys(bounds or ())]
                notes = [f"Bound {' to '.join(ends)}." if ends else "No bound."]
                if drawn.undrawn:
                    notes.append(f"{formatting.plural(drawn.undrawn, 'value')} not finite, not drawn.")
                panels.append(figures.Panel(f"{dtype} tensors: {figure_name}", drawn.image, " ".join(notes)))
    present = set(errors["provider"])
    return {
        "op": op,
        "panels": panels,
        "offsets": _offsets(run, op, legend),
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


def _offsets(run: Run, op: str, legend: dict[str, figures.Key]) -> list[figures.Panel]:
    """float32 error against mean/std, a panel a tensor, where the run has inputs with an offset."""
    fp32 = run.cells.loc[(run.cells["dtype"] == "fp32") & (run.cells["op"] == op), "cell"]
    errors = run.errors[run.errors["inputs"].isin(("normal", "offset")) & run.errors["cell"].isin(fp32)]
    if not (errors["inputs"] == "offset").any():
        return []
    # NaN is as wrong as a result can be, and is drawn where that is.
    errors = errors.assign(rel_l2_error=errors["rel_l2_error"].fillna(thresholds.LARGEST_ERROR_DRAWN))
    top = float(errors["rel_l2_error"].clip(upper=thresholds.LARGEST_ERROR_DRAWN).max())
    return [
        figures.Panel(tensor, figures.error_against_offset(part, legend, top, figures.slug("offset", op, str(tensor))))
        for tensor, part in errors.groupby("tensor", sort=False)
    ]
