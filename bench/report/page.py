"""Puts the report together: every section into its template, everything inside one file."""

from typing import Any

from bench.page import chart, machine, palette
from bench.page.formatting import plural, spoken
from bench.page.templating import packed, scripts, style, templates
from bench.report import sections
from bench.report.sections.trust import completeness
from bench.results import tables, thresholds
from bench.results.load import LoadedRun, ordered


def html(run: LoadedRun) -> str:
    """Returns the whole report as one HTML document."""
    environment = templates(*sections.__path__)
    complete, completeness_sentence = completeness(run)
    shared: dict[str, Any] = {
        "run": run,
        "env": run.environment,
        "limits": thresholds,
        "subject": run.subject,
        "complete": complete,
        "completeness": completeness_sentence,
        "machine": machine.facts(run.environment),
        "raw_file": tables.CSV if (run.folder / tables.CSV).exists() else "records.jsonl",
        "gallery": [],
        "definitions": [],
    }
    shared["m"] = environment.get_template("macros.html.j2").make_module(shared)
    titles, bodies = {}, []
    for name, section in sections.every().items():
        body = environment.get_template(f"{name}.html.j2").make_module(shared | section.context(run))
        if str(body):
            titles[name] = section.title
            bodies.append(body)
        if definitions := getattr(body, "definitions", None):
            shared["definitions"].append(definitions())
    page = environment.get_template("report.html.j2")
    return page.render(
        **shared,
        style=style(),
        scripts=scripts("theme", "copy", "packed", "distribution", "table", "charts"),
        measured=_measured(run),
        titles=titles,
        bodies=bodies,
        legend=palette.keys(run.providers).values(),
        markers=chart.markers(list(palette.keys(run.providers).values())),
        points=packed(
            {
                "providers": run.providers,
                "panels": [chart.columns(points, run.providers) for points in shared["gallery"]],
            }
        ),
    )


def _measured(run: LoadedRun) -> str:
    """Returns what was measured, in one line."""
    cells = run.cells
    if not len(cells):
        return "No cell has a record."
    dtypes, modes = (", ".join(ordered(cells[name])) for name in ("dtype", "mode"))
    return (
        f"{plural(len(cells), 'cell')}: {', '.join(map(spoken, ordered(cells['op'])))}; {dtypes}; {modes}; "
        f"{plural(len(run.providers), 'provider')} ({', '.join(run.providers)})."
    )
