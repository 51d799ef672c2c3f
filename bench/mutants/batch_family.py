"""Mutants of what batch renormalization and noisy batch norm have of their own: their merges, dw, and the noise."""

from __future__ import annotations

from bench.mutants.planting import Mutant

# By file and function: name, what is planted, the text, what it becomes.
_EDITS = {
    ("batch_norm.renorm", "_batch_renorm_merge_kernel"): (
        ("renorm-r-inverted", "the running deviation over the batch's", "clip(std / old_std", "clip(old_std / std"),
        ("renorm-r-unlimited", "r may pass rmax", "1.0 / most_r, most_r)", "1.0 / most_r, 1e9)"),
        ("renorm-d-unlimited", "d may pass dmax", "-most_d, most_d)", "-most_d, 1e9)"),
        ("renorm-d-by-the-batch", "d in deviations of the batch", "old_mean) / old_std", "old_mean) / std"),
        ("renorm-shift-unweighted", "d is not weighted", "shift = weight * d", "shift = d"),
        ("renorm-std-without-eps", "std has no eps", " + from_pair(eps, eps_low, tl.float64))", ")"),
        ("renorm-running-std", "running_std moves towards 1", "m * (std - old_std)", "m * (1.0 - old_std)"),
    ),
    ("batch_norm.renorm", "_batch_renorm_weight_gradient_kernel"): (
        ("renorm-dw-without-d", "dw of x_hat r alone", "r * dw + d * db", "r * dw"),
    ),
    ("batch_norm.noisy", "_noisy_batch_norm_merge_kernel"): (
        ("noise-sigma-of-mu", "sigma is drawn by mu's word", "1.0 + uniform(of_std", "1.0 + uniform(of_mean"),
        ("noise-off-centre", "m lies to one side of mu", "(mu - spread)", "mu"),
    ),
    ("batch_norm.noise", "standard_normal"): (
        ("noise-of-one-word", "radius and angle are not independent", "uniform(angle_word", "uniform(radius_word"),
        ("noise-short-series", "a cosine of two terms", "TERMS: tl.constexpr = 6", "TERMS: tl.constexpr = 2"),
    ),
}
_CELLS = {"batch_norm.renorm": ("renorm",), "batch_norm.noisy": ("noisy",), "batch_norm.noise": ("noisy",)}

MUTANTS = tuple(
    Mutant(name, file, within, about, old, new, _CELLS[file])
    for (file, within), edits in _EDITS.items()
    for name, about, old, new in edits
)
