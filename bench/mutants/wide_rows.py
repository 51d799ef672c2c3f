"""Mutants of kernels/row_norm/wide.py: a row is too wide for registers, and a kernel loops over it."""

from __future__ import annotations

from bench.mutants.planting import Mutant

# By the function that is spoilt: name, what is planted, the text, what it becomes.
_EDITS = {
    "_row_norm_forward_loop_kernel": (
        (
            "loop-tail-dropped",
            "the ragged last step has no share in the statistics",
            "tl.minimum(PARTIAL_N, columns)",
            "PARTIAL_N // BLOCK_N * BLOCK_N",
        ),
        (
            "loop-tail-counts-full",
            "the ragged last step counts as a whole one",
            "tl.minimum(BLOCK_N, N - start)",
            "BLOCK_N",
        ),
        (
            "loop-mean-of-the-last-step",
            "the merged mean is the last step's",
            "count, mean, low, m2 = merge_moments(count, mean, low, m2, here, block_mean, block_low, block_m2)",
            "count, _, _, m2 = merge_moments(count, mean, low, m2, here, block_mean, block_low, block_m2)\n"
            "                mean, low = block_mean, block_low",
        ),
        ("loop-rms-of-the-last-step", "RMS norm's squares of the last step alone", "lanes += x * x", "lanes = x * x"),
        (
            "loop-variance-unbiased",
            "N - 1 divides the squares",
            "zeros_like(m2) + PARTIAL_N)",
            "zeros_like(m2) + PARTIAL_N - 1)",
        ),
        ("loop-low-dropped-in-y", "x - mean without the low part", "((x - mean) - low)", "(x - mean)"),
        (
            "loop-step-off-by-one",
            "the second sweep begins a step late and ends with one step twice",
            "(tl.cdiv(N, BLOCK_N) - 1 - i)",
            "tl.maximum(tl.cdiv(N, BLOCK_N) - 2 - i, 0)",
        ),
    ),
    "_row_norm_input_gradient_loop_kernel": (
        ("loop-c1-sign", "+ x_hat c1", "- of_part(", "+ of_part("),
        (
            "loop-sums-tail-dropped",
            "the ragged last step has no share in c1 and c2",
            "range(0, N, BLOCK_N)",
            "range(0, N // BLOCK_N * BLOCK_N, BLOCK_N)",
        ),
        ("loop-c2-left-out", "layer norm's dx without c2", "c2_lanes += wdy", "c2_lanes += 0.0 * wdy"),
        (
            "loop-statistics-of-row-0",
            "every row has the first one's mean and rstd",
            "row + tl.zeros([1, 1], tl.int32)",
            "tl.zeros([1, 1], tl.int32)",
        ),
    ),
    "_row_norm_weight_gradient_kernel": (
        (
            "loop-dw-tail-rows-dropped",
            "the last tile of rows, not full, adds nothing to dw and db",
            "blocks(M, BLOCK_M)",
            "M // BLOCK_M",
        ),
        ("loop-dw-without-rstd", "x - mean in place of x_hat", "((x - mean) - low) * rstd", "(x - mean) - low"),
        ("loop-db-of-the-last-tile", "db of the last tile of rows alone", "db += dy", "db = dy"),
    ),
}

# What runs with a residual alone.
_FUSED_EDITS = {
    "_row_norm_forward_loop_kernel": (
        (
            "loop-second-sweep-of-x",
            "y from x without the residual, by z's statistics",
            "x_row if residual_ptr is None else z_ptr + z_row",
            "x_row",
        ),
    ),
    "_row_norm_input_gradient_loop_kernel": (
        ("loop-dz-left-out", "dx of the norm alone", "dx += load(dz_ptr", "dx += 0.0 * load(dz_ptr"),
        ("loop-dz-of-row-0", "every row adds the first one's", "dz_ptr + dz_row + n", "dz_ptr + n"),
    ),
}

MUTANTS = tuple(
    Mutant(name, "row_norm.wide", within, about, old, new, (cells,))
    for all_edits, cells in ((_EDITS, "wide"), (_FUSED_EDITS, "wide fused"))
    for within, edits in all_edits.items()
    for name, about, old, new in edits
)
