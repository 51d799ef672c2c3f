"""`python -m bench.study`: runs the literature's experiments with these layers, and says which claims come out.

exit status: 0 done, whatever came out; 1 a run failed; 2 unusable arguments; 130 Ctrl-C
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cli, folders
from bench.cli import BadArgument
from bench.study.choices import PACKAGED, SCALES, cifar10_files
from bench.study.claims import BY_NAME

if TYPE_CHECKING:
    from bench.study import records
    from bench.study.runner import Plan

PROGRAM = "python -m bench.study"
# Options that decide which runs there are; they are taken from the study that is continued.
_ARGUMENTS = ("only", "data", "scale", "seeds", "device")
# Keys of environment.json that are written when a study begins and kept when it is continued.
_KEPT = ("run", "started", "command", "arguments", "layers", "study", "processes", "wall_seconds")
_NOTES = f"""\
--data: {", ".join(PACKAGED)} ship inside packages; CIFAR-10 is the folder of its binary files (data_batch_*.bin).
--scale: {"; ".join(f"{scale.name}: {scale.about}" for scale in SCALES.values())}.
Experiments that sweep a quantity run with one seed. Runs go on side by side on a CPU, one a core.

"""


@cli.command("bench.study")
def main(typed: Sequence[str]) -> int:
    """Runs the command line and returns its exit status (see --help)."""
    given = vars(_parser().parse_args(typed))
    stored = {} if given["resume"] is None else _continued(given)
    asked = given | stored.get("arguments", {}) | ({"data": given["data"]} if given["data"] else {})
    if given["force"] and not stored:
        raise BadArgument("--force", "only together with --resume, whose refusal it overrides")
    plan = _plan(asked, given["in_process"])

    import torch

    from bench.measure import environment
    from bench.study import page, terminal
    from bench.study.runner import run
    from bench.study.verdict import verdicts
    from normlib import backend_for

    console = cli.console(200, markup=False)
    if given["list"]:
        console.print(terminal.listing(plan.chosen))
        return 0
    described = environment.collect(torch.device(plan.device), {})
    if stored:
        changed = environment.differences(stored, described, ())
        if plan.data.name != stored["study"]["data"]:
            changed.append(f"data was {stored['study']['data']!r}, is {plan.data.name!r}")
        if changed and not given["force"]:
            raise BadArgument(
                "--resume", f"{given['resume']} was run elsewhere: {'; '.join(changed)}; --force continues it"
            )
        folder = Path(given["resume"])
        forced = f" with --force under other conditions: {'; '.join(changed)}" if changed else ""
        notes = [*stored["notes"], f"continued {environment.now()}{forced}"]
        described |= {key: stored[key] for key in _KEPT} | {"notes": notes}
        kept = _kept(folder)
    else:
        folder, kept = folders.new(given["out"], f"study-{plan.device}"), []
        described |= {
            "run": folder.resolve().name,
            "started": environment.now(),
            "command": environment.command(typed, "bench.study"),
            # Not the folder of the images, which is somebody's own: it has to be named again to continue.
            "arguments": {key: asked[key] for key in _ARGUMENTS} | {"data": plan.data.name, "device": plan.device},
            "layers": backend_for(torch.empty(0, device=plan.device)),
            "study": {"experiments": [e.name for e in plan.chosen], "data": plan.data.name, "scale": plan.scale.name}
            | {"network": plan.scale.network, "seeds": plan.seeds},
            "processes": plan.processes,
            "wall_seconds": 0.0,
            "notes": [],
        }
    console.print(
        f"{len(plan.chosen)} experiments, {len(plan.runs)} runs on {described['device_name']}; layers run by "
        f"{described['layers']}"
    )
    with terminal.Display(console, len(plan.runs), len(kept)) as display:
        runs, stopped_by = run(plan, folder, described, kept, display.finished)
    console.print(terminal.verdict_table(verdicts(runs)))
    if runs:
        console.print(f"report: {page.render(folder)}", soft_wrap=True)
    if stopped_by == "interrupt":
        return 130
    return 1 if any(ended.state == "failed" for ended in runs) else 0


def _plan(asked: Mapping[str, Any], in_process: bool) -> Plan:
    names = tuple(BY_NAME) if asked["only"] is None else cli.some_of("--only", asked["only"], BY_NAME)
    seeds = cli.count("--seeds", "3" if asked["seeds"] is None else asked["seeds"])
    scale = SCALES[cli.one_of("--scale", asked["scale"] or "pilot", SCALES)]
    if asked["device"] is not None:
        cli.one_of("--device", asked["device"], cli.DEVICES)
    source = "digits" if asked["data"] is None else asked["data"]
    if source not in PACKAGED:
        cifar10_files(Path(source))

    # Here, because torch takes seconds to import, which a bad argument need not wait for.
    from bench.study import data
    from bench.study.networks import VGG, VGG_IMAGE
    from bench.study.runner import Plan, cores

    images = data.load(source)
    if scale.network in VGG and images.image != VGG_IMAGE:
        raise BadArgument("--scale", f"{scale.name} needs --data with the folder of CIFAR-10's binary files")
    device = _device(asked["device"])
    # One process has a GPU to itself, as one study should.
    processes = 0 if in_process or device == "cuda" else cores()
    return Plan(tuple(BY_NAME[name] for name in names), seeds, images, scale, device, processes)


def _device(asked: str | None) -> str:
    """Returns `cuda` or `cpu`; on a CPU PyTorch's operators run the layers, or with TRITON_INTERPRET=1 the kernels."""
    import torch

    from bench.measure import environment

    gpu = torch.cuda.is_available() and not environment.interpreting()
    if asked == "cuda" and not gpu:
        raise BadArgument("--device", "there is no GPU that PyTorch can use here (or TRITON_INTERPRET is set); cpu is")
    return asked or ("cuda" if gpu else "cpu")


def _continued(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns environment.json of the study to continue."""
    # The folder of images may be given again, and has to be: it is not kept.
    beside = [f"--{key}" for key in (*_ARGUMENTS, "out") if given[key] and key != "data"]
    if beside:
        raise BadArgument(", ".join(beside), "not together with --resume, which takes them from the study")
    stored = folders.stored(given["resume"])
    if "study" not in stored:
        raise BadArgument("--resume", f"{given['resume']!r} holds a run of another kind")
    images = stored["study"]["data"]
    if images not in PACKAGED and not given["data"]:
        raise BadArgument("--resume", f"{given['resume']!r} was run on {images}: name its folder again with --data")
    return stored


def _kept(folder: Path) -> list[records.Run]:
    """Returns the runs that an earlier sitting left, but not those that failed, which are run again."""
    from bench.study import records

    try:
        return list({kept.key: kept for kept in records.read(folder) if kept.state != "failed"}.values())
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        raise BadArgument("--resume", f"{folder} has records that cannot be read: {error}") from error


def _parser() -> cli.Parser:
    about, _, status = (__doc__ or "").partition("\n\n")
    parser = cli.Parser(
        prog=PROGRAM,
        description=about,
        epilog=_NOTES + status,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="NAMES", help="these experiments, separated by commas; --list has all")
    parser.add_argument("--data", metavar="WHAT", help=f"{', '.join(PACKAGED)} or a folder (default digits)")
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
