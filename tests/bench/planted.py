"""Providers that misbehave, each in one way: PyTorch under another name, until something happens.

They reach a worker's process by pickle, so that what happens is a function of this file, by whose name they go.
"""

import gc
import os
import signal
import time
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection

import torch

from bench.measure import timing
from bench.measure.providers import Provider, Runnable, providers
from normlib.kernels.plan import UNTUNED

TORCH = providers()["torch"]
TIMED_BY = timing.measure_together


class Planted(Provider):
    """`spoil` is given each cell of mode fwd, built, and its inputs; it returns the cell."""

    def __init__(self, spoil, name=""):
        self.spoil, self.name = spoil, name or spoil.__name__

    def version(self):
        return "1"

    def backend(self, case, inputs):
        return "torch"

    def build(self, case, inputs):
        built = TORCH.build(case, inputs)
        return self.spoil(built, inputs) if case.mode == "fwd" else built


def raises(built, inputs):
    raise RuntimeError("it broke")


def dies(built, inputs):
    os.kill(os.getpid(), signal.SIGSEGV)


def exits(built, inputs):
    os._exit(7)


def dies_while_timed(built, inputs):
    """Its third call is beyond those that check it."""
    calls = []

    def run():
        calls.append(None)
        if len(calls) > 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        return built.run()

    return Runnable(run, built.outputs)


def hangs(built, inputs):
    time.sleep(3600)


def allocates(built, inputs):
    return torch.empty(1 << 60)


def killed(built, inputs):
    """As by a system that has run out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def gives_nan(built, inputs):
    return Runnable(built.run, lambda: {name: t * torch.nan for name, t in built.outputs().items()})


def forges_a_message(built, inputs):
    """Tells the parent itself that the cell has ended."""
    for one in gc.get_objects():
        if type(one) is Connection and one.writable:
            one.send((b"", "finished", None))
    return built


def spoils_its_process(built, inputs):
    """As a CUDA graph does whose capture the driver refuses to end; with PatchedTiming as the yardstick."""
    return built


class PatchedTiming(type(TORCH)):
    """PyTorch as the yardstick, which a worker gets before it keeps its references: then timing is another.

    Remarks say of whom no graph was to be tried.
    """

    def __setstate__(self, state):
        def measured(runs, device, *, graphless=(), **others):
            found = TIMED_BY(runs, device, **others)
            name = spoils_its_process.__name__
            if name in found:
                remarks = tuple(f"no graph of {name}" for name in graphless)
                found[name] = replace(found[name], poisoned=name not in graphless, remarks=remarks)
            return found

        timing.measure_together = measured

    def __getstate__(self):
        return {"patched": True}


def tunable(tuning=UNTUNED):
    """A provider that plans can make faster: 512 threads are fast, 128 hang, 256 die, 1024 are fast and wrong."""
    threads = next((values.get("threads") for values in tuning.values.values()), None)
    return Planted(partial(_tuned, threads), "tunable")


def _tuned(threads, built, inputs):
    if threads == 128:
        time.sleep(3600)
    if threads == 256:
        os.kill(os.getpid(), signal.SIGSEGV)

    def run():
        time.sleep(0.001 if threads in (512, 1024) else 0.005)
        return built.run()

    return Runnable(run, lambda: {name: t + (threads == 1024) for name, t in built.outputs().items()})
