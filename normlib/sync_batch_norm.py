"""Batch normalization over the batches of all processes of a group (Ioffe and Szegedy 2015, algorithm 1, over ranks).

One message of each process is gathered in the forward pass, its moments, and one in the backward pass, its sums; every
process merges them itself, in rank order. So all processes have the same bits, in every run. The collective runs inside
the operators, which torch.compile therefore takes whole.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from normlib import sync_batch_norm_formulas as formulas
from normlib.backend import backend_for, suits
from normlib.batch_norm import batch_norm
from normlib.batch_norm_operators import fake_backward, fake_train
from normlib.channels import contiguous, step
from normlib.kernels.batch_norm import sync as kernels
from normlib.registration import differentiate, register

Triple = tuple[Tensor, Tensor, Tensor]
Quadruple = tuple[Tensor, Tensor, Tensor, Tensor]


def _steps(x: Tensor) -> ModuleType:
    return formulas if backend_for(x) == "torch" else kernels


def _gather(message: Tensor, group: str) -> Tensor:
    """(ranks, *message.shape): every process's message, in rank order."""
    from torch.distributed import distributed_c10d as c10d  # not in every build

    processes: dist.ProcessGroup = c10d._resolve_process_group(group)  # type: ignore[attr-defined, arg-type]
    every = message.new_empty(processes.size() * message.numel())
    # PyTorch 2.13 renamed it, and warns of the old name.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(every, message.view(-1), group=processes)
    return every.view(-1, *message.shape)


# ------------------------------------------------------------------------------------------------ the operators


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


def _fake_sync_backward(
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
    return fake_backward(dy, x, mean, rstd, weight, bias, 0.0, False, output_mask)


_sync_train = register(
    "sync_batch_norm_train(Tensor x, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, Tensor(b!)? running_var,"
    " float momentum, float eps, str group) -> (Tensor y, Tensor mean, Tensor rstd, Tensor count)",
    _train,
    _fake_sync_train,
)
_sync_backward = register(
    "sync_batch_norm_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor count, Tensor? weight,"
    " Tensor? bias, bool[3] output_mask, str group) -> (Tensor dx, Tensor dw, Tensor db)",
    _backward,
    _fake_sync_backward,
)


def _save_train(ctx: Any, inputs: tuple[Any, ...], output: Quadruple) -> None:
    x, weight, bias, *_, ctx.group = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _derive_train(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, mean, rstd, count = ctx.saved_tensors
    needs = ctx.needs_input_grad
    mask = [needs[0], weight is not None and needs[1], bias is not None and needs[2]]
    found = _sync_backward(dy, x, mean, rstd, count, weight, bias, mask, ctx.group)
    return *(t if m else None for t, m in zip(found, mask, strict=True)), *[None] * 5


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
    pass


def _refuse(ctx: Any, *upstream: Tensor) -> None:
    raise NotImplementedError("synchronized batch norm has no second derivative, in PyTorch as here")


differentiate(_sync_train, _derive_train, _save_train)
differentiate(_sync_backward, _refuse, _save_nothing)

# -------------------------------------------------------------------------------------------------- for models


def _fits(x: Tensor, channel_vectors: tuple[Tensor | None, ...], momentum: float, eps: float) -> bool:
    """Whether these arguments can be served: batch norm's conditions, but for a share of any size."""
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
    Every process must call it, and, where one needs input's gradient, every process's backward must run. Running
    buffers move towards the statistics of all elements, of which there should be two a channel. Returns input's shape
    and dtype. Gradients of weight and bias are those of this process's share, for DistributedDataParallel to add.
    What kernels do not serve is PyTorch's to compute, on a GPU, or to refuse.
    """
    vectors = (weight, bias, running_mean, running_var)
    if _fits(input, vectors, momentum, eps):
        return cast(Tensor, _sync_train(input, *vectors, momentum, eps, process_group.group_name)[0])
    if input.is_cuda and eps > 0.0:
        from torch.nn.modules._functions import SyncBatchNorm as Pytorchs

        return cast(Tensor, Pytorchs.apply(input, *vectors, eps, momentum, process_group, process_group.size()))
    # PyTorch has none for CPUs, but batch norm has words for the same mistakes.
    two = input.new_zeros((2, *input.shape[1:]))
    w, b, mean, var = (None if v is None else v.detach().clone() for v in vectors)
    batch_norm(two, mean, var, w, b, True, 0.0, eps)
    raise NotImplementedError(f"synchronized batch norm of {input.dtype} on {input.device} in this context")


class SyncBatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    """`torch.nn.SyncBatchNorm` on the Triton kernels: same arguments, parameters, buffers, state_dict and errors.

    In training, statistics are those of all inputs (N, C, *) of a process group (default: all processes); in eval, and
    where there is but one process, it is batch norm. Here it also runs on CPU tensors, for instance under gloo. It is
    no subclass of torch.nn.SyncBatchNorm because DistributedDataParallel refuses that class on a CPU.
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
        **later: Any,  # PyTorch 2.13 has `bias`
    ) -> None:
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

    @classmethod
    def convert_sync_batchnorm(
        cls, module: torch.nn.Module, process_group: dist.ProcessGroup | None = None
    ) -> torch.nn.Module:
        """`normlib.convert_sync_batchnorm`, where PyTorch has it."""
        from normlib.convert import convert_sync_batchnorm

        return convert_sync_batchnorm(module, process_group)
