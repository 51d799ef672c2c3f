"""Compares every output tensor with float64 and judges the errors.

The reference is computed in float64 from the inputs as rounded to the cell's dtype, so the figures measure only the
implementation's own error. relL2(a, b) is |a - b| / |b| over the finite elements, and infinite where NaN or Inf stand
in other places than they should. The figures of a tensor:

rel_l2_error    relL2(out, ref). Judges fp32, at ROUNDINGS times STATISTIC_ROUNDING: PyTorch's own error is no excuse
                where it has lost digits, as it does at a large mean.
floor_ratio     rel_l2_error over relL2(ref rounded to the dtype, ref), which no result in that dtype can beat: 1.00
                means that only the last rounding is left. Judges fp16 and bf16.
error_vs_torch  rel_l2_error over PyTorch eager's on the same inputs. Judges fp32 too, whose floor is out of reach.
                An error below half a unit in the last place counts as no larger than PyTorch's, as said below.
scale_error     |mean over groups of <out, ref> / <ref, ref>, minus 1|. Random rounding averages out of it, what is
                systematic (a wrong divisor, a wrong eps, a lost column) does not. A group is what shares a statistic.
max_ulp         largest error in units in the last place of the reference, and where it is. Reported, not judged.
masks_match     NaN, +Inf and -Inf exactly where the reference, rounded to the dtype, has them. Always judged.

Three points of the definition need their reasons:

A small tensor (dw of 64 channels in bf16) has too few elements for honest rounding to average out, and one last
rounding alone moves its scale by 2e-4. So scale_error is measured against the *rounded* reference's scale, not
against 1: a correct result then differs only where a tie of the reference was decided by float32's own noise, and
such elements count as the output has them. This takes the rounding of bf16 out of the figure, so bf16 is held to the
bound of fp16, which is stricter than without.

In float32 the rounding cannot be taken out: every group's statistic is itself rounded to float32, and a GPU's
reciprocal square root is off by up to STATISTIC_ROUNDING. These errors are independent from group to group, so
their share in the mean falls with the square root of the number of groups G, and the bound for float32 is
SCALE_BOUND + STATISTIC_ROUNDING / sqrt(G). At G = 1 that is 3.4e-7; a divisor of N + 1 moves the scale by 1/(2N),
and is beyond that up to N = 1.4 million. A vector such as dw is one group of many statistics, whose errors weigh in its
scale as their squares do in its energy: with shares s of it, summing to 1, G is 1 / sum(s^2). All of them count alike
if they are of one size; if one channel has all the energy, its error is the scale's. For the same reason an error below
STATISTIC_ROUNDING is never held against PyTorch's, which may be smaller by luck (or on a CPU, where it sums batch norm
in float64).

Nothing in float32 can be asked for less than correct rounding: half a unit in the last place of each element, which is
2^-25 to 2^-24 of it, and of a tensor relL2(ref + half units, ref). Where PyTorch's error is smaller, because float64
was rounded once and luckily, error_vs_torch is 1 up to that size, and beyond it the error over that size.

dw and db are sums, whose terms may cancel: with three channels, one sum can be a tenth of what its terms would lead
one to expect, and its relative error ten times as large in every honest float32 implementation. The operator says how
much (Operator.amplification, from the float64 terms), and STATISTIC_ROUNDING is taken that many times for such a
tensor. With many channels and random gradients that is 1 to 3.

With two values a statistic, dx is the rest of a cancellation: its terms are 1e5 times as large as itself. It is taken
the same way (RowNorm.amplification), in every dtype: of fp16 and bf16 the floor is at least the error that float32 has
under it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite, sqrt

import numpy as np
import torch
from torch import Tensor

from bench.results.records import TensorError

DTYPE_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}

# Sums are kept in float32, so a correct result rounds to the right neighbour but for ties: 5% is room for those.
FLOOR_RATIO_BOUND = 1.05
# At most twice PyTorch's error, or STATISTIC_ROUNDING.
ERROR_VS_TORCH_BOUND = 2.0
# Of float32: what stands in for a reference error that is zero.
UNIT_ROUNDOFF = 2.0**-24
SCALE_BOUND = {"fp32": 1e-7, "fp16": 1e-5, "bf16": 1e-5}
# The PTX manual gives rsqrt.approx.f32 a largest relative error of 2^-22.9, and the statistic under it, and the product
# after it, half an ulp (2^-24) each: 2^-22 together.
STATISTIC_ROUNDING = 2.0**-22
# 2^-20 in all: a float32 result goes through a dozen roundings, each of 2^-24 at most, and few of them add up.
ROUNDINGS = 4
# How far float32 arithmetic may be from a tie and still decide it either way: 64 unit roundoffs, relative to the
# element or to the tensor's root mean square where the element came out of a cancellation.
TIE_NOISE = 2.0**-18

# Bits behind the point, and the exponent of the smallest normal number.
_FORMATS = {"fp32": (23, -126), "fp16": (10, -14), "bf16": (7, -126)}


def check(
    outputs: Mapping[str, Tensor | None],
    reference: Mapping[str, Tensor],
    dtypes: Mapping[str, torch.dtype],
    yardstick: Mapping[str, float] | None = None,
    statistics_dim: int = 0,
    amplification: Mapping[str, float] | None = None,
    slack: float = 1.0,
) -> list[TensorError]:
    """Returns the errors of every tensor in `reference` (float64), in its order.

    `dtypes` is what each tensor must come in; `yardstick` is PyTorch eager's rel_l2_error per tensor on the same
    inputs (absent: nothing is judged against PyTorch); `statistics_dim` is the dimension of x that has one statistic
    an index (channels of batch norm: 1, rows of layer and RMS norm: 0); `amplification` says of sums how far they
    cancel (absent: not at all); `slack` widens the bounds that chance has a part in, which floor_ratio's is not.
    Missing tensors, None, a wrong shape and a wrong dtype are errors like any other.
    """
    errors = []
    for name, ref in reference.items():
        out = outputs.get(name)
        wanted = DTYPE_NAMES[dtypes[name]]
        if refusal := _refusal(out, ref, dtypes[name]):
            errors.append(_refused(name, wanted, refusal))
        else:
            assert out is not None
            yard = None if yardstick is None else yardstick.get(name)
            rounding = STATISTIC_ROUNDING * (amplification or {}).get(name, 1.0)
            errors.append(_compare(name, out.detach(), ref, wanted, yard, statistics_dim, rounding, slack))
    return errors


def verdict(errors: Sequence[TensorError]) -> tuple[str, str]:
    """Returns ("ok", "") or ("wrong", one line that names each tensor and figure beyond its bound)."""
    reasons = [_reason(error) for error in errors if not error.ok]
    return ("wrong", "; ".join(reasons)) if reasons else ("ok", "")


def yardstick(errors: Sequence[TensorError]) -> dict[str, float]:
    """Returns PyTorch eager's rel_l2_error by tensor, where it is finite, for others to be compared with."""
    found = {error.tensor: error.rel_l2_error for error in errors}
    return {tensor: error for tensor, error in found.items() if error is not None and isfinite(error)}


def _refusal(out: object, ref: Tensor, dtype: torch.dtype) -> str:
    """Returns why this is no tensor that can be compared, or ""."""
    if out is None:
        return "missing"
    # A subclass may compute when it is looked at.
    if not isinstance(out, Tensor) or type(out) not in (Tensor, torch.nn.Parameter):
        return f"a {type(out).__name__} instead of a tensor"
    if out.shape != ref.shape:
        return f"shape {list(out.shape)} instead of {list(ref.shape)}"
    if out.dtype != dtype:
        return f"dtype {DTYPE_NAMES.get(out.dtype, out.dtype)} instead of {DTYPE_NAMES[dtype]}"
    return ""


def _refused(name: str, dtype: str, refusal: str) -> TensorError:
    return TensorError(name, dtype, None, None, None, None, None, None, False, False, refusal, None)


def _compare(
    name: str,
    out: Tensor,
    ref: Tensor,
    dtype: str,
    yard: float | None,
    statistics_dim: int,
    rounding: float,
    slack: float,
) -> TensorError:
    rounded = ref.to(out.dtype).double()
    out = out.double()
    masks_match = all(
        bool((mask(out) == mask(rounded)).all()) for mask in (torch.isnan, torch.isposinf, torch.isneginf)
    )
    finite = out.isfinite() & rounded.isfinite()
    out, rounded, ref = (torch.where(finite, t, 0.0) for t in (out, rounded, ref))

    norm = float(ref.norm())
    # A NaN in place of a number is no small error; what is left of the tensor says nothing.
    rel = _ratio(float((out - ref).norm()), norm) if masks_match else inf
    floor_ratio = error_vs_torch = None
    judged: dict[str, tuple[float, float]] = {}
    if dtype == "fp32":
        scale, groups = _scale_error(out, rounded, ref, statistics_dim)
        scale_bound = SCALE_BOUND[dtype] + rounding / sqrt(groups)
        judged["rel_l2_error"] = (rel, slack * ROUNDINGS * rounding)
    else:
        scale, _ = _scale_error(out, _ties_as(out, rounded, ref), ref, statistics_dim)
        # Only where a tensor is the rest of a great cancellation is float32's error under it larger than these.
        scale_bound = max(SCALE_BOUND[dtype], rounding)
        floor_ratio = rel / max(_ratio(float((rounded - ref).norm()), norm), UNIT_ROUNDOFF, ROUNDINGS * rounding)
        judged["floor_ratio"] = (floor_ratio, FLOOR_RATIO_BOUND)
    judged["scale_error"] = (scale, slack * scale_bound)
    if yard is not None:
        half_units = _ratio(float(_units(ref, dtype).norm()) / 2, norm) if norm else UNIT_ROUNDOFF
        yard = min(max(rel, yard), max(yard, half_units)) or UNIT_ROUNDOFF
        error_vs_torch = rel / yard
        if dtype == "fp32":
            judged["error_vs_torch"] = (error_vs_torch, max(ERROR_VS_TORCH_BOUND, rounding / yard))
    max_ulp, index = _max_ulp(out, ref, dtype)

    # `not <=` rather than `>`: a figure that is NaN is no pass.
    decided_by = max(judged, key=lambda figure: _excess(*judged[figure]))
    bound: float | None = judged[decided_by][1]
    ok = masks_match and all(value <= limit for value, limit in judged.values())
    if not masks_match:
        decided_by, bound = "masks_match", None
    return TensorError(
        name, dtype, rel, floor_ratio, error_vs_torch, scale, max_ulp, index, masks_match, ok, decided_by, bound
    )


def _ratio(error: float, norm: float) -> float:
    """Returns a relative error, infinite where the reference is zero everywhere and the output is not."""
    if norm == 0.0:
        return 0.0 if error == 0.0 else inf
    return error / norm


def _excess(value: float, bound: float) -> float:
    return inf if value != value else value / bound


def _ties_as(out: Tensor, rounded: Tensor, ref: Tensor) -> Tensor:
    """Returns the rounded reference, in which ties that float32 cannot decide are decided as in the output."""
    noise = TIE_NOISE * ref.abs().clamp(min=float(ref.square().mean().sqrt()))
    return torch.where((out - ref).abs() <= (rounded - ref).abs() + noise, out, rounded)


def _scale_error(out: Tensor, rounded: Tensor, ref: Tensor, statistics_dim: int) -> tuple[float, float]:
    """Returns the output's scale minus the rounded reference's, and the number of independent statistics in it.

    A tensor of x's shape has one group an index of `statistics_dim`. A vector (dw, a running mean) is one group, but
    each of its elements is a statistic of its own, of the weight that its square has.
    """
    vector = ref.dim() <= max(statistics_dim, 1)
    if vector:
        out, rounded, ref = (t.reshape(1, -1) for t in (out, rounded, ref))
    else:
        out, rounded, ref = (t.movedim(statistics_dim, 0).flatten(1) for t in (out, rounded, ref))
    energy = (ref * ref).sum(1)
    used = energy > 0
    if not bool(used.any()):
        return 0.0, 1.0
    excess = ((out - rounded) * ref).sum(1)[used] / energy[used]
    statistics = 1.0 / float((ref * ref / energy).square().sum()) if vector else float(ref.shape[0])
    return abs(float(excess.mean())), statistics


def _max_ulp(out: Tensor, ref: Tensor, dtype: str) -> tuple[float, list[int]] | tuple[None, None]:
    """Returns the largest error in units in the last place of the reference in `dtype`, and its index."""
    if ref.numel() == 0:
        return None, None
    ulps = (out - ref).abs() / _units(ref, dtype)
    where = int(ulps.argmax())
    index = [int(i) for i in np.unravel_index(where, ref.shape)]
    return float(ulps.flatten()[where]), index


def _units(ref: Tensor, dtype: str) -> Tensor:
    """Returns the unit in the last place that `dtype` has at each element."""
    bits, least = _FORMATS[dtype]
    # frexp's mantissa lies in [0.5, 1), so its exponent is one above the leading bit's.
    exponent = torch.frexp(ref).exponent.where(ref != 0, least).sub(1).clamp(min=least)
    return torch.ldexp(torch.ones_like(ref), exponent - bits)


def _reason(error: TensorError) -> str:
    if error.decided_by == "masks_match":
        return f"{error.tensor}: NaN or Inf in other places than the reference"
    if error.bound is None:
        return f"{error.tensor}: {error.decided_by}"
    value = getattr(error, error.decided_by)
    return f"{error.tensor}: {error.decided_by} {value:.3g} is beyond {error.bound:.3g}"
