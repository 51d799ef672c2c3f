"""`python -m bench.run`: measures normalization layers, cell by cell, and writes one report.

The arguments are checked first, without torch; then the device is chosen. Whatever may import triton is imported after
that, because triton's interpreter has to be switched on before where there is no GPU.
"""

from __future__ import annotations

import re
import sys
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cli, folders
from bench.cases import sweep
from bench.cases.case import DTYPES, INPUTS, MODES
from bench.cases.operators import operators
from bench.cases.sweep import Sweep
from bench.cli import BadArgument
from bench.results.thresholds import SUBJECT

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from bench.measure.providers import Provider
    from bench.measure.runner import RunOutcome, RunPlan
    from bench.results.records import Record

DEFAULT_BASELINE = YARDSTICK = "torch"
# torch.compile needs a C++ compiler on a CPU, and its times there say nothing about a GPU: only when asked for.
CPU_PROVIDERS = ("normlib", "torch")
# Options that may be given anew when a run is continued.
_BESIDE_RESUME = ("time_budget", "cell_timeout", "in_process", "force", "against")

# What synchronized batch norm, whose cells all ranks measure together, takes besides the axes of batch norm.
_TOGETHER = ("op", "preset", "dtype", "layout", "providers", "subject", "device", "seed", "out")

_NOTES = """\
Lists are separated by commas. An axis, --dtype or --layout that is given replaces that part of every grid of the
preset, in the operators that have it, and cases that become equal are measured once. A model preset is one grid a
layer shape: `--preset resnet50 --batch 1` is that model at batch 1, and `--channels 64` leaves its sizes with 64
channels. With every axis given, only the preset's dtypes and layouts are left to stand in for those not given. A preset
may have modes of its own, as MODEL and MODEL-inference do; --mode replaces them.
--resume takes every argument from the run itself; --time-budget, --cell-timeout and --force may be given besides.
Cells run in a process of their own: one that crashes, hangs or is killed costs its cell alone. --in-process is for
debuggers and profilers.
Under torchrun (--nproc-per-node=8 -m bench.run ...) the cells are divided over its processes, each with a device of its
own, and merged into one report; --op sync_bn instead measures synchronized batch norm on all of them together.
--inputs other than normal are judged and not timed, and bring in textbook formulas (one_pass, two_pass, welford):
%(families)s

exit status: 0 done; 1 a cell of the subject is wrong or crashed, a time is impossible, or (--against) the subject got
slower or wrong; 2 unusable arguments, or a file cannot be written: what was measured before stays, and --resume
measures the rest; 130 Ctrl-C
"""


@dataclass(frozen=True)
class RunRequest:
    """A parsed command line, checked as far as possible without a device."""

    typed: Sequence[str]
    given: Mapping[str, Any]  # options by name; with --resume those of the run that is continued
    stored: Mapping[str, Any]  # environment.json of the run that is continued, empty for a new run
    sweep: Sweep
    seed: int
    deadline: float  # of time.monotonic()
    cell_timeout: float | None  # in seconds


@cli.command("bench.run")
def main(typed: Sequence[str]) -> int:
    """Runs the command line and returns its exit status (see --help)."""
    began = time.monotonic()
    given = vars(_parser().parse_args(typed))
    if given["op"] != "sync_bn":
        return _run(_request(typed, given, began))
    together = (*_TOGETHER, *operators()["batch_norm"].axes)
    beside = [_option(key) for key, value in given.items() if value not in (None, False) and key not in together]
    if beside:
        allowed = ", ".join(map(_option, _TOGETHER[1:]))
        raise BadArgument(", ".join(beside), f"not with --op sync_bn; allowed are {allowed} and batch norm's axes")
    from bench.measure import devices

    device, _ = devices.choose(given["device"])
    from bench.ranks import sync_batch_norm  # whose cells all ranks measure together
    from bench.report import render

    new_folder = partial(folders.new, given["out"])
    return sync_batch_norm.main(given, device, operators()["batch_norm"], new_folder, [*typed], render)


def _option(key: str) -> str:
    return "--" + key.replace("_", "-")


def _request(typed: Sequence[str], given: dict[str, Any], began: float) -> RunRequest:
    stored: Mapping[str, Any] = {}
    if given["resume"] is not None:
        stored = folders.stored(given["resume"])
        options = {_option(key): key for key, value in given.items() if value not in (None, False)}
        beside = [option for option, key in options.items() if key not in ("resume", *_BESIDE_RESUME)]
        if beside:
            allowed = ", ".join(map(_option, _BESIDE_RESUME))
            problem = f"not together with --resume, which takes them from the run; allowed are {allowed}"
            raise BadArgument(", ".join(beside), problem)
        given |= stored["arguments"] | {key: given[key] for key in options.values() if key in _BESIDE_RESUME}
    elif given["force"]:
        raise BadArgument("--force", "only together with --resume, whose refusal it overrides")
    if given["against"] is not None:
        folders.stored(given["against"], "--against")
    if given["profile"] is not None:
        cli.one_of("--profile", given["profile"], ("ncu", "nsys", "torch"))
    if given["list"] is not None:
        cli.one_of("--list", given["list"], ("presets", "cells"))
    if given["device"] is not None:
        cli.one_of("--device", given["device"], cli.DEVICES)
    seed, budget, timeout = (given[key] for key in ("seed", "time_budget", "cell_timeout"))
    if seed is not None and not re.fullmatch(r"[0-9]{1,15}", seed):
        raise BadArgument("--seed", f"{seed!r} is not a whole number from 0 to {10**15 - 1}")
    return RunRequest(
        typed=typed,
        given=given,
        stored=stored,
        sweep=sweep.parse(given, operators(), "quick"),
        seed=int(seed or 0),
        deadline=float("inf") if budget is None else began + cli.seconds("--time-budget", budget),
        cell_timeout=None if timeout is None else cli.seconds("--cell-timeout", timeout),
    )


def _run(request: RunRequest) -> int:
    from bench.measure import devices

    device, notes = devices.choose(request.given["device"])
    if device.type == "cpu" and request.given["preset"] is None:
        request = replace(request, sweep=replace(request.sweep, preset="smoke"))

    # From here on triton may be imported.
    from bench.measure import environment, profiling, runner
    from bench.measure.progress import display
    from bench.measure.providers import providers
    from bench.page.formatting import plural
    from bench.ranks import shards

    plan, more_notes = _plan(request, device, providers())
    console = cli.console(160)
    if request.given["list"]:
        from bench import listing

        listing.show(console, plan, providers(), request.given["list"] == "cells")
        return 0
    if tool := request.given["profile"]:
        profiling.check(tool, plan.cases, device)
    team = shards.join()
    described = environment.collect(device, providers()) | {"ranks": team.size if team else 1}
    if team and team.rank:
        return shards.assist(team, plan, described)
    folder, kept = _begin(request, plan, described, [*notes, *more_notes])
    for line in described["notes"]:
        console.print(line, markup=False)
    cells = f"{plural(len(plan.cases), 'case')} x {', '.join(plan.providers)} = {plural(plan.cells, 'cell')}"
    console.print(f"{cells} on {described['device_name']}", markup=False)
    measured = (plan, folder, described, kept, display(console))
    with team.signals if team else nullcontext():  # until all has been told
        try:
            outcome = shards.lead(team, *measured) if team else runner.run(*measured)
        finally:
            for line in described.get("said", ()):
                console.print(line, markup=False, soft_wrap=True)
        subject = described.get("subject", SUBJECT)
        if tool and outcome.complete and subject in plan.providers:
            said = profiling.profile(tool, plan.cases[0], plan.providers[subject], device, plan.seed, folder)
            console.print(said, markup=False, soft_wrap=True)
        _tell(console, outcome, folder, described)
    return _status(outcome, request.given["against"], folder, subject)


def _plan(request: RunRequest, device: torch.device, providers: Mapping[str, Provider]) -> tuple[RunPlan, list[str]]:
    """Returns what is measured on this device, and notes about what is smaller than asked for or left out."""
    from bench.cases.order import coarse_first
    from bench.cases.reduced import reduced
    from bench.measure.runner import RunPlan
    from bench.measure.worker import SILENCE_S

    given, asked = request.given, request.sweep
    names, baseline, left_out = _providers(request, providers, device)
    if given["subject"] is not None:
        cli.among("--subject", given["subject"], names, providers)
    cases, smaller = reduced(sweep.cases(asked, operators()), device, asked.axes)
    if given["energy"] and device.type != "cuda":
        left_out.append("no energies: only a GPU counts them")
    lacking = [name for name in asked.operators if asked.preset not in operators()[name].presets]
    plan = RunPlan(
        cases=tuple(cases if given["time_budget"] is None else coarse_first(cases)),
        providers={name: providers[name] for name in names},
        operators=operators(),
        baseline=baseline,
        yardstick=providers[YARDSTICK],
        device=device,
        seed=request.seed,
        deadline=request.deadline,
        cell_timeout=request.cell_timeout or SILENCE_S,
        isolated=not given["in_process"],
        energies=given["energy"],
    )
    return plan, [*smaller, *left_out, *(f"{name} has no preset {asked.preset} and is left out" for name in lacking)]


def _providers(
    request: RunRequest, providers: Mapping[str, Provider], device: torch.device
) -> tuple[tuple[str, ...], str, list[str]]:
    """Returns names with the baseline first, the baseline, and which were left out by default and why.

    A provider that is asked for by name stays although it is unavailable: its cells then say why. By default those that
    are never timed join only where inputs are hard.
    """
    missing = {name: reason for name, p in providers.items() if (reason := p.unavailable(device))}
    text, baseline = request.given["providers"], request.given["baseline"]
    if text is not None:
        names = cli.some_of("--providers", text, providers)
        left_out = [f"{name} cannot run here: {missing[name]}" for name in names if name in missing]
    else:
        timed = [name for name, p in providers.items() if p.timed and (device.type != "cpu" or name in CPU_PROVIDERS)]
        hard = any(family != "normal" for family, _ in request.sweep.families)
        wanted = [*timed, *(name for name, p in providers.items() if hard and not p.timed)]
        names = tuple(name for name in wanted if name not in missing)
        left_out = [f"{name} is left out: {missing[name]}" for name in wanted if name in missing]
    if all(name in missing for name in names):
        raise BadArgument("--providers", "none can run here: " + "; ".join(f"{n} ({missing[n]})" for n in names))
    if baseline is None:
        baseline = DEFAULT_BASELINE if DEFAULT_BASELINE in names else ""
        if not baseline:
            there = ", ".join(names)
            left_out.append(
                f"no speedups: {DEFAULT_BASELINE} is not measured, and --baseline names no other of {there}"
            )
    else:
        cli.among("--baseline", baseline, names, providers)
    return tuple(sorted(names, key=lambda name: name != baseline)), baseline, left_out


def _begin(
    request: RunRequest, plan: RunPlan, described: dict[str, Any], notes: list[str]
) -> tuple[Path, list[Record]]:
    """Returns the run's folder, new or continued, with the records that are there; completes what is `described`."""
    from bench.measure import environment
    from bench.ranks import shards

    given, stored = request.given, request.stored
    if not stored:
        short = "-".join(operators()[name].short for name in request.sweep.operators)
        folder = folders.new(given["out"], f"{short}-{plan.device.type}")
        # What --resume needs to plan the same cells again, defaults made explicit.
        typed = {key: value for key, value in given.items() if key not in ("out", "resume", "list", "force", "against")}
        chosen = {"preset": request.sweep.preset, "providers": ",".join(plan.providers), "device": plan.device.type}
        described |= {
            "run": folder.resolve().name,
            "started": environment.now(),
            "command": environment.command(request.typed),
            "seed": plan.seed,
            "baseline": plan.baseline,
            "subject": given["subject"] or SUBJECT,
            "copy_gbps": None,
            "arguments": {**typed, **chosen},
            "notes": notes,
        }
        return folder, []
    folder = Path(given["resume"])
    changed = environment.differences({"ranks": 1, **stored}, described, [*plan.providers])
    if changed and not given["force"]:
        problem = f"{given['resume']} was measured under other conditions: {'; '.join(changed)}; --force continues it"
        raise BadArgument("--resume", problem)
    forced = f" with --force under other conditions: {'; '.join(changed)}" if changed else ""
    before = [note for note in stored["notes"] if note not in stored.get("said", ())]
    kept = ("run", "started", "command", "seed", "baseline", "subject", "copy_gbps", "arguments")
    described |= {key: stored[key] for key in kept if key in stored}
    described["notes"] = [*cli.unique([*before, *notes]), f"continued {environment.now()}{forced}"]
    try:
        return folder, shards.kept_records(folder)
    except (OSError, ValueError, TypeError) as error:
        raise BadArgument("--resume", f"{given['resume']} has records that cannot be read: {error}") from error


def _tell(console: Console, outcome: RunOutcome, folder: Path, described: Mapping[str, Any]) -> None:
    """Prints the table of providers, the headlines and where the report is, which it makes."""
    from bench.report import render
    from bench.results.headline import headlines
    from bench.summary import summary

    baseline, subject = described["baseline"], described.get("subject", SUBJECT)
    summary(console, outcome, baseline, subject)
    for headline in headlines(outcome.records, described):
        console.print(headline.sentence(baseline, subject), markup=False)
    if outcome.records:
        console.print(f"report: {render(folder)}", markup=False, soft_wrap=True)


def _status(outcome: RunOutcome, against: str | None, folder: Path, subject: str) -> int:
    """Returns the exit status; compares with the run `against`, and prints what bench.compare prints."""
    if outcome.stopped_by == "interrupt":
        return 130
    failed = any(r.provider == subject and r.status in ("wrong", "crash") for r in outcome.records)
    impossible = any(r.status == "impossible" for r in outcome.records)
    regressed = False
    if against is not None:
        from bench.compare.__main__ import main as compare

        regressed = compare([against, str(folder), "--provider", subject]) == 1
    return 1 if failed or impossible or regressed or outcome.stopped_by not in ("", "time budget") else 0


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python -m bench.run",
        allow_abbrev=False,
        epilog=_NOTES % {"families": "\n".join(f"  {name:10} {about}" for name, about in INPUTS.items())},
        formatter_class=RawDescriptionHelpFormatter,
        description="Measures normalization layers: error against float64, and speed on a GPU.",
    )
    every = operators().values()
    presets = ", ".join(name for name in sweep.presets_of(every) if not name.endswith("-inference"))
    model = "a model's name means training, and there is MODEL-inference; default quick, no GPU: smoke"
    for option, metavar, about in (
        ("--op", "OPS", f"{', '.join(o.short for o in every)} or all (the default); sync_bn under torchrun"),
        ("--preset", "NAME", f"{presets}; {model}"),
        ("--mode", "MODES", ", ".join(f"{name} ({what})" for name, what in MODES.items())),
        ("--dtype", "DTYPES", ", ".join(DTYPES)),
        ("--layout", "LAYOUTS", ", ".join(cli.unique(layout for o in every for layout in o.layouts))),
        *(
            (f"--{axis}", "SIZES", f"an axis of {', '.join(o.short for o in every if axis in o.axes)}")
            for axis in sweep.axis_names(every)
        ),
        ("--inputs", "NAMES", f"families of x out of {', '.join(INPUTS)} (default normal)"),
        ("--offset", "X,...", "mean/std of --inputs offset (default 1e2,1e4,1e6)"),
        ("--providers", "NAMES", "default: all that are available; without a GPU normlib,torch"),
        ("--subject", "NAME", f"the provider that the verdict and the exit status are about (default {SUBJECT})"),
        ("--baseline", "NAME", "the provider that speedups refer to (default torch)"),
        ("--device", "NAME", "cuda or cpu; default cuda where there is one"),
        ("--time-budget", "TIME", "measure for 90s, 10m, 1.5h; the rest is skipped"),
        ("--cell-timeout", "TIME", "a cell that is silent for so long is stopped (default 10m)"),
        (
            "--profile",
            "TOOL",
            "also profile the subject on the one case given: ncu, nsys or torch (PyTorch's profiler)",
        ),
        ("--energy", "", "also the energy of a call, by the GPU's own counter; half a second more a cell"),
        ("--in-process", "", "measure in this very process, for debuggers"),
        ("--against", "DIR", "compare with that run afterwards, as bench.compare does"),
        ("--out", "DIR", "the run's folder (default reports/TIME-OPS-DEVICE)"),
        ("--resume", "DIR", "finish the interrupted run of this folder"),
        ("--force", "", "with --resume: although machine or versions differ"),
        ("--seed", "N", "of the random inputs (default 0)"),
    ):
        if metavar:
            parser.add_argument(option, metavar=metavar, help=about)
        else:
            parser.add_argument(option, action="store_true", help=about)
    about = "print the operators, presets and providers, and about how long the run takes, or its cells; run nothing"
    parser.add_argument("--list", nargs="?", const="presets", metavar="cells", help=about)
    return parser


if __name__ == "__main__":
    sys.exit(main())
