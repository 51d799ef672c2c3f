"""What a run says in Markdown, to be put into a pull request: verdict, losses, warnings."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup

from bench.page.templating import templates
from bench.report import facts, losses, trust
from bench.report.verdict import Verdict
from bench.results import thresholds
from bench.results.load import Run

# What means something to Markdown, to HTML inside it, or to a forge, which would call a person by an @.
SPECIAL = re.compile(r"[\\`*\[\]|<>~@]")


def summary(run: Run) -> str:
    """The whole summary; names and reasons stand in it as they are, whatever they hold."""
    environment = templates(autoescape=False, finalize=_plain)
    return environment.get_template("summary.md.j2").render(
        run=run,
        device=run.environment["device_name"] or run.environment["device"],
        # A block that is set off by blanks is code whatever is in it.
        command=Markup("    " + " ".join(str(run.environment["command"] or "").split())),
        verdict=Verdict(run),
        models=[headline.sentence(run.baseline, thresholds.SUBJECT) for headline in facts.models(run)],
        slower=losses.slower(run)[: thresholds.SUMMED_UP],
        rows=facts.summary_rows(run),
        warnings=trust.warnings(run),
        subject=thresholds.SUBJECT,
    )


def _plain(value: Any) -> Any:
    """Texts with everything that Markdown would take as a sign of its own made harmless, in one line."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return SPECIAL.sub(lambda sign: f"&#{ord(sign[0])};", " ".join(value.split()))
