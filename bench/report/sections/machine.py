"""The machine that the run was measured on, and the command that measures it again."""

from bench.report.sections import Section

SECTION = Section(
    80,
    "Machine",
    lambda run: {"profiles": sorted(path.name for path in run.folder.glob("profile-*") if path.is_file())},
)
