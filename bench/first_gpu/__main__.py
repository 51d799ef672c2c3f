"""`python3 -m bench.first_gpu --out DIR`: collects what a GPU can show in nine minutes, as one archive.

A GPU may be there for minutes only, without a network, so the most telling steps come first. Each has a time limit,
after which all that it started is killed, and no failure stops the rest. After each step DIR/evidence.zip (15 MB at
most) and DIR/summary.txt hold what is known so far. It needs torch, triton, pandas, scipy, seaborn, jinja2, rich and
pytest; nothing has to be installed. Wheels of peers in --wheels (`make peer-wheels`) are used.

--rehearse runs the same steps, each with its smallest sizes, on the fake GPU of tests/fake_cuda.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import cli
from bench.cli import BadArgument
from bench.first_gpu.evidence import SUMMARY, Evidence, Step

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 9.0
# Reserved for the last archive.
ENDING_S = 5.0
PYTHON = sys.executable

_MACHINE = """
import platform, importlib.metadata as metadata, torch
print(torch.cuda.get_device_properties(0))
print("a sum on it:", torch.ones(3, device="cuda").sum().item())
versions = [f"{name} {metadata.version(name)}" for name in ("torch", "triton")]
print(torch.cuda.get_device_name(), "python", platform.python_version(), *versions, "cuda", torch.version.cuda)
"""
# -v: where a test hangs, its name is the last line of the log.
_PYTEST = (PYTHON, "-m", "pytest", "-v", "-p", "no:cacheprovider")
_INTO = ("--cell-timeout", "60s", "--time-budget", "{seconds}s", "--out", "{folder}/run")
_RUN = (PYTHON, "-m", "bench.run", "--device", "cuda", *_INTO)
_INSTRUMENT = ("tests/bench/measure/timing", "tests/bench/measure/test_telemetry.py")
_CONSTANTS = (PYTHON, "-m", "bench.device_constants", "--out", "{folder}/constants.json")
_COUNTERS = (PYTHON, "-m", "bench.audit.counters", "--out", "{folder}/counters.jsonl")
# Does half a line of the L2 take up a whole one? A tensor that meets itself in the L2; a row that is no power of two.
_COUNTED = ("batch_norm:32x64x112x112:bf16:nhwc", "batch_norm:32x256x56x56:bf16:nchw", "rms_norm:4096x12288:bf16:rows")
_PEERS = 'exec "$0" -m pip install -q --no-index --no-deps --target "$1/peers" "$2"/*.whl'


def steps(wheels: Path | None) -> tuple[Step, ...]:
    """Returns the steps on a GPU; their seconds add up to MINUTES at most."""
    peers = (Step("peers", 15, ("sh", "-c", _PEERS, PYTHON, "{scratch}", str(wheels))),) if wheels else ()
    return (
        *peers,
        Step("machine", 15, ("sh", "-c", 'nvidia-smi; nvidia-smi -q; exec "$0" -c "$1"', PYTHON, _MACHINE)),
        _tests("merges", 75, "-m", "gpu", "tests/kernels/test_last_program.py"),
        _tests("sliced rows", 45, "-m", "gpu", "tests/kernels/test_sliced_rows.py"),
        _tests("instrument", 60, "-m", "gpu", *_INSTRUMENT),
        Step("batch norm", 130, (*_RUN, "--op", "bn"), least=40),
        Step("rows", 105, (*_RUN, "--op", "rms,ln", "--dtype", "bf16"), least=40),
        Step("constants", 25, _CONSTANTS),
        Step("counters", 30, (*_COUNTERS, *_COUNTED)),
        _tests("launches", 30, "-m", "gpu", "tests/kernels/test_launch_counts.py"),
    )


def rehearsal() -> tuple[Step, ...]:
    """Returns the same steps with their smallest sizes, for the fake GPU; limits are wide, as it is slow."""
    small = ("--mode", "fwd,bwd", "--dtype", "bf16", "--providers", "normlib,torch")
    bn = ("--op", "bn", "--batch", "2", "--channels", "3", "--spatial", "5x5", "--layout", "nchw", *small)
    rows = ("--op", "rms,ln", "--tokens", "4", "--hidden", "40", *small)
    # A fake device is not lost at a wrong index, and large tensors keep the CPU busy.
    instrument = (*_INSTRUMENT, "-k", "not lost_is_blamed and not every_figure and not test_timing")
    return (
        Step("machine", 60, (PYTHON, "-c", _MACHINE)),
        _tests("merges", 60, "tests/kernels/test_last_program.py", "-k", "match_float64 and split"),
        _tests("sliced rows", 60, "tests/kernels/test_sliced_rows.py", "-k", "not_whole or a_part"),
        _tests("instrument", 120, "-m", "gpu", *instrument),
        Step("batch norm", 120, (*_RUN, *bn)),
        Step("rows", 120, (*_RUN, *rows)),
        Step("constants", 120, (*_CONSTANTS, "--bytes", "65536", "--time-budget", "60s")),
        Step("counters", 60, (*_COUNTERS, "rms_norm:4x40:bf16:rows", "batch_norm:2x3x5x5:bf16:nchw")),
        # Its passes have the sizes of models.
        Step("launches", 60, (*_PYTEST, "--collect-only", "-m", "gpu", "tests/kernels/test_launch_counts.py")),
    )


def _tests(name: str, seconds: float, *arguments: str) -> Step:
    """Returns a step of tests, which fails where all are skipped, as without a GPU."""
    return Step(name, seconds, (*_PYTEST, *arguments), expected="passed")


@cli.command("bench.first_gpu")
def main(argv: Sequence[str]) -> int:
    """Runs the steps; returns 0 if all succeeded, 1 if one did not, 2 for unusable arguments."""
    began = time.monotonic()
    parser = cli.Parser(prog="python3 -m bench.first_gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder, for one rehearsal or one GPU")
    parser.add_argument(
        "--minutes", type=_minutes, default=MINUTES, help=f"in all; the last steps go first ({MINUTES:g})"
    )
    parser.add_argument("--wheels", type=Path, default=ROOT / ".whl", help="a folder with peers' wheels (.whl)")
    parser.add_argument("--rehearse", action="store_true", help="on a fake GPU, every step with its smallest sizes")
    given = parser.parse_args(argv)
    try:
        evidence = Evidence(
            given.out.resolve(), "REHEARSAL on a fake GPU: no figure here was measured" * given.rehearse
        )
    except OSError as error:
        problem = f"{str(given.out)!r} cannot be written: {error.strerror}; give a new folder"
        raise BadArgument("--out", problem) from error
    has_wheels = given.wheels.is_dir() and any(given.wheels.glob("*.whl"))
    chosen = rehearsal() if given.rehearse else steps(given.wheels.resolve() if has_wheels else None)
    path = [str(ROOT / "tests" / "fake_gpu")] if given.rehearse else [str(evidence.scratch / "peers")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        # Where there is a fake GPU, there is a fake ncu.
        "PATH": os.pathsep.join([*(path if given.rehearse else []), os.environ.get("PATH", os.defpath)]),
        "TMPDIR": str(evidence.scratch),
        "TRITON_CACHE_DIR": str(evidence.scratch / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(evidence.scratch / "inductor"),
    }
    try:
        for step in chosen:
            left = began + 60 * given.minutes - ENDING_S - time.monotonic()
            evidence.run(step, min(step.seconds, left), environment, ROOT)
            print(evidence.results[-1], flush=True)
    finally:
        evidence.close()
    print("", (given.out / SUMMARY).read_text(encoding="utf-8"), sep="\n")
    return 0 if evidence.succeeded else 1


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= 60:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes from 0 to 60")
    return minutes


if __name__ == "__main__":
    sys.exit(main())
