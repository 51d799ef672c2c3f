"""Profiles one cell: under Nsight Compute or Nsight Systems in a process of its own, or by PyTorch's profiler in this.

`python -m bench.measure.profiling CASE PROVIDER DEVICE SEED` is what those tools watch: between the start and the stop
of CUDA's profiler there are CALLS calls, and neither compilation nor warm-up.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import profiler

from bench import writing
from bench.cases.case import Case
from bench.cases.operators import operators
from bench.cli import BadArgument
from bench.measure.providers import Provider, Unsupported, providers

WARM_UP, CALLS = 3, 10  # as many as show whether calls differ; each is a page of Nsight Compute
ROWS = 30  # of the table of operators
# The command that comes before the program, whose last word is the file without its ending, and that ending.
TOOLS: dict[str, tuple[tuple[str, ...], str]] = {
    "ncu": (("ncu", "--set", "full", "--profile-from-start", "off", "--force-overwrite", "--export"), "ncu-rep"),
    "nsys": (
        ("nsys", "profile", "--capture-range", "cudaProfilerApi", "--force-overwrite", "true", "--output"), "nsys-rep"
    ),
    "torch": ((), "json"),
}  # fmt: skip


def check(tool: str, cases: tuple[Case, ...], where: torch.device) -> None:
    """Raises BadArgument where the tool is not there, or where there is more than one case."""
    if tool != "torch" and where.type != "cuda":
        raise BadArgument("--profile", f"{tool} needs a GPU; torch is PyTorch's profiler, which does not")
    if tool != "torch" and not shutil.which(tool):
        raise BadArgument("--profile", f"{tool} is not installed; it comes with the CUDA toolkit")
    if len(cases) != 1:
        problem = f"takes one case, and these are {len(cases)}: give every axis, --dtype, --layout and --mode"
        raise BadArgument("--profile", problem)


def profile(tool: str, case: Case, provider: Provider, where: torch.device, seed: int, folder: Path) -> str:
    """Writes the profile into a run's folder as profile-PROVIDER-TOOL; returns where it is, or why there is none."""
    out = folder / f"profile-{provider.name}-{tool}"
    before, ending = TOOLS[tool]
    if not before:
        try:
            _by_torch(_prepared(case, provider, where, seed), out, where)
        except Unsupported as error:
            return f"no profile: {provider.name} does not serve {case.label}: {error}"
        return f"profile: {out}.{ending}, for chrome://tracing or perfetto.dev, and {out}.txt"
    program = (sys.executable, "-m", __name__, json.dumps(asdict(case)), provider.name, str(where), str(seed))
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        (*before, str(out), *program), capture_output=True, errors="replace", env={**os.environ, "PYTHONPATH": path}
    )
    if done.returncode or not out.with_name(f"{out.name}.{ending}").exists():
        said = (done.stderr + done.stdout).strip().splitlines() or ["it said nothing"]
        return f"no profile: {tool} ended with status {done.returncode}: {said[-1]}"
    return f"profile: {out}.{ending}"


def _prepared(case: Case, provider: Provider, where: torch.device, seed: int) -> Callable[[], object]:
    run = provider.build(case, operators()[case.op].inputs(case, where, seed)).run
    for _ in range(WARM_UP):
        run()
    return run


def _by_torch(run: Callable[[], object], out: Path, where: torch.device) -> None:
    kinds = [profiler.ProfilerActivity.CPU, *[profiler.ProfilerActivity.CUDA] * (where.type == "cuda")]
    with profiler.profile(activities=kinds) as found:
        for _ in range(CALLS):
            run()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
    found.export_chrome_trace(f"{out}.json")
    table = found.key_averages().table(sort_by=f"self_{where.type}_time_total", row_limit=ROWS)
    writing.write(Path(f"{out}.txt"), table)


def main(case: str, name: str, where: str, seed: str) -> None:
    """Makes the calls that a tool watches."""
    made = json.loads(case)
    made |= {"shape": tuple(made["shape"]), "axes": tuple(map(tuple, made["axes"]))}
    run = _prepared(Case(**made), providers()[name], torch.device(where), int(seed))
    gpu = torch.device(where).type == "cuda"
    with torch.cuda.profiler.profile() if gpu else nullcontext():
        for _ in range(CALLS):
            run()
        if gpu:
            torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
