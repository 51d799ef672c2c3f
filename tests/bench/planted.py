"""Providers that misbehave, each in one way: PyTorch under another name, until something happens.

Their classes are importable, so that they reach a worker's process. What they do, they do in every cell of `mode`.
"""

import os
import signal
import time
from dataclasses import replace

import torch

from bench.measure import timing
from bench.measure.providers import Provider, Runnable, providers
from normlib.kernels.plan import UNTUNED

TORCH = providers()["torch"]
TIMED_BY = timing.measure_together


class Planted(Provider):
    """`when` is the part of a cell that is spoiled: build, run (timed too) or outputs."""

    def __init__(self, mode="fwd"):
        self.name = type(self).__name__.lower()
        self.mode = mode

    def version(self):
        return "1"

    def build(self, case, inputs):
        built = TORCH.build(case, inputs)
        return self.spoil(built, inputs) if case.mode == self.mode else built

    def spoil(self, built, inputs):
        raise NotImplementedError


class Raises(Planted):
    def spoil(self, built, inputs):
        raise RuntimeError("it broke")


class Dies(Planted):
    def spoil(self, built, inputs):
        os.kill(os.getpid(), signal.SIGSEGV)


class Exits(Planted):
    def spoil(self, built, inputs):
        os._exit(7)


class DiesWhileTimed(Planted):
    """Its third call is beyond those that check it."""

    def spoil(self, built, inputs):
        calls = []

        def run():
            calls.append(None)
            if len(calls) > 3:
                os.kill(os.getpid(), signal.SIGSEGV)
            return built.run()

        return Runnable(run, built.outputs)


class Hangs(Planted):
    def spoil(self, built, inputs):
        time.sleep(3600)


class Allocates(Planted):
    def spoil(self, built, inputs):
        return torch.empty(1 << 60)


class SpoilsItsProcess(Planted):
    """As a CUDA graph does whose capture the driver refuses to end. Remarks say of whom no graph was to be tried."""

    def spoil(self, built, inputs):
        measure = TIMED_BY

        def measured(runs, device, *, graphless=(), **others):
            found = measure(runs, device, **others)
            spoiled = found[self.name]
            remarks = tuple(f"no graph of {name}" for name in graphless)
            found[self.name] = replace(spoiled, poisoned=self.name not in graphless, remarks=remarks)
            return found

        timing.measure_together = measured
        return built


class Killed(Planted):
    """As by a system that has run out of memory."""

    def spoil(self, built, inputs):
        os.kill(os.getpid(), signal.SIGKILL)


class GivesNan(Planted):
    def spoil(self, built, inputs):
        return Runnable(built.run, lambda: {name: t * torch.nan for name, t in built.outputs().items()})


class Tunable(Planted):
    """A provider that plans can make faster: 512 threads are fast, 128 hang, 256 die, 1024 are fast and wrong."""

    def __init__(self, tuning=UNTUNED):
        super().__init__()
        self.threads = next((values.get("threads") for values in tuning.values.values()), None)

    def spoil(self, built, inputs):
        if self.threads == 128:
            time.sleep(3600)
        if self.threads == 256:
            os.kill(os.getpid(), signal.SIGSEGV)

        def run():
            time.sleep(0.001 if self.threads in (512, 1024) else 0.005)
            return built.run()

        wrong = self.threads == 1024
        return Runnable(run, lambda: {name: t + 1 if wrong else t for name, t in built.outputs().items()})
