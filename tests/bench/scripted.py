"""Providers that misbehave as told, and sweeps with them for the runner."""

import torch

from bench.cases import sweep
from bench.cases.operators import operators
from bench.measure import environment, runner
from bench.measure.providers import Provider, Runnable, providers

CPU = torch.device("cpu")
TORCH = providers()["torch"]


class Silent:
    """Remembers what it was told."""

    def __init__(self):
        self.told = []

    def start(self, cells, done):
        self.told.append(("start", cells, done))

    def running(self, case, provider):
        self.told.append(("running", case.label, provider))

    def finished(self, record):
        self.told.append(("finished", record.status))

    def stop(self):
        self.told.append(("stop",))


class Scripted(Provider):
    """PyTorch under another name, with something done to each cell that it builds."""

    def __init__(self, name="scripted", spoil=lambda built, case, inputs: built, reason=None, one_shape=True):
        self.name, self.spoil, self.reason, self.one_shape = name, spoil, reason, one_shape
        self.built = []

    def version(self):
        return "1"

    def backend(self, case, inputs):
        return "torch"

    def unavailable(self, device):
        return self.reason

    def build(self, case, inputs):
        self.built.append(case.label)
        return self.spoil(TORCH.build(case, inputs), case, inputs)


def raising(error):
    def spoil(built, case, inputs):
        raise error

    return spoil


def changing(change):
    """Outputs that `change` has been applied to."""
    return lambda built, case, inputs: Runnable(built.run, lambda: change(built.outputs()))


def cases(op="ln", **given):
    small = {"ln": {"tokens": "4", "hidden": "8"}, "bn": {"batch": "2", "channels": "3", "spatial": "2x2"}}
    asked = {"op": op, "dtype": "fp32", **small[op], **given}
    return tuple(sweep.cases(sweep.parse(asked, operators(), "smoke"), operators()))


def plan(*chosen, found=None, **changes):
    known = {
        "cases": cases() if found is None else found,
        "providers": {provider.name: provider for provider in chosen},
        "operators": operators(),
        "baseline": "torch",
        "yardstick": TORCH,
        "device": CPU,
        "seed": 0,
    }
    return runner.RunPlan(**{**known, **changes})


def run(folder, planned, display=None):
    outcome = runner.run(planned, folder, {"schema": 1}, runner.kept_records(folder), display or Silent())
    return outcome, environment.read(folder)


def statuses(outcome, provider="scripted"):
    return {record.status for record in outcome.records if record.provider == provider}
