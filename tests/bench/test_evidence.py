"""No step keeps the others from running, and all that they leave is in one small archive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.first_gpu import __main__ as first_gpu
from bench.first_gpu import evidence
from bench.first_gpu.evidence import ARCHIVE_BYTES, SUMMARY_LINES, Evidence, Step

ROOT = Path(__file__).resolve().parents[2]
MEBIBYTE = 1 << 20

pytestmark = pytest.mark.chance  # processes under limits of time


def python(name, code, seconds=60.0, **more):
    return Step(name, seconds, (sys.executable, "-c", code, "{folder}", "{scratch}"), least=0.0, **more)


GOOD = "import sys, pathlib; pathlib.Path(sys.argv[1], 'found').write_text('42'); print('all is well')"
FILLS = """
import sys, pathlib, itertools
for i in itertools.count():
    pathlib.Path(sys.argv[1], str(i)).write_bytes(bytes(8 << 20))
"""


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "MOST_BYTES", 64 * MEBIBYTE)
    made = Evidence(tmp_path / "out")
    yield made
    made.close()


def run(kept, *steps):
    for step in steps:
        kept.run(step, step.seconds, dict(os.environ), ROOT)
    return {result.step: result for result in kept.results}


def archived(kept):
    with zipfile.ZipFile(kept.folder / "evidence.zip") as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_step_that_hangs_crashes_or_fills_the_disk_costs_only_itself(kept):
    began = time.monotonic()
    found = run(
        kept,
        python("before", GOOD),
        python("hangs", "import time, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)", 1.0),
        python("crashes", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
        python("fills", FILLS),
        python("fails", "raise SystemExit('no such thing')"),
        python("after", GOOD),
    )
    assert {name: result.fault for name, result in found.items()} == {
        "before": "",
        "hangs": "stopped after 1 s",
        "crashes": "died of SIGSEGV",
        "fills": "stopped: it filled the disk",
        "fails": "exit status 1",
        "after": "",
    }
    assert time.monotonic() - began < 60
    contents = archived(kept)
    assert contents["steps/before/found"] == contents["steps/after/found"] == b"42"
    assert contents["steps/fails/log"].decode().strip() == found["fails"].said == "no such thing"
    assert contents["summary.txt"].decode() == (kept.folder / "summary.txt").read_text()
    assert "2 of 6 steps succeeded" in contents["summary.txt"].decode()
    assert (kept.folder / "evidence.zip").stat().st_size <= ARCHIVE_BYTES
    assert not kept.succeeded


def test_what_a_step_has_started_is_killed_with_it(kept, tmp_path):
    beats = tmp_path / "beats"
    child = f"import time; [open({str(beats)!r}, 'w').write(str(i)) and time.sleep(0.05) for i in range(1, 600)]"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(3)"
    for step in (python("hangs", code + "; time.sleep(600)", 4.0), python("leaves it behind", code)):
        run(kept, step)
        assert beats.exists()
        time.sleep(0.3)
        last = beats.read_text()
        time.sleep(0.5)
        assert beats.read_text() == last
        beats.unlink()


def test_a_disk_that_is_full_takes_nothing_from_what_is_archived(tmp_path, monkeypatch):
    """A small file system of its own, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    try:
        code = f"""
import os, sys
with open(os.path.join({str(disk)!r}, "junk"), "wb") as file:
    while True: file.write(bytes(1 << 20))
"""
        monkeypatch.setattr(evidence, "LEAST_FREE_BYTES", 0)
        kept = Evidence(disk / "out")
        found = run(kept, python("before", GOOD), python("fills", code), python("after", GOOD))
        assert "No space left" in found["fills"].said and not found["after"].fault
        assert {"steps/before/found", "steps/after/found"} <= archived(kept).keys()
        kept.close()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_archive_has_the_small_files_first_and_names_what_does_not_fit(kept, monkeypatch):
    monkeypatch.setattr(evidence, "ARCHIVE_BYTES", 2 * MEBIBYTE)
    code = "import os, sys; [open(f'{sys.argv[1]}/{n}', 'wb').write(os.urandom(n << 18)) for n in (1, 2, 4, 12)]"
    run(kept, python("large", code), python("after", GOOD))
    contents = archived(kept)
    assert {"steps/large/1", "steps/large/2", "steps/large/4", "steps/after/found"} <= contents.keys()
    assert contents["left_out.txt"] == b"steps/large/12\n"
    assert (kept.folder / "evidence.zip").stat().st_size <= 2 * MEBIBYTE


def test_of_a_long_log_the_beginning_and_the_end_are_kept(kept):
    run(kept, python("talks", "print('first'); [print('x' * 1000) for _ in range(3000)]; print('last')"))
    log = archived(kept)["steps/talks/log"].decode()
    assert log.startswith("first\n") and log.endswith("\nlast\n") and "... left out ..." in log
    assert len(log) < 1.1 * MEBIBYTE


def test_a_step_without_enough_time_is_left_out(kept):
    kept.run(Step("late", 60.0, ("false",), least=10.0), 9.0, {}, ROOT)
    assert [(result.fault, result.said) for result in kept.results] == [("no time was left", "")]


def test_a_step_whose_last_line_lacks_what_it_must_have_has_failed(kept):
    found = run(kept, python("a", GOOD, expected="is well"), python("b", GOOD, expected="passed"))
    assert (found["a"].fault, found["b"].fault) == ("", "nothing passed")


def test_a_program_that_is_not_there_is_a_fault_of_its_step(kept):
    assert "could not be started" in run(kept, Step("absent", 60.0, ("no-such-program",)))["absent"].fault


def record(provider, latency_us, status="ok", mode="fwd", clock="cuda_event", **axes):
    return {
        "op": "rms_norm", "shape": [4, 8], "axes": axes, "dtype": "bf16", "layout": "rows", "mode": mode, "eps": 1e-6,
        "inputs": "normal", "offset": 0.0, "provider": provider, "status": status, "clock": clock,
        "latency_us": latency_us,
    }  # fmt: skip


def test_the_summary_shows_the_fastest_and_the_slowest_cells_beside_the_best_peer(kept):
    records = [
        *(record(name, us, tokens=1) for name, us in (("normlib", 10.0), ("torch", 30.0), ("liger", 15.0))),
        *(record(name, us, tokens=2) for name, us in (("normlib", 10.0), ("torch", 5.0), ("liger", 20.0))),
        record("normlib", 1.0, tokens=3),
        record("torch", 1.0, "wrong", tokens=3),
        record("normlib", None, "crash", tokens=4),
        record("torch", 9.0, tokens=4),
        *(record(name, 7.0, clock="host_cpu", tokens=5) for name in ("normlib", "torch")),
    ]
    folder = kept.steps / "rows" / "run"
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + '{"cut sho')
    lines = kept.summarize().splitlines()
    assert "normlib's cells: 1 crash, 4 ok" in lines
    cells = [line.split() for line in lines if "x  rms_norm" in line]
    assert [(line[0], line[-3:]) for line in cells] == [
        ("1.50x", ["liger", "15.0", "us"]),
        ("0.50x", ["torch", "5.0", "us"]),
    ]


def test_the_summary_has_no_more_lines_than_a_screen(kept):
    noisy = "import sys; [print(f'FAILED tests/a.py::test_{i} - no') for i in range(99)]; sys.exit(1)"
    run(kept, *(python(f"step {i}", noisy) for i in range(9)))
    folder = kept.steps / "rows" / "run"
    folder.mkdir(parents=True)
    made = [record(name, us, tokens=i) for i in range(50) for name, us in (("normlib", 2.0 + i), ("torch", 50.0))]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
    lines = kept.summarize().splitlines()
    assert len(lines) <= SUMMARY_LINES and max(map(len, lines)) <= 160
    assert sum("x  rms_norm" in line for line in lines) >= 6
    assert sum(line.startswith("  FAILED tests/") for line in lines) == 8


# ------------------------------------------------------------------------------------------------------- the command


def test_the_steps_take_nine_minutes_at_most_and_the_wheels_come_first():
    steps = first_gpu.steps(Path("wheels"))
    assert sum(step.seconds for step in steps) + first_gpu.ENDING_S <= 60 * first_gpu.MINUTES
    assert [step.name for step in steps] == ["peers", *(step.name for step in first_gpu.steps(None))]
    assert {step.name for step in first_gpu.rehearsal()} == {step.name for step in first_gpu.steps(None)}


def test_every_file_that_a_step_names_is_there():
    for step in (*first_gpu.steps(None), *first_gpu.rehearsal()):
        for argument in step.command:
            assert not argument.startswith("tests/") or (ROOT / argument).exists(), argument
        flags = zip(step.command, step.command[1:], strict=False)
        assert all(find_spec(name) for flag, name in flags if flag == "-m" and "." in name)


def test_a_rehearsal_goes_on_past_every_planted_fault(tmp_path, monkeypatch, capsys):
    machine = first_gpu.rehearsal()[0]
    hangs = python("hangs", "import time; time.sleep(600)", 1.0)
    crashes = python("crashes", "import ctypes; ctypes.string_at(0)")
    monkeypatch.setattr(first_gpu, "rehearsal", lambda: (hangs, crashes, python("fills", FILLS), machine))
    monkeypatch.setattr(evidence, "MOST_BYTES", 64 * MEBIBYTE)
    for _ in range(2):  # and again, into the same folder
        assert first_gpu.main(["--out", str(tmp_path / "out"), "--rehearse"]) == 1
        assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["evidence.zip", "summary.txt"]
        with zipfile.ZipFile(tmp_path / "out" / "evidence.zip") as archive:
            assert b"Fake GPU python" in archive.read("steps/machine/log")
        shown = capsys.readouterr().out
        assert "REHEARSAL on a fake GPU: no figure here was measured\n1 of 4 steps succeeded\n" in shown
        assert [line.split()[:2] for line in shown.splitlines()[:4]] == [
            ["FAILED", "hangs"],
            ["FAILED", "crashes"],
            ["FAILED", "fills"],
            ["ok", "machine"],
        ]


def test_less_time_leaves_out_the_last_steps(tmp_path, monkeypatch):
    steps = (python("first", GOOD), Step("last", 60.0, ("true",), least=30.0))
    monkeypatch.setattr(first_gpu, "rehearsal", lambda: steps)
    first_gpu.main(["--out", str(tmp_path), "--rehearse", "--minutes", "0.5"])
    assert "FAILED last             0 s  no time was left" in (tmp_path / "summary.txt").read_text()


def test_peers_wheels_are_installed_where_the_steps_find_them(kept, tmp_path):
    with zipfile.ZipFile(tmp_path / "peer-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("peer.py", "WHO = 'a peer'")
        wheel.writestr("peer-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: peer\nVersion: 1.0\n")
        wheel.writestr("peer-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("peer-1.0.dist-info/RECORD", "")
    found = run(kept, first_gpu.steps(tmp_path)[0])
    assert found["peers"].fault == "", found["peers"]
    assert (kept.scratch / "peers" / "peer.py").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: --out"),
        (
            ["--out", "{folder}", "--minutes", "soon"],
            "--minutes: 'soon' is not a number of minutes from 0 to 60",
        ),
        (["--out", "{file}"], "cannot be written: File exists; give a new folder"),
    ],
)
def test_a_bad_argument_is_named_in_one_line(arguments, said, tmp_path, capsys):
    (tmp_path / "file").touch()
    places = {"{folder}": str(tmp_path / "folder"), "{file}": str(tmp_path / "file")}
    assert first_gpu.main([places.get(argument, argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench.first_gpu: error: ") and said in line
