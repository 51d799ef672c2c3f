"""Small sweeps over ranks, and records as ranks leave them."""

import torch

from bench.cases import sweep
from bench.cases.operators import operators
from bench.measure.providers import providers
from bench.measure.runner import RunPlan
from bench.results.records import Record

CPU = torch.device("cpu")
TORCH = providers()["torch"]


def cases(tokens=(4, 8), hidden=(8, 16), modes=("fwd", "bwd")):
    axes = {"tokens": tokens, "hidden": hidden}
    return sweep.cases(sweep.Sweep(("rms_norm",), "smoke", axes, modes, ("fp32",)), operators())


def plan(**more):
    return RunPlan(tuple(cases()), {"torch": TORCH}, operators(), "torch", TORCH, CPU, 0, **more)


def record(case, provider="torch", **more):
    return Record(
        case.op, list(case.shape), dict(case.axes), case.dtype, case.layout, case.mode, case.eps,
        provider=provider, backend="torch", device="cpu", status=more.pop("status", "ok"), **more,
    )  # fmt: skip
