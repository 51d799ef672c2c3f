"""Bugs to plant in the kernels: edits of their present source, which stand as text in catalogue/.

A section `[row_norm.wide _kernel: wide, fused]` has the edits of one function of kernels/row_norm/wide.py, and the
groups of cells (mutant_gate.py) that run it, in order; without any it is run through all. An edit is a line
`name: the bug in words`, the text that is replaced, each line behind `-`, and what replaces it, each behind `+`.

An edit that is no bug has no place here: a wrong first mean of a row does no harm (the second pass over the row
corrects it), nor does another first mean where means are merged in float64, nor a mask beside a factor that is zero.
The gate cannot see two bugs, which other tests see:

- 32-bit offsets, which need tensors of 2^31 elements (tests/kernels/test_addressing.py);
- evaluation's backward, which is no mode of the gate (tests/kernels/test_batch_norm.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).parent / "catalogue"
TOOLS = Path(__file__).parent / "tools"  # the same of bench and normlib, with the tests that are to notice each
_SECTION = re.compile(r"\[([\w.]+)(?: (\w+))?(?:: (.+))?\]")


@dataclass(frozen=True)
class Mutant:
    """One edit: `old`, which occurs once inside the function `within` of a file of kernels/, becomes `new`."""

    name: str
    file: str  # see path_of
    within: str  # "": anywhere in the file
    about: str
    old: str
    new: str
    cells: tuple[str, ...] = ()  # or, of the tools, files of tests

    def edited(self, source: str | None = None) -> str:
        """Returns the file, or `source` in its place, with this edit; ValueError unless `old` is there exactly once."""
        source = source_of(self.file) if source is None else source
        start, end = 0, len(source)
        place = f"{path_of(self.file).relative_to(ROOT)} {self.within}".rstrip()
        if self.within:
            found = re.search(rf"^def {self.within}\(.*?(?=\n\n\n|\Z)", source, re.MULTILINE | re.DOTALL)
            if found is None:
                raise ValueError(f"{self.name}: there is no {place}")
            start, end = found.span()
        count = source.count(self.old, start, end)
        if count != 1:
            raise ValueError(f"{self.name}: {place} has {count} times, not once: {self.old!r}")
        return source[:start] + source[start:end].replace(self.old, self.new) + source[end:]


def path_of(file: str) -> Path:
    """Returns where a file is: `row_norm.launch` is kernels/row_norm/launch.py, `bench.run` is bench/run.py."""
    base = ROOT if file.startswith(("bench.", "normlib.")) else ROOT / "kernels"
    return base / f"{file.replace('.', '/')}.py"


def source_of(file: str) -> str:
    return path_of(file).read_text(encoding="utf-8")


def parsed(text: str) -> list[Mutant]:
    """Returns the edits of one file of the catalogue."""
    found: list[Mutant] = []
    for section in re.split(r"^(?=\[)", text, flags=re.MULTILINE)[1:]:
        head, *lines = [line for line in section.splitlines() if line and not line.startswith("#")]
        match = _SECTION.fullmatch(head)
        assert match, f"no section is written like this: {head}"
        file, within, cells = match.groups(default="")
        for edit in re.findall(r"^([^-+\n].*\n)((?:-.*\n)+)((?:\+.*\n)*)", "\n".join([*lines, ""]), re.MULTILINE):
            name, _, about = edit[0].strip().partition(": ")
            old, new = ("\n".join(line[2:] for line in part.splitlines()) for part in edit[1:])
            found.append(Mutant(name, file, within, about, old, new, tuple(filter(None, cells.split(", ")))))
    return found


# Plans with which the gate's small shapes go everywhere. They are planted beside every mutant, and are none themselves.
SMALL_PLANS = parsed((FOLDER / "small_plans.txt").read_text(encoding="utf-8"))
MUTANTS = {
    mutant.name: mutant
    for file in sorted(FOLDER.glob("*.txt"))
    if file.stem != "small_plans"
    for mutant in parsed(file.read_text(encoding="utf-8"))
}
