"""Records -> one HTML file that opens offline. Imports neither torch nor triton."""

from __future__ import annotations

from pathlib import Path

from bench.report.data import UnreadableRun, load

__all__ = ["UnreadableRun", "render"]


def render(run_dir: Path) -> Path:
    """Writes report.html into a run's folder and returns its path.

    Reads records.jsonl and environment.json there, and nothing else; the same files give the same bytes.
    Raises UnreadableRun, with one line, where one of them is missing or broken; nothing is written then.
    """
    # Here, for the libraries that draw take a second to import, and bench.compare draws nothing.
    from bench.report.page import html

    page = html(load(run_dir))
    path = run_dir / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
