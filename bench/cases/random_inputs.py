"""Random inputs that are the same every time, and torch's dtypes by the names that cases have for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.cases.case import Case

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# In standard deviations: enough for a one-pass variance to lose digits, and what activations of trained nets show.
_LARGEST_OFFSET = 3.0
# Below the end of fp16, 65504.
_HUGE = 6e4
# A standard deviation of some 1e-4: its square is a thousandth of 1e-5, the usual eps.
_TINY = 1e-4


class RandomInputs:
    """A stream of random float32 tensors on a device, fixed by seed and problem; on "meta" only their shapes."""

    def __init__(self, case: Case, device: torch.device, seed: int) -> None:
        self.device, self.generator = device, None
        if device.type != "meta":
            key = f"{seed} {case.problem.label} {case.eps}"
            self.generator = torch.Generator(device)
            self.generator.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def uniform(self, shape: Sequence[int], low: float, high: float) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device).mul_(high - low).add_(low)

    def activations(self, case: Case, statistics_dim: int) -> Tensor:
        """x of the case's shape and family (see case.py), in the case's dtype; every statistic is drawn by itself."""
        shape, dtype = case.shape, TORCH_DTYPES[case.dtype]
        one_each = [size if dim == statistics_dim else 1 for dim, size in enumerate(shape)]
        scale = self.uniform(one_each, 0.5, 2.0)
        offset = self.uniform(one_each, -_LARGEST_OFFSET, _LARGEST_OFFSET)
        x = self.normal(shape)
        if case.inputs == "offset":
            # What fp16 cannot hold is scaled down as a whole, so that mean/std stays what it is called.
            scale *= min(1.0, _HUGE / (4.0 * case.offset))
            return x.add_(offset.sign() * case.offset).mul_(scale).to(dtype)
        x = x.add_(offset).mul_(scale)
        nonfinite = ([torch.nan, torch.inf, -torch.inf] + [0.0] * scale.numel())[: scale.numel()]
        families: dict[str, Callable[[], Tensor]] = {
            "normal": lambda: x,
            "outlier": lambda: self._with(x, statistics_dim, 1e3 * scale * offset.sign()),
            # Eighths, of which float32 sums millions without a rounding: the truth is exactly zero, or the bias.
            "constant": lambda: (offset * 8).round().div(8).expand(shape),
            "tiny": lambda: x * _TINY,
            "huge": lambda: (x * (_HUGE / 8)).clamp(-_HUGE, _HUGE),
            "denormal": lambda: x * (torch.finfo(dtype).smallest_normal / 16),
            # One kind each in the first three statistics, and none in the others.
            "nonfinite": lambda: self._with(x, statistics_dim, torch.tensor(nonfinite, device=self.device)),
        }
        return families[case.inputs]().to(dtype)

    def _with(self, x: Tensor, statistics_dim: int, value: Tensor) -> Tensor:
        """x with one element of every statistic, anywhere in it, replaced by that of `value` unless that is 0."""
        found = x.movedim(statistics_dim, 0).clone(memory_format=torch.contiguous_format)
        rows, new = found.flatten(1), value.reshape(-1, 1)
        where = self.uniform((len(rows), 1), 0, rows.shape[1]).long().clamp(max=rows.shape[1] - 1)
        rows.scatter_(1, where, torch.where(new == 0, rows.gather(1, where), new))
        return found.movedim(0, statistics_dim)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values with the channels innermost in memory for nhwc; (batch, channels) is both at once."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "nhwc" else x.contiguous()
