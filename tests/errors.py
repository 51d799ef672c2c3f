"""The distance of a tensor from float64, as tests state it."""

import torch


def relative_error(out: torch.Tensor, truth: torch.Tensor) -> float:
    """|out - truth| / |truth|, in float64."""
    return float((out.double() - truth).norm() / truth.norm())


def floor_ratio(out: torch.Tensor, truth: torch.Tensor) -> float:
    """The error over that of the correctly rounded truth: 1.00 is perfect."""
    return relative_error(out, truth) / relative_error(truth.to(out.dtype), truth)


# A few roundings of float32 (6e-8) and of float64 (1.1e-16), where the truth, in float64 too, adds as many of its own.
ROUNDINGS = {torch.float32: 2.5e-7, torch.float64: 2e-15}


def assert_right(out: torch.Tensor, truth: torch.Tensor, name: str = "") -> None:
    """16-bit results are the rounded truth but for ties; wider ones are a few roundings away."""
    if out.dtype in ROUNDINGS:
        error = relative_error(out, truth)
        assert error <= ROUNDINGS[out.dtype], f"{name}: relative error {error:.2e}"
    else:
        ratio = floor_ratio(out, truth)
        assert ratio <= 1.05, f"{name}: {ratio:.3f} times the error of rounding"
