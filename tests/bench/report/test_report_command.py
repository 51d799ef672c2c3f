"""`python -m bench.report` on a machine that has neither torch nor triton."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m bench.report` on a machine that has neither torch nor triton."""
    run = [sys.executable, "-c", BLOCKED, *arguments]
    return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_report_is_made_without_torch_and_triton(run_dir: Callable[..., Path]) -> None:
    folder = run_dir([record(), record(provider="torch", latency_us=16.0)])
    done = command(str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(folder / "report.html")
    assert "1.60×" in (folder / "report.html").read_text(encoding="utf-8")  # noqa: RUF001


def broken_line(folder: Path) -> None:
    (folder / "records.jsonl").write_text("not json\n{}\n")


def foreign_record(folder: Path) -> None:
    (folder / "records.jsonl").write_text('{"op": "layer_norm"}\n{"op": "layer_norm"}\n')


def no_records(folder: Path) -> None:
    (folder / "records.jsonl").unlink()


def no_environment(folder: Path) -> None:
    (folder / "environment.json").unlink()


def broken_environment(folder: Path) -> None:
    (folder / "environment.json").write_text("[1,")


@pytest.mark.parametrize("spoil", [broken_line, foreign_record, no_records, no_environment, broken_environment])
def test_a_folder_that_cannot_be_read_is_one_line_and_status_2(
    spoil: Callable[[Path], None], run_dir: Callable[..., Path]
) -> None:
    folder = run_dir([record()])
    spoil(folder)
    done = command(str(folder))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "RUN_DIR" in done.stderr
    assert not (folder / "report.html").exists()
    with pytest.raises(UnreadableRun):
        render(folder)


@pytest.mark.parametrize(
    "arguments", [["no-such-folder"], ["--index", "no-such-folder"], ["--figures"], ["--nonsense", "a"]]
)
def test_bad_arguments_are_one_line_and_status_2(arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_without_a_run_the_list_of_all_runs_is_made_again(run_dir: Callable[..., Path]) -> None:
    folder = run_dir([record()])
    done = command("--index", str(folder.parent))
    assert (done.returncode, done.stderr) == (0, "")
    assert folder.name in (folder.parent / "index.html").read_text(encoding="utf-8")
