"""Makes one HTML file, which opens offline, of a run, and a summary for a pull request. Imports no torch."""

from pathlib import Path

from bench.page import FIGURES, REPORT

SUMMARY = "summary.md"


def render(run_dir: Path, figures: bool = False) -> Path:
    """Writes report.html and summary.md into a run's folder, and returns the report's path.

    With `figures` every figure is also left in figures/, as SVG and as PNG. Reads records.jsonl, environment.json and
    samples.jsonl there, and nothing else; the same files give the same bytes.
    Raises UnreadableRun, with one line, where one of the first two is missing or broken; nothing is written then.
    """
    # Here, because pandas and the libraries that draw take a second to import, which `--help` need not wait for.
    from bench.page import svg
    from bench.report import markdown, page
    from bench.results.load import load

    run = load(run_dir)
    with svg.files_in(run_dir / FIGURES if figures else None):
        html = page.html(run)
    path = run_dir / REPORT
    path.write_text(html, encoding="utf-8")
    (run_dir / SUMMARY).write_text(markdown.summary(run), encoding="utf-8")
    return path
