"""cuDNN by itself: batch norm through PyTorch's binding, layer and RMS norm through cuDNN's own front end.

torch.nn.functional picks cuDNN for batch norm only where it likes to and falls back silently; here the operator that
is cuDNN and nothing else is called, so a cell is cuDNN's time, or unsupported, or an error. Calls go past autograd,
whose overhead is none of cuDNN's: the figure is the best that it can show.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from math import prod

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.cases.operators import Inputs, operators
from bench.measure.providers import Outputs, Provider, Runnable, Unsupported
from bench.measure.providers._cudnn_rows import rows
from bench.measure.providers._without_autograd import runnable

_FRONT_END = "nvidia-cudnn-frontend"
# PyTorch's own limit for handing a tensor to these kernels, some of which index with 32 bits.
_MOST_ELEMENTS = 2**31 - 1
# Any other status that cuDNN returns is a failure, not a refusal.
_REFUSALS = ("CUDNN_STATUS_NOT_SUPPORTED", "CUDNN_STATUS_BAD_PARAM")


class Cudnn(Provider):
    """NVIDIA's library. The graphs of the front end are built once a shape."""

    name = "cudnn"

    def version(self) -> str:
        """cuDNN's version as PyTorch loaded it, and the front end's."""
        try:
            front_end = metadata.version(_FRONT_END)
        except metadata.PackageNotFoundError:
            front_end = "not installed"
        return f"{_library_version() or 'none'} ({_FRONT_END} {front_end})"

    def unavailable(self, device: torch.device) -> str | None:
        """It needs an NVIDIA GPU, and a PyTorch that was built with it."""
        if device.type != "cuda":
            return "cuDNN needs an NVIDIA GPU"
        if torch.version.hip is not None:
            return "a ROCm build of PyTorch has MIOpen in cuDNN's place"
        if _library_version() is None:
            return "this PyTorch was built without cuDNN"
        return None

    def backend(self, case: Case, inputs: Inputs) -> str:
        """The binding through which cuDNN is called: PyTorch's or its own front end."""
        return "cudnn-aten" if _BUILDERS.get(case.op) is batch_norm else "cudnn-frontend"

    def build(self, case: Case, inputs: Inputs) -> Runnable:
        missing = self.unavailable(inputs["x"].device)
        if missing:
            raise Unsupported(missing)
        if case.op not in _BUILDERS:
            raise Unsupported(f"no call of cuDNN is written for {case.op}")
        return _BUILDERS[case.op](case, inputs)


def _library_version() -> int | None:
    version: int | None = torch.backends.cudnn.version()
    return version


def batch_norm(case: Case, inputs: Inputs) -> Runnable:
    """A cell through aten::cudnn_batch_norm; Unsupported where that, or cuDNN under it, refuses the case."""
    if prod(case.shape) > _MOST_ELEMENTS:
        raise Unsupported(f"cuDNN's batch norm takes {_MOST_ELEMENTS} elements at most")
    if case.layout == "nhwc" and len(case.shape) == 3:
        raise Unsupported("PyTorch's cuDNN binding has no channels-last for (N, C, L)")
    momentum, aten = operators()[case.op].momentum, torch.ops.aten

    def forward(t: Inputs) -> tuple[Outputs, list[Tensor]]:
        running = {name: t[name] for name in ("running_mean", "running_var")}
        scalars = case.mode != "eval", momentum, case.eps
        y, *saved = aten.cudnn_batch_norm(t["x"], t["weight"], t["bias"], *running.values(), *scalars)
        if case.mode == "eval":
            return {"y_eval": y}, saved
        return {"y": y, **running, "mean": saved[0], "rstd": saved[1]}, saved

    def backward(t: Inputs, saved: list[Tensor]) -> Outputs:
        mean, rstd, reserve = saved
        # The running statistics (None here) are in the signature only for double backward.
        given = t["x"], t["dy"], t["weight"], None, None, mean, rstd, case.eps, reserve
        return dict(zip(("dx", "dw", "db"), aten.cudnn_batch_norm_backward(*given), strict=True))

    return _refusing(lambda: runnable(case, inputs, forward, backward))


_BUILDERS = {"batch_norm": batch_norm, "layer_norm": rows, "rms_norm": rows}


def _refusing(build: Callable[[], Runnable]) -> Runnable:
    """Builds a cell; what PyTorch's checks for cuDNN or cuDNN itself do not support becomes Unsupported."""
    try:
        return build()
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        text = str(error)
        checked = "while checking arguments for cudnn_batch_norm" in text
        if checked or any(status in text for status in _REFUSALS):
            raise Unsupported(f"refused: {text.splitlines()[0]}") from error
        raise


PROVIDERS = (Cudnn(),)
