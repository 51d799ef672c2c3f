"""Every command writes what it has to say to terminals that know only ASCII, and where a name is no text."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from report_runs import record, write
from scripted import TORCH, Scripted, raising

import bench.compare.__main__ as compare
import bench.measure.providers
import bench.report.__main__ as report
import bench.study.__main__ as study
from bench import __main__ as listing
from bench import cli, run
from bench.measure import environment
from bench.results import records as results

ROOT = Path(__file__).parents[2]
# As in a container without a locale, where Python is not allowed to choose UTF-8.
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NO_TEXT = os.fsdecode(b"\xfc")
TINY = ["--op", "ln", "--tokens", "4", "--hidden", "8", "--dtype", "fp32", "--mode", "fwd"]


@pytest.fixture
def said(monkeypatch):
    """Calls a command whose terminal knows ASCII; returns what is written there and the exit status."""

    def call(main, *arguments):
        written = io.BytesIO()
        terminal = io.TextIOWrapper(written, "ascii", write_through=True)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            patch.setattr(sys, "stderr", terminal)
            status = main([*map(str, arguments)])
        return written.getvalue().decode("ascii"), status

    return call


def test_what_ascii_lacks_is_written_in_ascii(said):
    @cli.command("bench.x")
    def main(argv):
        print("1.5× 2–3 a→b ±1 5µs 40° ∞ “x” …", "Jürgen", "日")  # noqa: RUF001
        raise cli.BadArgument("--op", "é")

    text, status = said(main)
    assert text == '1.5x 2-3 a->b +-1 5us 40 inf "x" ... J\\xfcrgen \\u65e5\nbench.x: error: --op: \\xe9\n'
    assert status == 2


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_bytes_of_a_name_that_is_no_text_are_written_as_they_are(monkeypatch, encoding):
    @cli.command("bench.x")
    def main(argv):
        print(os.fsdecode(b"J\xfcrgen"))
        return 0

    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding, write_through=True))
    assert main([]) == 0 and written.getvalue() == b"J\xfcrgen\n"


@pytest.mark.parametrize("bar", ["", "1"])
def test_a_run_tells_of_a_crash_in_any_language(said, monkeypatch, tmp_path, bar):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("FORCE_COLOR", bar)  # what rich takes for a terminal, with a bar on it
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(environment, "_cpu", lambda: "Prozessor 4 µm ☃")
    fails = Scripted("normlib", raising(RuntimeError(f"Größe 2 × 3: {NO_TEXT}")))  # noqa: RUF001
    monkeypatch.setattr(bench.measure.providers, "providers", lambda: {"normlib": fails, "torch": TORCH})
    text, status = said(run.main, *TINY, "--in-process", "--out", "ein Maß")
    assert status == 1
    assert "4 um \\u2603" in text and "RuntimeError: Gr\\xf6\\xdfe 2 x 3: \\udcfc" in text
    assert "report: ein Ma\\xdf/report.html" in text
    assert {r.status for r in results.read(Path("ein Maß/records.jsonl"))} == {"ok", "crash"}


def test_the_other_commands_tell_what_they_found(said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    a = write(Path("ä"), [record(provider=name) for name in ("torch", "normlib")])
    b = write(Path("ö"), [record(), record(provider="torch", status="crash", reason="×")])  # noqa: RUF001
    text, status = said(compare.main, a, b)
    assert status == 0 and "fwd torch: crash: x\n" in text and "page: \\xf6/compare.html" in text
    assert said(report.main, a) == ("\\xe4/report.html\n", 0)
    assert said(report.main, "nö")[1] == 2
    for main, arguments in ((study.main, ["--list"]), (run.main, ["--list"]), (listing.main, [])):
        text, status = said(main, *arguments)
        assert status == 0 and text


@pytest.mark.chance
def test_a_run_without_docstrings_and_asserts_in_a_folder_that_is_no_text(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/J\xfcrgen")
    environ = {**os.environ, **ASCII, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-OO", "-m", "bench.run", *TINY, "--out", folder]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"J\xfcrgen/report.html" in done.stdout
    assert [record.status for record in results.read(Path(folder) / "records.jsonl")] == ["ok", "ok"]
    assert "J\\udcfcrgen" in (Path(folder) / "report.html").read_text(encoding="utf-8")
