"""RMS norm by the mean square of a part of each row."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from normlib.reference.row_norm import rms_norm


def partial_rms_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    dy: Tensor | None = None,
    partial: float = 0.0625,
) -> dict[str, Tensor]:
    """RMS normalization by the first ceil(partial N) of a row's N elements (Zhang and Sennrich 2019, section 4).

    Returns float64 `y`, `rstd` (one a row), and with dy `dx`, `dw`, `db` (of normalized_shape).
    """
    return rms_norm(x, normalized_shape, weight, bias, eps, dy, partial=partial)
