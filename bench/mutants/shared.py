"""Mutants of what all kernels share: kernels/numerics.py and kernels/reduction.py."""

from __future__ import annotations

from bench.mutants.planting import Mutant

# By the function that is spoilt: name, what is planted, the text, what it becomes.
_EDITS = {
    ("numerics", "even_share"): (
        (
            "batch-uneven-split-short",
            "the tile left over is given to no split",
            "share + (part < over).to(tl.int32)",
            "share",
        ),
    ),
    ("numerics", "store"): (
        (
            "bf16-truncated",
            "toward zero in place of to nearest",
            "tl.store(",
            "if element_ty == tl.bfloat16:\n"
            "        value = (value.to(tl.float32).to(tl.uint32, bitcast=True) & "
            "0xFFFF0000).to(tl.float32, bitcast=True)\n"
            "    tl.store(",
        ),
        (
            "rounded-twice",
            "to fp16's 11 bits, and then to bf16's 8",
            "tl.store(",
            "if element_ty == tl.bfloat16:\n        value = value.to(tl.float16).to(tl.float32)\n    tl.store(",
        ),
    ),
    ("reduction", "rstd_of"): (
        (
            "fast-inverse-root",
            "the bit trick and two Newton steps, off by up to 5e-6",
            "    return rstd",
            "    y = (0x5F3759DF - (total.to(tl.int32, bitcast=True) >> 1)).to(tl.float32, bitcast=True)\n"
            "    y = y * (1.5 - 0.5 * total * y * y)\n"
            "    return y * (1.5 - 0.5 * total * y * y)",
        ),
        ("rstd-off-by-1e-4", "every rstd a ten-thousandth too large", "return rstd", "return rstd * 1.0001"),
        ("rstd-off-by-1e-6", "every rstd a millionth too large", "return rstd", "return rstd * 1.000001"),
        (
            "newton-without-the-lower-half",
            "a Newton step from the upper half of rstd's square",
            "rest -= square_low * total + square * total_low",
            "rest -= square * total_low",
        ),
        (
            "newton-of-half-the-variance",
            "a Newton step toward the upper half of the variance",
            "square_upper * (total - total_upper) + ",
            "",
        ),
    ),
    ("reduction", "tile_moments"): (
        ("moments-of-masked-lanes", "masked lanes count -mean each", "tl.where(mask, x - mean, 0.0)", "x - mean"),
        (
            "tile-recentring-left-out",
            "the mean's low part stays 0",
            "low = tl.sum(d, AXIS, keep_dims=True) / count",
            "low = tl.sum(d * 0.0, AXIS, keep_dims=True) / count",
        ),
        (
            "tile-squares-about-the-mean-alone",
            "M2 about mean in place of mean + low",
            "tl.where(mask, d - low, 0.0)",
            "tl.where(mask, d, 0.0)",
        ),
        (
            "tile-one-pass-variance",
            "M2 = sum(x^2) - n mean^2",
            "tl.sum(d * d, AXIS, keep_dims=True)",
            "tl.sum(x * x, AXIS, keep_dims=True) - count * mean * mean",
        ),
        (
            "tile-mean-in-12-bits",
            "a mean keeps few bits, and what it missed is found for the squares alone",
            "return mean, low, tl.sum(d * d, AXIS, keep_dims=True)",
            "return mean, low * 0.0, tl.sum(d * d, AXIS, keep_dims=True)",
        ),
    ),
    ("reduction", "merge_moments"): (
        (
            "merge-in-halves",
            "both sets weigh the same, whatever their counts",
            "count_b / tl.maximum(count, 1.0)",
            "0.5",
        ),
        (
            "merge-without-cross-term",
            "Chan's delta^2 n_a n_b / n left out",
            " + (delta * count_a) * (delta * share)",
            "",
        ),
        (
            "merge-low-of-delta-dropped",
            "means' difference without their low parts",
            "(mean_b - mean_a) + (low_b - low_a)",
            "mean_b - mean_a",
        ),
    ),
    ("reduction", "renormalize"): (
        (
            "renormalize-loses-low",
            "what the high part cannot hold is lost",
            "low = (a - (high - b_part)) + (b - b_part)",
            "low = high - high",
        ),
    ),
    ("reduction", "merge_all_moments"): (
        (
            "merge-all-unweighted",
            "every split weighs the same",
            "tl.sum(counts * about_first, AXIS, keep_dims=True) / count.to(tl.float64)",
            "tl.sum(about_first, AXIS, keep_dims=True) / tl.sum(tl.where(counts > 0.0, 1.0, 0.0), AXIS, "
            "keep_dims=True)",
        ),
        (
            "merge-all-delta-sign",
            "the first mean less the others' in place of theirs less it",
            "(means.to(tl.float64) - first)",
            "(first - means.to(tl.float64))",
        ),
        ("merge-all-without-cross-term", "the splits' M2 alone", " + counts * (d * d)", ""),
        ("merge-all-cross-term-unweighted", "d^2 in place of n d^2", "counts * (d * d)", "d * d"),
        ("merge-all-low-left-out", "means merged without their low parts", " + lows.to(tl.float64)", ""),
        (
            "merge-all-loses-low",
            "what the merged mean's high part cannot hold is lost",
            "((high - mean.to(tl.float64)) + rest)",
            "rest",
        ),
    ),
    ("reduction", "accurate_sum"): (
        (
            "sum-of-the-upper-parts",
            "what each term has beyond the common bit is lost",
            " + tl.sum(lower, AXIS, keep_dims=KEEP)",
            "",
        ),
        ("sum-of-parts-twice", "the upper parts taken off twice", "x - upper, 0.0)", "x - 2.0 * upper, 0.0)"),
    ),
    ("reduction", "_sum_partials_kernel"): (
        ("last-partial-dropped", "dw and db without the last program", "(row < P)", "(row < tl.maximum(P - 1, 1))"),
        ("partials-of-the-last-step", "earlier steps' partials forgotten", "lanes += ", "lanes = "),
        (
            "partials-tail-dropped",
            "the last step, not full, left out",
            "range(0, P, BLOCK_P)",
            "range(0, tl.maximum(P // BLOCK_P, 1) * BLOCK_P, BLOCK_P)",
        ),
        ("db-is-dw", "both from the first set of partials", "which.to(tl.int64) * P * N", "which.to(tl.int64) * 0"),
        (
            "partials-in-bf16",
            "partials rounded to bf16 before they are added",
            "(n < N)[None, :], ACC)",
            "(n < N)[None, :], ACC).to(tl.bfloat16).to(ACC)",
        ),
    ),
}

# Only batch norm and wide rows merge moments; the rest is in every kernel.
_CELLS = {
    "even_share": ("batch",),
    "tile_moments": ("batch", "wide"),
    "merge_moments": ("batch", "wide"),
    "renormalize": ("batch", "wide"),
    "merge_all_moments": ("batch",),
    "accurate_sum": ("batch", "rows"),
}

MUTANTS = tuple(
    Mutant(name, file, within, about, old, new, _CELLS.get(within, ()))
    for (file, within), edits in _EDITS.items()
    for name, about, old, new in edits
)
