"""The instrument from Python: `from bench import run, sweep`; what is measured comes back as a DataFrame.

    cases = sweep(op="rms", tokens=[1, 4096], hidden=4096, dtype="bf16", mode="fwd")
    frame = run(cases, providers=["torch", "normlib", MyKernel()])

`bench.cases.sweep` and `bench.run` are modules too; see bench/callable.py.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import cli
from bench.cases import sweep as sweeping
from bench.cases.case import Case
from bench.cli import BadArgument
from bench.measure import devices

if TYPE_CHECKING:
    import pandas as pd

    from bench.measure.providers import Provider


def sweep(device: str | None = None, **given: object) -> list[Case]:
    """The cases that `python -m bench.run` would measure with these options, given as keywords.

    A value is what would be typed (`"1,4096"`), a number, or a sequence of either. Without a preset the axes that are
    not given are those of `quick`, without a GPU of `smoke`. Raises BadArgument, in one line, for what cannot be used.
    """
    where, _ = devices.choose(device)
    from bench.cases.operators import operators

    known = {"op", "preset", "mode", "dtype", "layout", "inputs", "offset", *sweeping.axis_names(operators().values())}
    for name in given:
        cli.one_of("sweep", name, sorted(known))
    typed = {name: _typed(value) for name, value in given.items()}
    asked = sweeping.parse(typed, operators(), "smoke" if where.type == "cpu" else "quick")
    return sweeping.cases(asked, operators())


def run(
    cases: Iterable[Case],
    providers: Sequence[str | Provider] = ("torch", "normlib"),
    *,
    baseline: str = "torch",
    device: str | None = None,
    seed: int = 0,
    time_budget: float | None = None,
    out: str | Path | None = None,
    isolated: bool = False,
) -> pd.DataFrame:
    """Measures the cases with each provider: one row a cell, columns as in records.csv (see bench/results/records.py).

    A provider is the name of one in bench/providers/, or a Provider of your own. Times are microseconds, `time_budget`
    seconds. The records are kept in the folder `out`, which must not hold a run; without it the frame is all there is.
    `isolated` measures in a process of its own, which a provider defined in a notebook cannot reach. Ctrl-C ends the
    run and gives what there is. Raises BadArgument for what cannot be used.
    """
    where, _ = devices.choose(device)
    from rich.console import Console

    from bench.cases.operators import operators
    from bench.measure import environment, runner
    from bench.measure.progress import display
    from bench.measure.providers import providers as installed
    from bench.results.records import to_frame

    known = dict(installed())
    for provider in providers:
        if not isinstance(provider, str):
            known[provider.name] = provider
    names = [provider if isinstance(provider, str) else provider.name for provider in providers]
    for name in names:
        cli.one_of("providers", name, known)
    if baseline not in names:
        baseline = ""
    plan = runner.RunPlan(
        cases=tuple(cli.unique(cases)),
        providers={name: known[name] for name in sorted(names, key=lambda name: name != baseline)},
        operators=operators(),
        baseline=baseline,
        yardstick=known["torch"],
        device=where,
        seed=seed,
        deadline=time.monotonic() + (float("inf") if time_budget is None else time_budget),
        isolated=isolated,
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch if out is None else out)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / environment.FILE).exists():
            raise BadArgument("out", f"{str(folder)!r} already holds a run; name another folder")
        described = environment.collect(where, plan.providers) | {
            "run": folder.resolve().name,
            "started": environment.now(),
            "command": "bench.run(...)",
            "seed": seed,
            "baseline": baseline,
            "copy_gbps": None,
            "notes": [],
        }
        return to_frame(runner.run(plan, folder, described, [], display(Console(stderr=True))).records)


def _typed(value: object) -> str:
    several = isinstance(value, Iterable) and not isinstance(value, str)
    return ",".join(map(str, value)) if several else str(value)  # type: ignore[call-overload]
