"""Batch normalization of sequences over all their steps (Laurent et al. 2015; Deep Speech 2, Amodei et al. 2015)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from normlib.batch_norm import batch_norm
from normlib.channels import step
from normlib.sequences import Lengths, Steps, over_steps


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

    lengths: N whole numbers from 0 to T, how many steps of each sequence are no padding; on the host, as
    `torch.nn.utils.rnn.pack_padded_sequence` has them, for a tensor on the device has to be waited for. The rest counts
    for nothing, neither in statistics nor in gradients, and is 0 in the result. In `torch.compile(fullgraph=True)` one
    compilation serves all lengths in a tensor; those in a tuple are part of what is compiled.

    Lengths that do not fit, also beside a PackedSequence, and an input of other than three dimensions raise ValueError.
    A compiled graph raises RuntimeError for a tensor of lengths that do not fit or have less than two steps together.

    Laurent et al., "Batch normalized recurrent neural networks" (2015), section 3; Amodei et al., "Deep Speech 2"
    (2015), section 3.2.
    """

    def norm(steps: Tensor) -> Tensor:
        return batch_norm(steps, running_mean, running_var, weight, bias, training, momentum, eps)

    return over_steps(norm, input, lengths, batch_first)


class SequenceBatchNorm(_NormBase):
    """Batch norm over all steps of all sequences: arguments, parameters, buffers and state_dict of `nn.BatchNorm1d`.

    batch_first: input is (N, T, H), as recurrent layers with batch_first have it, and not (T, N, H).
    """

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
        """input: (T, N, H), or (N, T, H) with batch_first, or packed; lengths: as `functional` has them."""
        buffers, training, momentum = step(self)
        affine = (self.weight, self.bias)
        return sequence_batch_norm(
            input, *buffers, *affine, training, momentum, self.eps, lengths=lengths, batch_first=self.batch_first
        )
