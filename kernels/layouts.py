"""The two layouts in which kernels take (N, C, *): contiguous, and channels-last, with the channels innermost."""

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether (N, C, *) has its channels innermost: channels-last memory, or no positions at all."""
    return x.dim() == 2 or (not x.is_contiguous() and x.movedim(1, -1).is_contiguous())


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """(x in one of the two layouts, whether that is channels-last); a copy only if it is in neither."""
    last = is_channels_last(x)
    return (x if last and x.movedim(1, -1).is_contiguous() else x.contiguous()), last


def like(x: Tensor, tensor: Tensor) -> Tensor:
    """The tensor in x's layout, copied only where it is in another."""
    if tensor.stride() == x.stride():
        return tensor
    return torch.empty_like(x, dtype=tensor.dtype).copy_(tensor)
