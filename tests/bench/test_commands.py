"""All commands: they are listed, end bad arguments alike, and answer before they import anything that takes long."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import __main__ as listing
from bench import cli

ROOT = Path(__file__).parents[2]
# A wrong value of an option, and how the line about it begins.
WRONG = {
    "bench.audit": (["--arch", "sm_12"], "--arch: 'sm_12' is not one of sm_80, sm_90, sm_100, gfx942"),
    "bench.compare": (["a", "b", "--threshold", "three"], "--threshold: 'three' is no share"),
    "bench.device_constants": (["--bytes", "1K"], "--bytes: '1K' is not a number of bytes"),
    "bench.first_gpu": (["--out", "x", "--minutes", "soon"], "--minutes: 'soon' is not a number of minutes"),
    "bench.host_overhead": (["--repeat", "0"], "--repeat: '0' is not a whole number"),
    "bench.report": (["--figures"], "--figures: needs a RUN_DIR"),
    "bench.run": (["--op", "rmz"], "--op: 'rmz' is not one of bn, "),
    "bench.study": (["--scale", "huge"], "--scale: 'huge' is not one of pilot, full, full-vgg16"),
    "bench.tune": (["--preset", "resnet5"], "--preset: 'resnet5' is not one of "),
}

LARGE = ("torch", "triton", "numpy", "pandas", "scipy", "rich", "matplotlib", "seaborn", "jinja2", "sklearn", "mlxtend")
PROGRAM = """
import contextlib, io, json, runpy, sys
calls, large = json.loads(sys.argv[1])

class Refused:
    def find_spec(name, *_):
        if name in large:
            raise ImportError(f"{name} is imported before the arguments are checked")

sys.meta_path.insert(0, Refused)
for name, argv in calls:
    sys.argv[1:] = argv
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            status = ended.code
        except ImportError as error:
            status = str(error)
    print(json.dumps([status, out.getvalue(), err.getvalue()]))
"""


@pytest.fixture(scope="module")
def answers():
    """(status, stdout, stderr) by command and arguments, from one process in which no large library can be imported."""
    calls = [(name, argv) for name, (wrong, _) in WRONG.items() for argv in (["--help"], wrong, ["--nonsense", "a"])]
    command = [sys.executable, "-c", PROGRAM, json.dumps([calls, LARGE])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {(name, *argv): json.loads(line) for (name, argv), line in zip(calls, done.stdout.splitlines(), strict=True)}


def test_every_command_is_listed_with_what_it_does(capsys):
    assert listing.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[2] for line in lines} == WRONG.keys()
    assert all(len(line.split()) > 6 for line in lines)


@pytest.mark.parametrize("name", WRONG)
def test_help_is_printed_before_anything_large_is_imported(name, answers):
    status, out, err = answers[name, "--help"]
    assert (status, err) == (0, "") and f"-m {name} " in out


@pytest.mark.parametrize("name", WRONG)
def test_a_bad_argument_is_one_line_and_status_2_before_anything_large_is_imported(name, answers):
    for argv, said in (WRONG[name], (["--nonsense", "a"], "")):
        status, out, err = answers[name, *argv]
        assert (status, out, err.count("\n")) == (2, "", 1), (status, err)
        assert err.startswith(f"{name}: error: {said}")


@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (cli.BadArgument("--op", "two\nlines"), 2, "bench.x: error: --op: two lines\n"),
    ],
)
def test_a_commands_exceptions_become_its_exit_status(ending, status, said, capsys):
    @cli.command("bench.x")
    def main(argv):
        raise ending

    assert main([]) == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("name", [name.removeprefix("bench.") for name, _ in listing.commands()])
def test_a_command_explains_itself_without_docstrings(name):
    # In a locale without any letter beyond ASCII, too.
    environ = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-OO", "-m", f"bench.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
