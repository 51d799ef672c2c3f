"""On a full disk every command says so in one line, and leaves no half-written file.

The limit on a file's size stands for the disk: the kernel refuses to write on in the middle of a file, without root.
"""

import contextlib
import json
import os
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scripted import TORCH, Scripted

import bench.audit.__main__ as audit
import bench.compare.__main__ as compare
import bench.measure.providers
import bench.report.__main__ as report
import bench.study.__main__ as study
import bench.tune.__main__ as tune
from bench import run, writing
from bench.device_constants import device_file
from bench.measure import environment
from bench.results import records as results
from bench.results.load import load
from bench.study import records as study_records

TINY = ["--op", "ln", "--tokens", "4", "--hidden", "8", "--dtype", "fp32", "--in-process"]


@contextlib.contextmanager
def full(limit, monkeypatch):
    """No file grows beyond `limit` bytes; modules leave no cut bytecode."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, on a machine without a GPU, with PyTorch and a provider that fails backward."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    failing = Scripted("normlib", lambda built, case, inputs: built if case.mode == "fwd" else built.missing)
    monkeypatch.setattr(bench.measure.providers, "providers", lambda: {"normlib": failing, "torch": TORCH})


@pytest.fixture
def refused(capsys, monkeypatch):
    """Calls a command where no file can have more than `limit` bytes; returns the one line that it says."""

    def call(main, arguments, limit):
        capsys.readouterr()
        with full(int(limit), monkeypatch):
            assert main([*map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and " cannot be written: " in said and "File too large" in said
        assert not list(Path().rglob("*.part"))
        return said

    return call


@pytest.fixture
def whole(tmp_path):
    """The folder of a run that nothing has stopped."""
    assert run.main([*TINY, "--out", "whole"]) == 1  # the subject has crashed
    return tmp_path / "whole"


def test_text_is_appended_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    writing.append(path, "first\n")
    with full(10, monkeypatch), pytest.raises(writing.Unwritable, match=r"lines cannot be written: File too large"):
        writing.append(path, "second\n")
    assert path.read_text() == "first\n"
    writing.append(path, "second µ\n")
    assert path.read_text(encoding="utf-8") == "first\nsecond µ\n"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    writing.write(path, "old")
    with full(10, monkeypatch), pytest.raises(writing.Unwritable, match=r"file cannot be written: File too large"):
        writing.write(path, "new" * 10)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_keeps_what_was_measured_whichever_file_it_stops(whole, refused):
    sizes = {path.name: path.stat().st_size for path in whole.iterdir()}
    assert {"environment.json", "records.csv", "records.jsonl", "report.html", "samples.jsonl", "traces.txt"} <= {
        *sizes
    }
    for name, size in sizes.items():
        folder = Path(f"without-{name}")
        said = refused(run.main, [*TINY, "--out", folder], 0.9 * size)  # times are written with more digits or fewer
        assert said.startswith(f"bench.run: error: {folder}/")
        left = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert all(text.endswith(b"\n") for file, text in left.items() if file.endswith(".jsonl") and text)
        measured = list(results.read(folder / "records.jsonl")) if "records.jsonl" in left else []
        if name in ("records.jsonl", "report.html"):
            assert len(measured) == 6 if name == "report.html" else 0 < len(measured) < 6
        if "environment.json" not in left:
            continue  # nothing can be measured where not even this can be written
        load(folder)  # raises where it cannot be read
        assert run.main(["--resume", str(folder)]) == 1
        kept = list(results.read(folder / "records.jsonl"))
        assert kept[: len(measured)] == measured and len(kept) == 6
        assert environment.read(folder)["complete"] and (folder / "report.html").exists()


def test_a_page_that_cannot_be_written_leaves_the_one_before_it(whole, refused):
    page = whole / "report.html"
    before = page.read_bytes()
    refused(report.main, [whole], len(before) - 1)
    assert page.read_bytes() == before
    assert report.main([str(whole), "--figures"]) == 0
    largest = max(whole.glob("figures/*"), key=lambda path: path.stat().st_size)
    kept = largest.read_bytes()
    refused(report.main, [whole, "--figures"], len(kept) - 1)
    assert largest.read_bytes() == kept
    assert report.main(["--index", "."]) == 0
    refused(report.main, ["--index", "."], Path("index.html").stat().st_size - 1)


def test_a_comparison_that_cannot_be_written_is_none(whole, refused):
    asked = [whole, whole, "--out", "page.html"]
    assert compare.main([*map(str, asked)]) == 0
    size = Path("page.html").stat().st_size
    Path("page.html").write_text("old")
    refused(compare.main, asked, size - 1)
    assert Path("page.html").read_text() == "old"


def test_an_audit_shows_what_it_cannot_write(refused, monkeypatch):
    row = {"record": "note", "text": "a long note" * 9, "problems": []}
    for name, stand_in in {
        "bench.audit.calls.calls": lambda *_: (),
        "bench.audit.records.collect": lambda *_: (),
        "bench.audit.fused.pairs": lambda *_: (),
        "bench.audit.counters.collect": lambda *_: [row],
        "bench.audit.terminal.show": lambda console, rows: print("shown:", *rows, file=sys.stderr, end=" "),
        "bench.measure.environment.interpreting": lambda: False,
    }.items():
        monkeypatch.setattr(name, stand_in)
    monkeypatch.setattr(audit, "_counting", lambda ops: contextlib.nullcontext(list))
    assert audit.main(["--out", "audited"]) == 0
    page = Path("audited/audit.html")
    before = page.read_bytes()
    said = refused(audit.main, ["--out", "audited"], len(before) - 1)
    assert said.startswith("shown: {'record': 'note'") and "audited/audit.html cannot" in said
    assert page.read_bytes() == before and json.loads(Path("audited/records.jsonl").read_text()) == row


def test_tuning_keeps_the_plans_before_the_one_that_cannot_be_written(refused, monkeypatch):
    described = {"device_name": "a GPU", **dict.fromkeys(device_file._VERSIONS, "1")}
    found = [tune.Tuned(f"row_forward {2**n} 2", {"threads": 64}, 0.5, 1) for n in range(10, 14)]
    monkeypatch.setattr(tune, "search", lambda *_: found)
    monkeypatch.setattr(tune, "plans_of", lambda case: "row_forward 1024 2")
    file = Path("gpu.json")
    tune._run([None], None, 0.0, file, described)
    size = file.stat().st_size
    file.unlink()
    main = tune.cli.command("bench.tune")(lambda argv: tune._run([None], None, 0.0, file, described))
    refused(main, [], size - 1)
    assert [*device_file.read(file)["values"]] == [tuned.plans for tuned in found[:3]]


def test_a_study_keeps_the_runs_before_the_one_that_cannot_be_written(refused, monkeypatch):
    asked = ["--only", "selu", "--in-process", "--seeds", "2"]
    # So many figures that the records are larger than what describes the study.
    outcome = SimpleNamespace(values={f"figure {n}": 1.0 for n in range(100)}, series={}, diverged="")
    monkeypatch.setattr("bench.study.experiments.selu.run", lambda *_: outcome)
    assert study.main([*asked, "--out", "whole"]) == 0
    lines = Path("whole/study.jsonl").read_text().splitlines(keepends=True)
    for name in ("study.jsonl", "report.html"):
        said = refused(study.main, [*asked, "--out", f"no-{name}"], 0.9 * (Path("whole") / name).stat().st_size)
        assert f"no-{name}/" in said
        kept = list(study_records.read(Path(f"no-{name}")))
        assert len(kept) == len(lines) - (name == "study.jsonl")
        assert study.main(["--resume", f"no-{name}", "--in-process"]) == 0
        assert len(list(study_records.read(Path(f"no-{name}")))) == len(lines)


def test_a_full_disk_under_somebody_elses_file_is_one_line_too(capsys):
    @run.cli.command("bench.x")
    def main(argv):
        with Path("/dev/full").open("w") as file:
            file.write("x")

    assert main([]) == 2
    assert capsys.readouterr().err == f"bench.x: error: [Errno 28] {os.strerror(28)}\n"
