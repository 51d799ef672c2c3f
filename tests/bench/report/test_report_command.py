"""`python -m bench.report` on a machine that has neither torch nor triton."""

import subprocess
import sys

import pytest
from report_runs import ROOT, record

from bench.report import render
from bench.results.load import UnreadableRun

BLOCKED = """
import sys
class Absent:
    # Not None in sys.modules, where SciPy takes any entry of that name for PyTorch.
    def find_spec(name, *_):
        if name.partition(".")[0] in ("torch", "triton", "normlib", "numba", "requests"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent)
from bench.report.__main__ import main
sys.exit(main(sys.argv[1:]))
"""

pytestmark = pytest.mark.chance


def command(*arguments):
    """`python -m bench.report` on a machine that has neither torch nor triton."""
    run = [sys.executable, "-c", BLOCKED, *arguments]
    return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_report_is_made_without_torch_and_triton(run_dir):
    folder = run_dir([record(), record(provider="torch", latency_us=16.0)])
    done = command(str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(folder / "report.html")
    assert "1.60×" in (folder / "report.html").read_text(encoding="utf-8")  # noqa: RUF001


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("records.jsonl", "not json\n{}\n"),
        ("records.jsonl", '{"op": "layer_norm"}\n{"op": "layer_norm"}\n'),
        ("records.jsonl", None),
        ("environment.json", None),
        ("environment.json", "[1,"),
    ],
)
def test_a_folder_that_cannot_be_read_is_one_line_and_status_2(file, text, run_dir):
    folder = run_dir([record()])
    (folder / file).unlink() if text is None else (folder / file).write_text(text)
    done = command(str(folder))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "RUN_DIR" in done.stderr
    assert not (folder / "report.html").exists()
    with pytest.raises(UnreadableRun):
        render(folder)


@pytest.mark.parametrize(
    "arguments", [["no-such-folder"], ["--index", "no-such-folder"], ["--figures"], ["--nonsense", "a"]]
)
def test_bad_arguments_are_one_line_and_status_2(arguments):
    done = command(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_without_a_run_the_list_of_all_runs_is_made_again(run_dir):
    folder = run_dir([record()])
    done = command("--index", str(folder.parent))
    assert (done.returncode, done.stderr) == (0, "")
    assert folder.name in (folder.parent / "index.html").read_text(encoding="utf-8")
