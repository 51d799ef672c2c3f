"""Makes one HTML file, which opens offline, of a run, and a summary for a pull request. Imports no torch."""

from pathlib import Path

from bench import writing
from bench.page import FIGURES, REPORT

SUMMARY = "summary.md"


def render(run_dir: Path | str, figures: bool = False, subject: str | None = None) -> Path:
    """Writes report.html and summary.md into a run's folder, and returns the report's path.

    `subject` is the provider that the verdicts are about; by default the one that the run was started with.
    With `figures` every chart is also left in figures/, as SVG. Reads records.jsonl, environment.json and
    samples.jsonl there, and nothing else; the same files give the same bytes.
    Raises UnreadableRun, with one line, where one of the first two is missing or broken; nothing is written then.
    """
    # Here, because pandas and the libraries that draw take a second to import, which `--help` need not wait for.
    from bench.page import chart, palette
    from bench.report import markdown, page
    from bench.results.load import load

    run = load(run_dir, subject=subject)
    run_dir = run.folder
    keys = list(palette.keys(run.providers).values())
    with chart.files_in(run_dir / FIGURES if figures else None, keys):
        html = page.html(run)
    path = run_dir / REPORT
    writing.write(path, html)
    writing.write(run_dir / SUMMARY, markdown.summary(run))
    return path
