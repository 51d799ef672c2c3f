"""Norms over all steps of all sequences: what of a padded or packed tensor is a step, and what is padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Lengths = Tensor | Sequence[int]
Steps = TypeVar("Steps", Tensor, PackedSequence)


def over_steps(norm: Callable[[Tensor], Tensor], input: Steps, lengths: Lengths | None, batch_first: bool) -> Steps:
    """Applies `norm`, of (steps, features), to all steps; see functional.sequence_batch_norm for the arguments.

    Padding never reaches the norm: steps are gathered, as a PackedSequence has them already, so that any norm of rows
    serves, its sums know no mask, and what padding holds, be it NaN, is neither read nor counted.
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
        # Whichever of time and batch is outermost in memory: then no other order is copied to this one.
        swap = input.stride(0) < input.stride(1)
        x = input.transpose(0, 1) if swap else input
        y = norm(x.flatten(0, 1)).view(x.shape)
        return y.transpose(0, 1) if swap else y
    x = input.flatten(0, 1)
    steps = _steps(lengths, input.shape, batch_first, input.device)
    y = norm(x.index_select(0, steps))
    return y.new_zeros(x.shape).index_copy_(0, steps, y).view(input.shape)


def _steps(lengths: Lengths, shape: torch.Size, batch_first: bool, device: torch.device) -> Tensor:
    """Where the steps of each sequence are among all (time, batch) or (batch, time), padding left out.

    Only the lengths go to the device. Of a tensor the host reads how many steps there are, and nothing else: in a graph
    of torch.compile that is a size which no compilation follows.
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
        # Numbers that a graph has when it runs: what may be taken of them for granted has to be said.
        torch._check(outside == 0)
        torch._check(total > 1)
    elif outside:
        given = lengths.tolist() if isinstance(lengths, Tensor) else list(lengths)
        raise ValueError(f"lengths must be from 0 to {time}, the steps of the input; got {given}")
    each = each.to(device, non_blocking=True)
    sequence = torch.repeat_interleave(torch.arange(batch, device=device), each, output_size=total)
    step = torch.arange(total, device=device) - (each.cumsum(0) - each)[sequence]
    return sequence * time + step if batch_first else step * batch + sequence
