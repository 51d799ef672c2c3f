"""Bugs planted in bench and normlib are noticed by the tests that stand beside them; all of them by `make mutants`.

Each is planted in a copy of the project, in which the named tests then run until the first that fails.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from mutant_catalogue import ROOT, TOOLS, parsed, path_of, source_of

MUTANTS = [mutant for file in sorted(TOOLS.glob("*.txt")) for mutant in parsed(file.read_text(encoding="utf-8"))]
# One of each file of the catalogue, whose tests take no more than seconds.
QUICK = ("floor-of-all-bytes", "won-counted-as-tied", "variance-of-n", "message-swapped", "power-in-milliwatts")
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "reports", "*.egg-info", "build")
LIMIT_S = 600


@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    place = tmp_path_factory.mktemp("mutants") / "project"
    shutil.copytree(ROOT, place, symlinks=True, ignore=LEFT_OUT)
    return place


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_edit_applies_to_the_present_source_and_it_is_still_python(mutant):
    changed = mutant.edited()
    assert changed != source_of(mutant.file)
    compile(changed, mutant.name, "exec")
    assert mutant.cells and all((ROOT / test).exists() for named in mutant.cells for test in named.split())


def test_every_name_is_there_once():
    assert [name for name, times in Counter(mutant.name for mutant in MUTANTS).items() if times > 1] == []


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(m, id=m.name, marks=[] if m.name in QUICK else pytest.mark.mutant) for m in MUTANTS],
)
def test_a_planted_bug_is_noticed(mutant, copy, record_property):
    file = copy / path_of(mutant.file).relative_to(ROOT)
    sound = file.read_text(encoding="utf-8")
    tests = [test for named in mutant.cells for test in named.split()]
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    file.write_text(mutant.edited(), encoding="utf-8")
    try:
        ran = subprocess.run(
            command,
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
    finally:
        file.write_text(sound, encoding="utf-8")
    assert ran.returncode == 1, f"{mutant.about}: {ran.stdout[-2000:]}{ran.stderr[-2000:]}"
    noticed = re.search(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, re.MULTILINE)
    assert noticed and noticed[0].startswith("FAILED"), ran.stdout[-2000:]
    record_property("noticed by", noticed[1])
