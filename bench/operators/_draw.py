"""Random inputs that are the same every time, and the names of dtypes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.case import Case

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# In standard deviations: enough for a one-pass variance to lose digits, and what activations of trained nets show.
LARGEST_OFFSET = 3.0


class Draw:
    """A stream of random float32 tensors on a device, fixed by the seed and the problem alone."""

    def __init__(self, case: Case, device: torch.device, seed: int) -> None:
        key = f"{seed} {case.problem.label} {case.eps}"
        self.device = device
        self.generator = torch.Generator(device)
        self.generator.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def uniform(self, shape: Sequence[int], low: float, high: float) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device).mul_(high - low).add_(low)

    def activations(self, shape: Sequence[int], statistics_dim: int) -> Tensor:
        """Normal values, scaled and offset differently for every index of `statistics_dim`."""
        one_each = [size if dim == statistics_dim else 1 for dim, size in enumerate(shape)]
        scale = self.uniform(one_each, 0.5, 2.0)
        offset = self.uniform(one_each, -LARGEST_OFFSET, LARGEST_OFFSET)
        return self.normal(shape).add_(offset).mul_(scale)

    def weight(self, size: int) -> Tensor:
        """Around 1, never 1: a weight that is left out must show."""
        return self.uniform((size,), 0.5, 1.5)

    def bias(self, size: int) -> Tensor:
        return self.normal((size,))
