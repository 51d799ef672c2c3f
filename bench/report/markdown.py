"""The summary of a run in Markdown, for a pull request: verdict, losses, warnings."""

import re
from typing import Any

from markupsafe import Markup

from bench.page.templating import templates
from bench.report.facts import model_sentences
from bench.report.sections.trust import warnings
from bench.report.sections.verdict import RunVerdict
from bench.results import thresholds
from bench.results.load import LoadedRun

# What means something to Markdown, to HTML inside it, or to a forge, which notifies a person by an @.
SPECIAL = re.compile(r"[\\`*\[\]|<>~@]")


def summary(run: LoadedRun) -> str:
    """Returns the whole summary, in which names and reasons cannot act as markup."""
    environment = templates(autoescape=False, finalize=_plain)
    verdict = RunVerdict(run)
    return environment.get_template("summary.md.j2").render(
        run=run,
        device=run.environment["device_name"] or run.environment["device"],
        # A block that is set off by blanks is code whatever is in it.
        command=Markup("    " + " ".join(str(run.environment["command"] or "").split())),
        verdict=verdict,
        models=model_sentences(run),
        slower=verdict.slower[: thresholds.SUMMED_UP],
        rows=verdict.directions,
        warnings=warnings(run),
        subject=run.subject,
    )


def _plain(value: Any) -> Any:
    """Returns a text in one line, with the signs escaped that mean something to Markdown."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return SPECIAL.sub(lambda sign: f"&#{ord(sign[0])};", " ".join(value.split()))
