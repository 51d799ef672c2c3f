"""Batch normalization over the batches of all processes of a group (Ioffe and Szegedy 2015, algorithm 1, over ranks).

Each pass gathers one message from each process: its moments in the forward pass, its sums in the backward pass. Every
process merges all messages itself, in rank order, so that all of them have the same bits in every run. The collective
runs inside the operators, so that torch.compile does not break the graph.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from normlib import sync_batch_norm_formulas as formulas
from normlib.batch_norm import BUFFERS, batch_norm, fake_train, step
from normlib.dispatch import (
    CustomOperator,
    LazyModule,
    Quadruple,
    Triple,
    backend_for,
    backward_operator,
    contiguous,
    derive_again,
    derive_by,
    suits,
)
from normlib.swap import Swap, check_module, swap

kernels = LazyModule("normlib.kernels.batch_norm.sync")


def _steps(x: Tensor) -> ModuleType:
    return formulas if backend_for(x) == "torch" else kernels


def _gather(message: Tensor, group: str) -> Tensor:
    """Returns the messages of all processes (ranks, *message.shape), in rank order."""
    from torch.distributed import distributed_c10d as c10d  # not in every build

    processes: dist.ProcessGroup = c10d._resolve_process_group(group)  # type: ignore[attr-defined, arg-type]
    every = message.new_empty(processes.size() * message.numel())
    # PyTorch 2.13 renamed it, and warns of the old name.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(every, message.view(-1), group=processes)
    return every.view(-1, *message.shape)


def _train(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    group: str,
) -> Quadruple:
    steps = _steps(x)
    messages = _gather(steps.moments(x), group)
    mean, rstd, count = steps.merge_messages(messages, running_mean, running_var, momentum, eps)
    return steps.normalize(x, mean, rstd, contiguous(weight), contiguous(bias)), mean, rstd, count


def _fake_sync_train(x: Tensor, *_: Any) -> Quadruple:
    y, mean, rstd = fake_train(x)
    return y, mean, rstd, rstd.new_empty((1,))


def _backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    count: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: list[bool],
    group: str,
) -> Triple:
    steps = _steps(x)
    mine = steps.sums(dy, x, mean, rstd)
    dx = x.new_empty(0)
    if output_mask[0]:
        total = steps.add_sums(_gather(mine, group))
        dx = steps.input_gradient(dy, x, mean, rstd, contiguous(weight), total, count)
    dw, db = (
        gradient.to(p.dtype, copy=True) if wanted and p is not None else x.new_empty(0)
        for gradient, p, wanted in zip(mine, (weight, bias), output_mask[1:], strict=True)
    )
    return dx, dw, db


def _refuse() -> None:
    raise NotImplementedError("synchronized batch norm has no second derivative, in PyTorch as here")


_sync_train = CustomOperator("sync_batch_norm_train", _train, _fake_sync_train, mutates=BUFFERS)
_sync_backward = backward_operator("sync_batch_norm_backward", _backward)
derive_by(_sync_train, _sync_backward, results=("y", "mean", "rstd", "count"))
derive_again(_sync_backward, _refuse)


def _fits(x: Tensor, channel_vectors: tuple[Tensor | None, ...], momentum: float, eps: float) -> bool:
    """Returns True if the operators take these arguments: as for batch norm, but with any number of elements."""
    running_mean, running_var = channel_vectors[2:]
    return (
        (x.is_cuda or x.is_cpu)
        and suits(x, *channel_vectors)
        and isinstance(momentum, (float, int))
        and isinstance(eps, (float, int))
        and eps > 0.0
        and all(v is None or v.shape == x.shape[1:2] for v in channel_vectors)
        and (running_mean is None) == (running_var is None)
        and all(v is None or v.is_contiguous() for v in (running_mean, running_var))
    )


def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    process_group: dist.ProcessGroup,
) -> Tensor:
    """Normalizes each channel over the inputs of all processes of the group, in training.

    input: (N, C, *), in the dtypes and layouts of `functional.batch_norm`; N may differ between processes and be 0.
    Every process must call it, and, if one needs the gradient of input, every process must run backward. Running
    buffers move towards the statistics of all elements, of which there should be two a channel. Returns input's shape
    and dtype. Gradients of weight and bias are those of this process's inputs, for DistributedDataParallel to add.
    Where the kernels do not serve, PyTorch computes it on a GPU and refuses it elsewhere.
    """
    vectors = (weight, bias, running_mean, running_var)
    if _fits(input, vectors, momentum, eps):
        return cast(Tensor, _sync_train(input, *vectors, momentum, eps, process_group.group_name)[0])
    if input.is_cuda and eps > 0.0:
        from torch.nn.modules._functions import SyncBatchNorm as Pytorchs

        return cast(Tensor, Pytorchs.apply(input, *vectors, eps, momentum, process_group, process_group.size()))
    # PyTorch has no such operator for CPUs; its batch norm raises the right error for the same mistakes.
    two = input.new_zeros((2, *input.shape[1:]))
    w, b, mean, var = (None if v is None else v.detach().clone() for v in vectors)
    batch_norm(two, mean, var, w, b, True, 0.0, eps)
    raise NotImplementedError(f"synchronized batch norm of {input.dtype} on {input.device} in this context")


class SyncBatchNorm(_BatchNorm):
    """`torch.nn.SyncBatchNorm` on the Triton kernels: same arguments, parameters, buffers, state_dict and errors.

    In training, statistics are those of all inputs (N, C, *) of a process group (default: all processes); in evaluation
    and with a single process it is batch norm. It also runs on CPU tensors, for instance under gloo. It does not derive
    from torch.nn.SyncBatchNorm because DistributedDataParallel refuses that class on a CPU.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        later = {} if bias else {"bias": False}  # PyTorch 2.13 has it
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **later)
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input: Tensor) -> Tensor:
        """input: (N, C, *) with this process's N; returns the same shape, dtype and layout."""
        self._check_input_dim(input)
        if input.shape[1] == 0:
            raise ValueError("SyncBatchNorm number of input channels should be non-zero")
        buffers, training, momentum = step(self)
        if self.training and dist.is_available() and dist.is_initialized():
            group = cast("dist.ProcessGroup", self.process_group or dist.group.WORLD)
            if dist.get_world_size(group) > 1:
                return sync_batch_norm(input, *buffers, self.weight, self.bias, momentum, self.eps, group)
        return batch_norm(input, *buffers, self.weight, self.bias, training, momentum, self.eps)

    if TYPE_CHECKING:

        def __call__(self, input: Tensor) -> Tensor: ...

    @classmethod
    def convert_sync_batchnorm(
        cls, module: torch.nn.Module, process_group: dist.ProcessGroup | None = None
    ) -> torch.nn.Module:
        """`normlib.convert_sync_batchnorm`, where PyTorch has it."""
        return convert_sync_batchnorm(module, process_group)


def convert_sync_batchnorm(module: torch.nn.Module, process_group: Any | None = None) -> torch.nn.Module:
    """Makes each batch norm of a model, PyTorch's or normlib's, a `normlib.SyncBatchNorm`, in place; returns the model.

    As `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, except that modules keep their identity, with hooks, ties and
    optimizer, and that `revert` undoes it. Statistics are shared in `process_group` (default: all
    processes). Raises TypeError for a model that is no module, and ValueError, before anything is changed, for a batch
    norm that is lazy and not initialised, or that computes something beside batch norm.
    """
    check_module(module)
    found = [m for m in module.modules() if isinstance(m, _BatchNorm) and not isinstance(m, SyncBatchNorm)]
    for norm in found:
        name = type(getattr(norm, "layer", norm)).__name__
        if isinstance(norm, LazyModuleMixin):
            raise ValueError(f"a {name} has to see its first batch before it can be converted")
        more = getattr(norm, "beyond", None)
        if more is not None:
            raise ValueError(f"a {name} has no synchronized form, which would be without its {more}")
    for norm in found:
        swap(norm, Swap(SyncBatchNorm, {"process_group": process_group}))
    return module
