"""Batch normalization of sequences over all their steps (Laurent et al. 2015; Deep Speech 2, Amodei et al. 2015)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from normlib.batch_norm import batch_norm, step
from normlib.statistics_norm import StatisticsNorm

Lengths = Tensor | Sequence[int]
Steps = TypeVar("Steps", Tensor, PackedSequence)


def over_steps(norm: Callable[[Tensor], Tensor], input: Steps, lengths: Lengths | None, batch_first: bool) -> Steps:
    """Applies `norm`, of (steps, features), to all steps; see functional.sequence_batch_norm for the arguments.

    The steps are gathered first (a PackedSequence has them so already). Padding, which may hold NaN, is not read, and
    the norm needs no mask.
    """
    if isinstance(input, PackedSequence):
        if lengths is not None:
            raise ValueError("a PackedSequence has lengths of its own: lengths must be None beside it")
        if input.data.dim() != 2:
            raise ValueError(f"expected steps of one dimension of features, got packed data of {input.data.dim()}D")
        return PackedSequence(norm(input.data), input.batch_sizes, input.sorted_indices, input.unsorted_indices)
    if input.dim() != 3:
        order = "(batch, time, features)" if batch_first else "(time, batch, features)"
        raise ValueError(f"expected 3D input {order} (got {input.dim()}D input)")
    if lengths is None:
        # Flatten with the outermost in memory of time and batch first, so that nothing is copied.
        swap = input.stride(0) < input.stride(1)
        x = input.transpose(0, 1) if swap else input
        y = norm(x.flatten(0, 1)).view(x.shape)
        return y.transpose(0, 1) if swap else y
    x = input.flatten(0, 1)
    steps = _steps(lengths, input.shape, batch_first, input.device)
    y = norm(x.index_select(0, steps))
    return y.new_zeros(x.shape).index_copy_(0, steps, y).view(input.shape)


def _steps(lengths: Lengths, shape: torch.Size, batch_first: bool, device: torch.device) -> Tensor:
    """Returns the positions of the steps that are not padding among all (time, batch) or (batch, time).

    Only the lengths go to the device. Of a tensor the host reads only the number of steps: in a graph of torch.compile
    an unbacked size, on which no compilation depends.
    """
    batch, time = shape[:2] if batch_first else (shape[1], shape[0])
    if isinstance(lengths, Tensor) and (lengths.dim() != 1 or lengths.is_floating_point()):
        raise ValueError(
            f"lengths must be whole numbers, one a sequence; got {lengths.dtype} of {tuple(lengths.shape)}"
        )
    if len(lengths) != batch:
        raise ValueError(f"lengths must have one value for each of {batch} sequences, not {len(lengths)}")
    if isinstance(lengths, Tensor):
        each = lengths.to(torch.int64)
        outside, total = torch.stack([((each < 0) | (each > time)).sum(), each.sum()]).tolist()
    else:
        each = torch.tensor(lengths, dtype=torch.int64)
        outside, total = sum(not 0 <= length <= time for length in lengths), sum(lengths)
    if isinstance(lengths, Tensor) and torch.compiler.is_compiling():
        # In a graph these numbers are known only when it runs; these checks state what it may assume.
        torch._check(outside == 0)
        torch._check(total > 1)
    elif outside:
        given = lengths.tolist() if isinstance(lengths, Tensor) else list(lengths)
        raise ValueError(f"lengths must be from 0 to {time}, the steps of the input; got {given}")
    each = each.to(device, non_blocking=True)
    sequence = torch.repeat_interleave(torch.arange(batch, device=device), each, output_size=total)
    step = torch.arange(total, device=device) - (each.cumsum(0) - each)[sequence]
    return sequence * time + step if batch_first else step * batch + sequence


def sequence_batch_norm(
    input: Steps,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    lengths: Lengths | None = None,
    batch_first: bool = False,
) -> Steps:
    """Normalizes each feature over all time steps of all sequences of the batch: sequence-wise normalization.

    input: (T, N, H), or (N, T, H) with batch_first, or a PackedSequence of steps of H features, which comes back
    packed; weight, bias, running_mean, running_var: (H,); dtypes, buffers and errors are those of
    `functional.batch_norm`, whose kernels run on the steps.

    lengths: N whole numbers from 0 to T, the number of steps of each sequence that are not padding; on the host, as for
    `torch.nn.utils.rnn.pack_padded_sequence`, since the host waits for a tensor on the device. Padding counts neither
    in statistics nor in gradients, and is 0 in the result. In `torch.compile(fullgraph=True)` one compilation serves
    all lengths in a tensor; lengths in a tuple are constants of the compilation.

    Lengths that do not fit, lengths beside a PackedSequence, and an input that is not 3D raise ValueError.
    A compiled graph raises RuntimeError for a tensor of lengths that do not fit or have less than two steps together.

    Laurent et al., "Batch normalized recurrent neural networks" (2015), section 3; Amodei et al., "Deep Speech 2"
    (2015), section 3.2.
    """

    def norm(steps: Tensor) -> Tensor:
        return batch_norm(steps, running_mean, running_var, weight, bias, training, momentum, eps)

    return over_steps(norm, input, lengths, batch_first)


class SequenceBatchNorm(StatisticsNorm):
    """Batch norm over all steps of all sequences: arguments, parameters, buffers and state_dict of `nn.BatchNorm1d`.

    batch_first: input is (N, T, H), as for recurrent layers with batch_first, and not (T, N, H).
    """

    beyond = "steps and lengths"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        batch_first: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.batch_first = batch_first

    def extra_repr(self) -> str:
        said: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return said + (", batch_first=True" if self.batch_first else "")

    def forward(self, input: Steps, lengths: Lengths | None = None) -> Steps:
        """input: (T, N, H), or (N, T, H) with batch_first, or packed; lengths: as in `functional`."""
        buffers, training, momentum = step(self)
        affine = (self.weight, self.bias)
        return sequence_batch_norm(
            input, *buffers, *affine, training, momentum, self.eps, lengths=lengths, batch_first=self.batch_first
        )

    if TYPE_CHECKING:

        def __call__(self, input: Steps, lengths: Lengths | None = None) -> Steps: ...
