"""The device that a run measures on. Without a GPU Triton's interpreter is switched on, before triton is imported."""

from __future__ import annotations

import os
import sys

import torch

from bench import cli
from bench.cli import BadArgument
from bench.measure import environment

INTERPRETED = "no GPU is used: Triton's interpreter runs the kernels; errors are real, times support no claim of speed"


def choose(asked: str | None) -> tuple[torch.device, list[str]]:
    """Returns the device (`cuda`, `cpu`, or by default the GPU where there is one) and notes about it for the run.

    Raises BadArgument where it is not there, or where triton was imported before it could be told to interpret.
    """
    if asked is not None:
        cli.one_of("--device", asked, cli.DEVICES)
    gpu, interpreting = torch.cuda.is_available(), environment.interpreting()
    if asked == "cuda" and not gpu:
        raise BadArgument("--device", "there is no GPU that PyTorch can use here; cpu runs the interpreter")
    if asked == "cuda" and interpreting:
        raise BadArgument("--device", "TRITON_INTERPRET is set, which never runs on the GPU: unset it, or take cpu")
    if gpu and not interpreting and asked != "cpu":
        return torch.device("cuda", _own()), []
    if not interpreting and "triton" in sys.modules:
        raise BadArgument("--device", "cpu needs TRITON_INTERPRET=1 in the environment before triton is imported")
    os.environ["TRITON_INTERPRET"] = "1"
    kept = ["TRITON_INTERPRET was set, so the GPU is left alone"] if gpu and asked is None else []
    return torch.device("cpu"), [*kept, INTERPRETED]


def gpu() -> torch.device:
    """Returns the current GPU, for what is measured only on one; raises BadArgument where none can be used."""
    if not torch.cuda.is_available():
        raise BadArgument("device", "a GPU is needed, and there is none: nothing is measured without one")
    if environment.interpreting():
        raise BadArgument("device", "a GPU is needed, and TRITON_INTERPRET is set, which never runs on one: unset it")
    return torch.device("cuda", torch.cuda.current_device())


def _own() -> int:
    """Returns the current GPU; in a process that torchrun has started its rank's, which becomes the current one."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is not None:
        count = torch.cuda.device_count()
        if int(rank) >= count:
            raise BadArgument("torchrun", f"rank {rank} of this machine has no GPU: it has {count}")
        torch.cuda.set_device(int(rank))
    return torch.cuda.current_device()
