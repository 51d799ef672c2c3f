"""The method: definitions, the providers' versions, and the whole environment."""

from bench.page import machine
from bench.report import facts
from bench.report.sections import Section

SECTION = Section(
    90, "Method", lambda run: {"providers": facts.providers(run), "environment": machine.flat(run.environment)}
)
