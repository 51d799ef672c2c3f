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
from bench.cases.operators import Inputs
from bench.cases.operators.batch_norm import MOMENTUM
from bench.measure.providers import Outputs, Provider, Runnable, Unsupported
from bench.measure.providers._cudnn_rows import rows

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
        """The way to cuDNN: PyTorch's binding or the front end."""
        return "cudnn-aten" if case.op == "batch_norm" else "cudnn-frontend"

    def build(self, case: Case, inputs: Inputs) -> Runnable:
        missing = self.unavailable(inputs["x"].device)
        if missing:
            raise Unsupported(missing)
        builders = {"batch_norm": batch_norm, "layer_norm": rows, "rms_norm": rows}
        if case.op not in builders:
            raise Unsupported(f"nobody has said how cuDNN's {case.op} is called")
        return builders[case.op](case, inputs)


def _library_version() -> int | None:
    version: int | None = torch.backends.cudnn.version()
    return version


def batch_norm(case: Case, inputs: Inputs) -> Runnable:
    """A cell through aten::cudnn_batch_norm; Unsupported where that, or cuDNN under it, refuses the case."""
    if prod(case.shape) > _MOST_ELEMENTS:
        raise Unsupported(f"cuDNN's batch norm takes {_MOST_ELEMENTS} elements at most")
    if case.layout == "nhwc" and len(case.shape) == 3:
        raise Unsupported("PyTorch's cuDNN binding has no channels-last for (N, C, L)")
    x, dy, weight, bias = (inputs[name] for name in ("x", "dy", "weight", "bias"))
    aten = torch.ops.aten

    def forward(running_mean: Tensor, running_var: Tensor) -> list[Tensor]:
        training = case.mode != "eval"
        return list(aten.cudnn_batch_norm(x, weight, bias, running_mean, running_var, training, MOMENTUM, case.eps))

    def backward(mean: Tensor, rstd: Tensor, reserve: Tensor) -> Outputs:
        # The running statistics (None here) are in the signature for double backward alone.
        gradients = aten.cudnn_batch_norm_backward(x, dy, weight, None, None, mean, rstd, case.eps, reserve)
        return dict(zip(("dx", "dw", "db"), gradients, strict=True))

    def buffers() -> tuple[Tensor, Tensor]:
        return inputs["running_mean"].clone(), inputs["running_var"].clone()

    def one_pass(mean: Tensor, var: Tensor) -> Outputs:
        y, *saved = forward(mean, var)
        if case.mode == "eval":
            return {"y_eval": y}
        found = {"y": y, "running_mean": mean, "running_var": var, "mean": saved[0], "rstd": saved[1]}
        return found if case.mode == "fwd" else found | backward(*saved)

    mine = buffers()
    run: Callable[[], Outputs] = lambda: one_pass(*mine)
    _refusing(run)
    if case.mode == "bwd":
        _, *saved = forward(*mine)
        run = lambda: backward(*saved)
    return Runnable(run, lambda: one_pass(*buffers()))


def _refusing(call: Callable[[], object]) -> None:
    """Runs it; what PyTorch's checks for cuDNN or cuDNN itself do not support becomes Unsupported."""
    try:
        call()
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        text = str(error)
        checked = "while checking arguments for cudnn_batch_norm" in text
        if checked or any(status in text for status in _REFUSALS):
            raise Unsupported(f"refused: {text.splitlines()[0]}") from error
        raise


PROVIDER = Cudnn()
