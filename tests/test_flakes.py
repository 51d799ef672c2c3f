"""`make flakes` sees a test that fails once in thirty times, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import flakes
import pytest

TESTS = Path(__file__).parent
LONG = """
import pathlib, pytest, time

@pytest.mark.chance
def test_it():
    pathlib.Path("begun").touch()
    time.sleep(600)
"""
ONCE = """
import pytest

@pytest.mark.chance
def test_it(tmp_path_factory):
    count = tmp_path_factory.getbasetemp().parent / "count"
    count.open("a").write(".")
    assert count.stat().st_size != 17

def test_that_nobody_marked():
    raise AssertionError
"""


def run(folder, text, *arguments, wait=True):
    (folder / "test_once.py").write_text(text)
    program = [sys.executable, TESTS / "flakes.py", "-p", "repetition", "-c", TESTS.parent / "pyproject.toml"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    environment.pop("PYTEST_XDIST_WORKER", None)
    started = subprocess.Popen(
        [*program, f"--rootdir={folder}", f"--basetemp={folder / 'made'}", *arguments, folder / "test_once.py"],
        env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # Where this runs in the background of a shell, SIGINT is ignored, and what it starts would inherit that.
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    return (started.communicate()[0], started.returncode) if wait else started


def test_one_failure_in_thirty_is_seen_and_what_is_not_marked_is_left_out(tmp_path):
    output, status = run(tmp_path, ONCE)
    assert status == 1 and "1 failed, 29 passed" in output, output
    assert "test_it[17 of 30]" in output


def test_a_number_of_repetitions_that_makes_no_sense_is_refused_in_a_line(tmp_path):
    output, status = run(tmp_path, ONCE, "--repeat", "0")
    assert status == 4 and "ERROR: --repeat: give a whole number above zero" in output, output


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.chance
@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("end", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_no_loop_outlives_the_command_however_it_ends(tmp_path, end):
    started = run(tmp_path, LONG, wait=False)
    while not (tmp_path / "begun").exists():
        assert started.poll() is None, started.communicate()[0]
        time.sleep(0.01)
    loops = children(started.pid)[: flakes.LOOPS]
    assert len(loops) == flakes.LOOPS
    if end == "SIGINT":
        os.killpg(started.pid, signal.SIGINT)  # as a terminal's Ctrl-C, which all its processes hear
        output = started.communicate()[0]
        assert started.returncode == 2 and "KeyboardInterrupt" in output, output
    else:
        os.kill(started.pid, signal.Signals[end])
        started.wait()
    while any(Path(f"/proc/{loop}").exists() for loop in loops):  # an orphan is seen and reaped in its own time
        time.sleep(0.01)
    if end != "SIGINT":
        os.killpg(started.pid, signal.SIGKILL)  # pytest, which has lost its command
        started.communicate()
