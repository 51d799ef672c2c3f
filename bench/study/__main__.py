"""`python -m bench.study`: runs the literature's experiments with these layers, and says which claims come out.

exit status: 0 done, whatever came out; 1 a run failed; 2 unusable arguments, or a file cannot be written; 130 Ctrl-C
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cli, folders
from bench.cli import BadArgument
from bench.study import data, records
from bench.study.experiment import Experiment
from bench.study.experiments import BY_NAME
from bench.study.records import StudyRun
from bench.study.training import SCALES, StudySetting

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bench.study.study import GateVerdict

# The arguments that decide which runs there are; a study that is continued keeps them.
_ARGUMENTS = ("only", "data", "scale", "seeds", "device")
# Written once, when a study begins.
_KEPT = ("run", "started", "command", "arguments", "layers", "study", "processes", "wall_seconds")
_NOTES = f"""\
--data: {", ".join(data.PACKAGED)} ship inside packages; CIFAR-10 is the folder of its binary files (data_batch_*.bin).
--scale: {"; ".join(f"{scale.name}: {scale.about}" for scale in SCALES.values())}.
Experiments that sweep a quantity run with one seed. Runs go on side by side on a CPU, one a core.

"""
_STYLES = {"reproduced": "green", "not reproduced": "bold red", "not decided": "yellow"}
# Seconds between lines of progress where there is no terminal.
_PERIOD = 5.0


@cli.command("bench.study")
def main(typed: Sequence[str]) -> int:
    """Runs the command line and returns its exit status (see --help)."""
    given = vars(_parser().parse_args(typed))
    stored = {} if given["resume"] is None else _stored(given)
    asked = given | stored.get("arguments", {}) | ({"data": given["data"]} if given["data"] else {})
    if given["force"] and not stored:
        raise BadArgument("--force", "only together with --resume, whose refusal it overrides")
    names = tuple(BY_NAME) if asked["only"] is None else cli.some_of("--only", asked["only"], BY_NAME)
    chosen = tuple(BY_NAME[name] for name in names)
    seeds = cli.count("--seeds", "3" if asked["seeds"] is None else asked["seeds"])
    scale = SCALES[cli.one_of("--scale", asked["scale"] or "pilot", SCALES)]
    if asked["device"] is not None:
        cli.one_of("--device", asked["device"], cli.DEVICES)
    source = "digits" if asked["data"] is None else asked["data"]
    if source not in data.PACKAGED:
        data.cifar10_files(Path(source))
    console = cli.console(200, markup=False)
    if given["list"]:
        console.print(_listing(chosen))
        return 0

    # Here, because torch takes seconds to import, which a list and a bad argument need not wait for.
    import torch

    from bench.measure import environment
    from bench.page.formatting import plural
    from bench.study import page, runner
    from bench.study.study import Study
    from normlib import backend_for

    images = data.load(source)
    if scale.network != "mlp" and images.image != data.CIFAR_IMAGE:
        raise BadArgument("--scale", f"{scale.name} needs --data with the folder of CIFAR-10's binary files")
    gpu = torch.cuda.is_available() and not environment.interpreting()
    device = asked["device"] or ("cuda" if gpu else "cpu")
    if device == "cuda" and not gpu:
        raise BadArgument("--device", "there is no GPU that PyTorch can use here (or TRITON_INTERPRET is set); cpu is")
    # One process has a GPU to itself, as one study should.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = 0 if given["in_process"] or device == "cuda" else cores
    setting = StudySetting(images.to(torch.device(device)), torch.device(device), scale)
    # Seed by seed, so that a study that is stopped early has all experiments with fewer seeds.
    planned = [
        (experiment.name, condition, seed)
        for seed in range(seeds)
        for experiment in chosen
        if seed == 0 or not experiment.sweep
        for condition in experiment.conditions
    ]
    described = environment.collect(torch.device(device), {})
    if stored:
        folder = Path(given["resume"])
        described |= _continued(stored, described, images.name, given)
        kept = _kept(folder)
    else:
        folder, kept = folders.new(given["out"], f"study-{device}"), []
        described |= {
            "run": folder.resolve().name,
            "started": environment.now(),
            "command": environment.command(typed, "bench.study"),
            # Not the folder of the images, which may be private: to continue, it has to be named again.
            "arguments": {key: asked[key] for key in _ARGUMENTS} | {"data": images.name, "device": device},
            "layers": backend_for(torch.empty(0, device=device)),
            "study": {"experiments": list(names), "data": images.name, "scale": scale.name}
            | {"network": scale.network, "seeds": seeds},
            "processes": processes,
            "wall_seconds": 0.0,
            "notes": [],
        }
    on = f"{described['device_name']}; layers run by {described['layers']}"
    console.print(f"{plural(len(chosen), 'experiment')}, {plural(len(planned), 'run')} on {on}")
    with _progress(console, len(planned), len(kept)) as finished:
        runs, stopped_by = runner.run(setting, planned, processes, folder, described, kept, finished)
    verdicts = Study(folder, described, tuple(runs)).verdicts.values()
    console.print(_verdict_table(verdict for of_one in verdicts for verdict in of_one))
    if runs:
        console.print(f"report: {page.render(folder)}", soft_wrap=True)
    if stopped_by == "interrupt":
        return 130
    return 1 if any(ended.state == "failed" for ended in runs) else 0


def _stored(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the environment.json of the study to continue; BadArgument where it cannot be continued."""
    # The folder of images is not stored, so it may be given anew.
    beside = [f"--{key}" for key in (*_ARGUMENTS, "out") if given[key] and key != "data"]
    if beside:
        raise BadArgument(", ".join(beside), "not together with --resume, which takes them from the study")
    stored = folders.stored(given["resume"])
    if "study" not in stored:
        raise BadArgument("--resume", f"{given['resume']!r} holds a run of another kind")
    images = stored["study"]["data"]
    if images not in data.PACKAGED and not given["data"]:
        raise BadArgument("--resume", f"{given['resume']!r} was run on {images}: name its folder again with --data")
    return stored


def _continued(
    stored: Mapping[str, Any], described: Mapping[str, Any], images: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the part of environment.json that a study keeps; BadArgument where conditions differ, unless forced."""
    from bench.measure import environment

    changed = environment.differences(stored, described, ())
    if images != stored["study"]["data"]:
        changed.append(f"data was {stored['study']['data']!r}, is {images!r}")
    if changed and not given["force"]:
        refused = f"{given['resume']} was run elsewhere: {'; '.join(changed)}; --force continues it"
        raise BadArgument("--resume", refused)
    forced = f" with --force under other conditions: {'; '.join(changed)}" if changed else ""
    notes = [*stored["notes"], f"continued {environment.now()}{forced}"]
    return {key: stored[key] for key in _KEPT} | {"notes": notes}


def _kept(folder: Path) -> list[StudyRun]:
    """Returns the runs of an earlier start; failed ones are to be run again."""
    try:
        return list({kept.key: kept for kept in records.read(folder) if kept.state != "failed"}.values())
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        raise BadArgument("--resume", f"{folder} has records that cannot be read: {error}") from error


@contextmanager
def _progress(console: Console, planned: int, done: int) -> Iterator[Callable[[StudyRun], None]]:
    """Shows a bar on a terminal, a line every few seconds anywhere else, and each failed run at once.

    Yields a function to call with each run whose record is written.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, told = bar.add_task("", total=planned, completed=done), 0.0

        def finished(run: StudyRun) -> None:
            nonlocal told, done
            done, what = done + 1, f"{run.experiment}, {run.condition}, seed {run.seed}"
            bar.update(task, advance=1, description=what)
            if run.state == "failed":
                console.print(f"failed: {what}: {run.reason}", markup=False, soft_wrap=True)
            if not console.is_terminal and (time.monotonic() - told >= _PERIOD or done == planned):
                told = time.monotonic()
                console.print(f"{done}/{planned} runs: {what}", markup=False, soft_wrap=True)

        yield finished


def _listing(experiments: Sequence[Experiment]) -> Table:
    from rich.table import Table

    table = Table("experiment", "claim", "source", "conditions", box=None, pad_edge=False)
    for e in experiments:
        table.add_row(e.name, e.claim, f"{e.source.authors} ({e.source.year})", ", ".join(e.conditions))
    return table


def _verdict_table(verdicts: Iterable[GateVerdict]) -> Table:
    from rich.table import Table

    table = Table("experiment", "holds if", "figures, median over seeds (lowest to highest)", "seeds", "verdict")
    table.box, table.pad_edge = None, False
    for of in verdicts:
        figures = "; ".join(f"{condition}: {figure}" for condition, _, figure in of.compared)
        seeds = f"{list(of.outcomes.values()).count(True)} of {len(of.outcomes)}"
        table.add_row(of.experiment.name, of.gate.text, figures, seeds, of.word, style=_STYLES[of.word])
    return table


def _parser() -> cli.Parser:
    about, _, status = (__doc__ or "").partition("\n\n")
    parser = cli.Parser(
        prog="python -m bench.study",
        description=about,
        epilog=_NOTES + status,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="NAMES", help="these experiments, separated by commas; --list has all")
    parser.add_argument("--data", metavar="WHAT", help=f"{', '.join(data.PACKAGED)} or a folder (default digits)")
    parser.add_argument("--scale", metavar="NAME", help=f"{', '.join(SCALES)} (default pilot)")
    parser.add_argument("--seeds", metavar="N", help="so many runs of each condition (default 3)")
    parser.add_argument("--device", metavar="NAME", help="cuda or cpu; default cuda where there is one")
    parser.add_argument("--out", metavar="DIR", help="the study's folder (default reports/TIME-study-DEVICE)")
    parser.add_argument("--resume", metavar="DIR", help="finish the interrupted study of this folder")
    parser.add_argument("--force", action="store_true", help="with --resume: although machine or versions differ")
    parser.add_argument("--in-process", action="store_true", help="run in this very process, for debuggers")
    parser.add_argument("--list", action="store_true", help="print the experiments and run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
