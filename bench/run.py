"""`python -m bench.run`: measures normalization layers, cell by cell, and writes one report.

Only the arguments are dealt with here: the cases come from bench.cases, the records from bench.measure, the page from
bench.report. Whatever may import triton is imported inside functions, after the interpreter's switch is set.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from bench import cli, folders
from bench.callable import make_callable
from bench.cases import sweep
from bench.cases.case import DTYPES, INPUTS, MODES
from bench.cli import BadArgument
from bench.measure import devices, environment

if TYPE_CHECKING:
    import torch

    from bench.cases.operators import Operator
    from bench.measure.providers import Provider

OURS = "normlib"
DEFAULT_BASELINE = YARDSTICK = "torch"
# torch.compile needs a C++ compiler on a CPU, and its times there say nothing about a GPU: only when asked for.
CPU_PROVIDERS = ("normlib", "torch")

# What may be said anew of a run that is continued.
_BESIDE_RESUME = ("time_budget", "cell_timeout", "in_process", "force", "against")

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

exit status: 0 done; 1 a normlib cell is wrong or crashed, a time is impossible, or (--against) normlib got slower or
wrong; 2 unusable arguments; 130 Ctrl-C
"""


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as an exception, so that every one of them leaves by the same door."""

    def error(self, message: str) -> NoReturn:
        argument, colon, problem = message.removeprefix("argument ").partition(": ")
        raise BadArgument(argument, problem) if colon else BadArgument("arguments", message)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status (see --help)."""
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except BadArgument as error:
        print("bench.run: error:", *str(error).split(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _main(typed: list[str]) -> int:
    began = time.monotonic()
    early = _Parser(add_help=False, allow_abbrev=False)
    early.add_argument("--device")
    early.add_argument("--resume")
    early.add_argument("--against")
    first = early.parse_known_args(typed)[0]
    stored = {} if first.resume is None else folders.stored(first.resume)
    if first.against is not None:
        folders.stored(first.against, "--against")
    device, notes = devices.choose(stored.get("device") if first.device is None else first.device)

    # From here on triton may be imported.
    from bench.cases.operators import operators
    from bench.measure.providers import providers

    given = vars(_parser(operators()).parse_args(typed))
    if given["op"] == "sync_bn":  # whose cells all ranks measure together
        from bench.ranks import sync_batch_norm as together
        from bench.report import render

        folder_of = partial(folders.new, given["out"])
        return together.main(given, device, operators()["batch_norm"], folder_of, typed, render)
    if first.resume is not None:
        _refuse_beside_resume(given)
        again = {key: given[key] for key in _BESIDE_RESUME if given[key] not in (None, False)}
        given = {**given, **stored["arguments"], **again}
    elif given["force"]:
        raise BadArgument("--force", "only together with --resume, whose refusal it overrides")
    return _run(typed, given, stored, device, notes, operators(), providers(), began)


def _run(
    typed: list[str],
    given: dict[str, Any],
    stored: Mapping[str, Any],
    device: torch.device,
    notes: list[str],
    operators: Mapping[str, Operator],
    providers: Mapping[str, Provider],
    began: float,
) -> int:
    from bench import listing
    from bench.cases.order import coarse_first
    from bench.cases.reduced import reduced
    from bench.measure import runner
    from bench.measure.progress import display
    from bench.measure.worker import SILENCE_S
    from bench.ranks import shards
    from bench.report import render
    from bench.results.headline import headlines
    from bench.summary import summary

    budget = given["time_budget"]
    asked = sweep.parse(given, operators, "smoke" if device.type == "cpu" else "quick")
    judging = any(family != "normal" for family, _ in asked.families)
    names, baseline, left_out = _providers(given, providers, device, judging)
    cases, smaller = reduced(sweep.cases(asked, operators), device, asked.axes)
    plan = runner.RunPlan(
        cases=tuple(cases if budget is None else coarse_first(cases)),
        providers={name: providers[name] for name in names},
        operators=operators,
        baseline=baseline,
        yardstick=providers[YARDSTICK],
        device=device,
        seed=_seed("0" if given["seed"] is None else given["seed"]),
        deadline=float("inf") if budget is None else began + cli.seconds("--time-budget", budget),
        cell_timeout=cli.seconds("--cell-timeout", given["cell_timeout"] or f"{SILENCE_S:g}s"),
        isolated=not given["in_process"],
    )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if given["list"]:
        listing.show(console, plan, providers)
        return 0

    lacking = [name for name in asked.operators if asked.preset not in operators[name].presets]
    notes += [*smaller, *left_out, *(f"{name} has no preset {asked.preset} and is left out" for name in lacking)]
    team = shards.join()
    described = environment.collect(device, providers) | {"ranks": team.size if team else 1}
    if team and team.rank:
        return shards.assist(team, plan, described)
    if stored:
        folder = Path(given["resume"])
        changed = environment.differences({"ranks": 1, **stored}, described, names)
        if changed and not given["force"]:
            raise BadArgument(
                "--resume",
                f"{given['resume']} was measured under other conditions: {'; '.join(changed)}; --force continues it",
            )
        forced = f" with --force under other conditions: {'; '.join(changed)}" if changed else ""
        before = [note for note in stored["notes"] if note not in stored.get("said", ())]
        notes = [*cli.unique([*before, *notes]), f"continued {environment.now()}{forced}"]
        described |= {
            key: stored[key] for key in ("run", "started", "command", "seed", "baseline", "copy_gbps", "arguments")
        }
        try:
            kept = shards.kept_records(folder)
        except (OSError, ValueError, TypeError) as error:
            raise BadArgument("--resume", f"{given['resume']} has records that cannot be read: {error}") from error
    else:
        folder = folders.new(given["out"], f"{'-'.join(operators[n].short for n in asked.operators)}-{device.type}")
        kept = []
        described |= {
            "run": folder.resolve().name,
            "started": environment.now(),
            "command": environment.command(typed),
            "seed": plan.seed,
            "baseline": baseline,
            "copy_gbps": None,
            "arguments": _arguments(given, asked.preset, names, device),
        }
    described["notes"] = notes
    for line in (
        *notes,
        f"{len(plan.cases)} cases x {', '.join(names)} = {plan.cells} cells on {described['device_name']}",
    ):
        console.print(line, markup=False)
    given_to = (plan, folder, described, kept, display(console))
    with team.signals if team else nullcontext():  # until all has been told
        try:
            outcome = shards.lead(team, *given_to) if team else runner.run(*given_to)
        finally:
            for line in described.get("said", ()):
                console.print(line, markup=False, soft_wrap=True)
        summary(console, outcome, baseline, OURS)
        for headline in headlines(outcome.records, described):
            console.print(headline.sentence(baseline, OURS), markup=False)
        if outcome.records:
            console.print(f"report: {render(folder)}", markup=False, soft_wrap=True)
    if outcome.stopped_by == "interrupt":
        return 130
    failed = any(r.provider == OURS and r.status in ("wrong", "crash") for r in outcome.records)
    impossible = any(r.status == "impossible" for r in outcome.records)
    regressed = given["against"] is not None and _compared(given["against"], folder)
    return 1 if failed or impossible or regressed or outcome.stopped_by not in ("", "time budget") else 0


def _compared(before: str, folder: Path) -> bool:
    """Whether normlib got slower or wrong since that run; prints what bench.compare prints."""
    from bench.compare.__main__ import main as compare

    return compare([before, str(folder), "--provider", OURS]) == 1


def _parser(operators: Mapping[str, Operator]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m bench.run",
        allow_abbrev=False,
        epilog=_NOTES % {"families": "\n".join(f"  {name:10} {about}" for name, about in INPUTS.items())},
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures normalization layers: error against float64, and speed on a GPU.",
    )
    short = [operator.short for operator in operators.values()]
    presets = ", ".join(name for name in sweep.presets_of(operators.values()) if not name.endswith("-inference"))
    parser.add_argument("--op", metavar="OPS", help=f"{', '.join(short)} or all (the default); sync_bn under torchrun")
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"{presets}; a model's name means training, and there is MODEL-inference; default quick, no GPU: smoke",
    )
    parser.add_argument("--mode", metavar="MODES", help=", ".join(f"{name} ({what})" for name, what in MODES.items()))
    parser.add_argument("--dtype", metavar="DTYPES", help=", ".join(DTYPES))
    layouts = cli.unique(layout for operator in operators.values() for layout in operator.layouts)
    parser.add_argument("--layout", metavar="LAYOUTS", help=", ".join(layouts))
    for axis in sweep.axis_names(operators.values()):
        owners = ", ".join(operator.short for operator in operators.values() if axis in operator.axes)
        parser.add_argument(f"--{axis}", metavar="SIZES", help=f"an axis of {owners}")
    parser.add_argument("--inputs", metavar="NAMES", help=f"families of x out of {', '.join(INPUTS)} (default normal)")
    parser.add_argument("--offset", metavar="X,...", help="mean/std of --inputs offset (default 1e2,1e4,1e6)")
    parser.add_argument(
        "--providers", metavar="NAMES", help="default: all that are available; without a GPU normlib,torch"
    )
    parser.add_argument("--baseline", metavar="NAME", help="the provider that speedups refer to (default torch)")
    parser.add_argument("--device", metavar="NAME", help="cuda or cpu; default cuda where there is one")
    parser.add_argument("--time-budget", metavar="TIME", help="measure for 90s, 10m, 1.5h; the rest is skipped")
    parser.add_argument(
        "--cell-timeout", metavar="TIME", help="a cell that is silent for so long is stopped (default 10m)"
    )
    parser.add_argument("--in-process", action="store_true", help="measure in this very process, for debuggers")
    parser.add_argument("--against", metavar="DIR", help="compare with that run afterwards, as bench.compare does")
    parser.add_argument("--out", metavar="DIR", help="the run's folder (default reports/TIME-OPS-DEVICE)")
    parser.add_argument("--resume", metavar="DIR", help="finish the interrupted run of this folder")
    parser.add_argument("--force", action="store_true", help="with --resume: although machine or versions differ")
    parser.add_argument("--seed", metavar="N", help="of the random inputs (default 0)")
    parser.add_argument(
        "--list",
        action="store_true",
        help="print the cells, presets, providers and about how long they take; run nothing",
    )
    return parser


def _providers(
    given: Mapping[str, str | None], providers: Mapping[str, Provider], device: torch.device, judging: bool
) -> tuple[tuple[str, ...], str, list[str]]:
    """Names with the baseline first, the baseline, and which were left out by default and why.

    One asked for by name stays although it is unavailable: its cells then say why. By default those that are never
    timed join only where inputs are hard, which is `judging`.
    """
    missing = {name: reason for name, p in providers.items() if (reason := p.unavailable(device))}
    text, baseline = given["providers"], given["baseline"]
    if text is not None:
        names, left_out = cli.some_of("--providers", text, providers), []
    else:
        timed = [name for name, p in providers.items() if p.timed and (device.type != "cpu" or name in CPU_PROVIDERS)]
        wanted = [*timed, *(name for name, p in providers.items() if judging and not p.timed)]
        names = tuple(name for name in wanted if name not in missing)
        left_out = [f"{name} is left out: {missing[name]}" for name in wanted if name in missing]
    if all(name in missing for name in names):
        raise BadArgument("--providers", "none can run here: " + "; ".join(f"{n} ({missing[n]})" for n in names))
    if baseline is None:
        baseline = DEFAULT_BASELINE if DEFAULT_BASELINE in names else ""
    elif baseline not in names:
        cli.one_of("--baseline", baseline, providers)
        raise BadArgument("--baseline", f"{baseline!r} is not among the providers of this run: {', '.join(names)}")
    return tuple(sorted(names, key=lambda name: name != baseline)), baseline, left_out


def _seed(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise BadArgument("--seed", f"{text!r} is not a whole number from 0 to {10**15 - 1}")
    return int(text)


def _arguments(given: Mapping[str, Any], preset: str, names: Sequence[str], device: torch.device) -> dict[str, Any]:
    """What --resume needs to plan the same cells again, defaults made explicit."""
    kept = {key: value for key, value in given.items() if key not in ("out", "resume", "list", "force", "against")}
    return {**kept, "preset": preset, "providers": ",".join(names), "device": device.type}


def _refuse_beside_resume(given: Mapping[str, Any]) -> None:
    beside = [
        key for key, value in given.items() if value not in (None, False) and key not in ("resume", *_BESIDE_RESUME)
    ]
    if beside:
        options = ", ".join("--" + key.replace("_", "-") for key in beside)
        allowed = ", ".join("--" + key.replace("_", "-") for key in _BESIDE_RESUME)
        raise BadArgument(options, f"not together with --resume, which takes them from the run; allowed are {allowed}")


make_callable(__name__, "run")

if __name__ == "__main__":
    sys.exit(main())
