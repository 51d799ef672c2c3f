"""The benchmark from Python, the same as `python -m bench.run`: what is measured comes back as a DataFrame.

from bench.api import cases, measure

frame = measure(cases(op="rms", tokens=[1, 4096], hidden=4096, dtype="bf16"), ["torch", "normlib", MyKernel()])
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from bench import cli, folders
from bench.cases.case import Case
from bench.cases.operators import Inputs
from bench.cli import BadArgument
from bench.measure import devices
from bench.measure.providers import Provider, Runnable
from bench.measure.providers._autograd import bound, runnable
from bench.results.thresholds import SUBJECT

if TYPE_CHECKING:
    import pandas as pd


class FunctionProvider(Provider):
    """A provider made of functions of tensors that autograd can differentiate.

    `functions` has them by operator, `rms_norm=f`, with the signature of torch.nn.functional or normlib.functional.
    `backend` names the code that runs, by default `name`; "torch" where it is one of PyTorch's own norms.
    """

    def __init__(self, name: str, version: str = "", backend: str = "", **functions: Callable[..., object]) -> None:
        self.name, self._version, self._backend = name, version, backend or name
        self._library = SimpleNamespace(**functions)

    def version(self) -> str:
        """The version that was given."""
        return self._version

    def backend(self, case: Case, inputs: Inputs) -> str:
        """The code that was said to run."""
        return self._backend

    def build(self, case: Case, inputs: Inputs) -> Runnable:
        """Raises Unsupported where no function serves the case's operator."""
        return runnable(case, inputs, bound(case, self._library))


def cases(device: str | None = None, **given: object) -> list[Case]:
    """Returns the cases that `python -m bench.run` would measure with these options, given as keywords.

    A value is what would be typed (`"1,4096"`), a number, or a sequence of either. Without a preset the axes that are
    not given are those of `quick`, without a GPU of `smoke`. Raises BadArgument, with one line, for a bad keyword.
    """
    where, _ = devices.choose(device)
    from bench.cases import sweep
    from bench.cases.operators import operators

    known = {"op", "preset", "mode", "dtype", "layout", "inputs", "offset", *sweep.axis_names(operators().values())}
    typed = {}
    for name, value in given.items():
        several = isinstance(value, Iterable) and not isinstance(value, str)
        typed[cli.one_of("cases", name, sorted(known))] = ",".join(map(str, value)) if several else str(value)  # type: ignore[call-overload]
    return sweep.cases(sweep.parse(typed, operators(), "smoke" if where.type == "cpu" else "quick"), operators())


def measure(
    cases: Iterable[Case],
    providers: Sequence[str | Provider] = ("torch", "normlib"),
    *,
    baseline: str = "torch",
    subject: str = SUBJECT,
    device: str | None = None,
    seed: int = 0,
    time_budget: float | None = None,
    out: str | Path | None = None,
    isolated: bool = False,
    energies: bool = False,
) -> pd.DataFrame:
    """Measures the cases with each provider. Returns one row a cell, with the columns of records.csv.

    A provider is the name of one in bench/measure/providers/, or a Provider of your own. Times are in microseconds,
    `time_budget` in seconds. The records and their report, whose verdict is about `subject`, are kept in the folder
    `out`, which must not hold a run; without it only the frame is left. `isolated` measures in another process, which a
    provider defined in a notebook cannot reach. `energies` measures millijoules a call too, where the GPU counts them.
    Ctrl-C ends the run and returns what was measured. Raises BadArgument, with one line, for an argument that cannot be
    used.
    """
    where, _ = devices.choose(device)
    from rich.console import Console

    from bench.cases.operators import operators
    from bench.measure import environment, runner
    from bench.measure.progress import display
    from bench.measure.providers import providers as installed
    from bench.results.records import to_frame

    known = {**installed(), **{provider.name: provider for provider in providers if not isinstance(provider, str)}}
    names = [provider if isinstance(provider, str) else provider.name for provider in providers]
    for name in names:
        cli.one_of("providers", name, known)
    for argument, name, default in (("baseline", baseline, "torch"), ("subject", subject, SUBJECT)):
        if name != default:
            cli.one_of(argument, name, names)
    chosen = cli.unique(cases)
    if not chosen or not names:
        raise BadArgument("providers" if chosen else "cases", "empty, so there is nothing to measure")
    if time_budget is not None and not time_budget > 0:
        raise BadArgument("time_budget", f"{time_budget!r} is not a number of seconds above zero")
    baseline = baseline if baseline in names else ""
    plan = runner.RunPlan(
        cases=chosen,
        providers={name: known[name] for name in sorted(names, key=lambda name: name != baseline)},
        operators=operators(),
        baseline=baseline,
        yardstick=known["torch"],
        device=where,
        seed=seed,
        deadline=time.monotonic() + (float("inf") if time_budget is None else time_budget),
        isolated=isolated,
        energies=energies,
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if out is None else folders.new(str(out), "")
        described = environment.collect(where, plan.providers) | {
            "run": folder.resolve().name,
            "started": environment.now(),
            "command": "bench.api.measure(...)",
            "seed": seed,
            "baseline": baseline,
            "subject": subject,
            "copy_gbps": None,
            "notes": [],
        }
        outcome = runner.run(plan, folder, described, [], display(Console(stderr=True)))
        if out is not None:
            from bench.report import render

            render(folder)
        return to_frame(outcome.records)
