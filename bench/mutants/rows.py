"""Mutants of kernels/row_norm/ where a row is held in registers: layer norm and RMS norm."""

from __future__ import annotations

from bench.mutants.planting import Mutant

# By the file and function that is spoilt: name, what is planted, the text, what it becomes.
_EDITS = {
    ("row_norm.narrow", "_row_norm_forward_kernel"): (
        (
            "last-column-unread",
            "x's last column read as 0",
            "mask = (row < M) & (n < N)",
            "mask = (row < M) & (n < N - 1)",
        ),
        (
            "last-row-unwritten",
            "y's last row is never stored",
            "y, (row < M) & (n < N))",
            "y, (row < M - 1) & (n < N))",
        ),
        (
            "variance-over-n-plus-1",
            "N + 1 divides the squares",
            "zeros_like(squares) + PARTIAL_N)",
            "zeros_like(squares) + PARTIAL_N + 1)",
        ),
        (
            "variance-unbiased",
            "N - 1 divides the squares",
            "zeros_like(squares) + PARTIAL_N)",
            "zeros_like(squares) + PARTIAL_N - 1)",
        ),
        ("eps-left-out", "eps is not added", "eps, eps_low, ACC)", "0.0, 0.0, ACC)"),
        ("eps-1e-3", "1e-3 in place of the eps given", "eps, eps_low, ACC)", "1e-3, 0.0, ACC)"),
        (
            "eps-outside-the-root",
            "1 / (sqrt(var) + eps)",
            "rstd_of(divide(squares, tl.zeros_like(squares) + PARTIAL_N), eps, eps_low, ACC)",
            "1.0 / (tl.sqrt(divide(squares, tl.zeros_like(squares) + PARTIAL_N)) + eps)",
        ),
        (
            "rstd-in-bf16",
            "rstd rounded to bf16",
            "    save_statistics(",
            "    rstd = rstd.to(tl.bfloat16).to(ACC)\n    save_statistics(",
        ),
        (
            "rstd-in-fp16",
            "rstd rounded to fp16",
            "    save_statistics(",
            "    rstd = rstd.to(tl.float16).to(ACC)\n    save_statistics(",
        ),
        (
            "one-pass-variance",
            "E[x^2] - mean^2",
            "tl.sum(d * d, 1, keep_dims=True)\n    rstd = rstd_of(divide(squares, tl.zeros_like(squares) + PARTIAL_N)",
            "tl.sum(xs[i] * xs[i], 1, keep_dims=True)\n"
            "    rstd = rstd_of(divide(squares, tl.zeros_like(squares) + PARTIAL_N) - mean * mean",
        ),
        (
            "squares-of-masked-lanes",
            "lanes past the row's end count mean^2 each",
            "d = tl.where(n < PARTIAL_N, (xs[i] - mean) - low, 0.0)",
            "d = (xs[i] - mean) - low",
        ),
        ("squares-of-the-last-chunk", "earlier chunks' squares forgotten", "squares += ", "squares = "),
        (
            "recentring-of-masked-lanes",
            "lanes past the row's end count -mean each",
            "tl.where(n < N, xs[i] - mean, 0.0)",
            "xs[i] - mean",
        ),
        ("recentring-of-the-last-chunk", "earlier chunks' share forgotten", "low += ", "low = "),
        ("recentring-left-out", "the mean's low part stays 0", "low = low / N", "low = low * 0.0"),
        ("low-dropped-in-y", "x - mean without the low part", "((xs[i] - mean) - low) * rstd", "(xs[i] - mean) * rstd"),
        (
            "x-hat-in-16-bits",
            "x_hat rounded to y's dtype before weight and bias",
            "((xs[i] - mean) - low) * rstd",
            "(((xs[i] - mean) - low) * rstd).to(y_ptr.dtype.element_ty).to(ACC)",
        ),
        (
            "mean-saved-in-x-dtype",
            "the saved mean rounded to x's dtype",
            "M, mean, low, rstd",
            "M, mean.to(x_ptr.dtype.element_ty).to(ACC), low, rstd",
        ),
    ),
    ("row_norm.narrow", "_row_norm_backward_kernel"): (
        ("c1-sign", "+ x_hat c1", "- of_part(", "+ of_part("),
        ("c2-sign", "+ c2", "(wdys[i] - c2)", "(wdys[i] + c2)"),
        ("c1-not-divided", "c1 is the sum, not the mean", "c1 = c1 / PARTIAL_N", "c1 = c1 * 1.0"),
        ("c1-over-n-plus-1", "N + 1 divides c1", "c1 = c1 / PARTIAL_N", "c1 = c1 / (PARTIAL_N + 1)"),
        ("c1-of-the-last-chunk", "earlier chunks' share of c1 forgotten", "c1 += ", "c1 = "),
        ("c2-left-out", "layer norm's dx without c2", "c2 = c2 / N", "c2 = c2 * 0.0"),
        ("c2-of-dy", "c2 without the weight", "c2 += tl.sum(wdy,", "c2 += tl.sum(dy,"),
        (
            "dx-without-weight",
            "dy in place of weight dy",
            "wdy = affine(dy, weight_ptr, None, n, n < N, ZERO_CENTRED, ACC)",
            "wdy = dy",
        ),
        ("dx-without-rstd", "dx is not scaled", "n, N, PARTIAL_N)) * rstd", "n, N, PARTIAL_N))"),
        ("dw-without-rstd", "x - mean in place of x_hat", "dy * x_hat,", "dy * ((x - mean) - low),"),
        ("dw-without-low", "x_hat of dw without the mean's low part", "dy * x_hat,", "dy * ((x - mean) * rstd),"),
        (
            "dw-in-bf16",
            "dw accumulated in bf16",
            "(dws[i] + dy * x_hat,)",
            "((dws[i] + dy * x_hat).to(tl.bfloat16).to(ACC),)",
        ),
        ("dw-of-the-last-tile", "a program keeps the dw of its last tile of rows alone", "(dws[i] + dy", "(dy"),
        ("db-of-rounded-dy", "dy rounded to bf16 in db", "(dbs[i] + dy,)", "(dbs[i] + dy.to(tl.bfloat16).to(ACC),)"),
        (
            "dw-and-db-exchanged",
            "each in the other's place",
            "next_dws + (dws[i] + dy * x_hat,)\n            next_dbs = next_dbs + (dbs[i] + dy,)",
            "next_dws + (dws[i] + dy,)\n            next_dbs = next_dbs + (dbs[i] + dy * x_hat,)",
        ),
        (
            "tail-rows-dropped",
            "the last tile of rows, not full, gets no dx and adds nothing to dw",
            "blocks(M, BLOCK_M)",
            "M // BLOCK_M",
        ),
    ),
    ("row_norm.values", "affine"): (
        ("weight-twice", "the weight squared", "x_hat *= weight", "x_hat *= weight * weight"),
        (
            "bias-before-weight",
            "(x_hat + bias) weight",
            "x_hat *= weight",
            "if bias_ptr is not None:\n            x_hat += load(bias_ptr + n, mask, ACC)\n        x_hat *= weight",
        ),
    ),
    ("row_norm.values", "save_statistics"): (
        (
            "saved-low-left-out",
            "the saved mean's low part is 0",
            "store(mean_ptr + M + row, low, row < M)",
            "store(mean_ptr + M + row, low * 0.0, row < M)",
        ),
        (
            "saved-mean-in-bf16",
            "the saved mean rounded to bf16",
            "store(mean_ptr + row, mean, row < M)",
            "store(mean_ptr + row, mean.to(tl.bfloat16).to(mean.dtype), row < M)",
        ),
    ),
    ("row_norm.values", "load_statistics"): (
        (
            "rstd-of-the-next-row",
            "the backward takes row + 1's rstd",
            "load(rstd_ptr + row, row < M, ACC)",
            "load(rstd_ptr + tl.minimum(row + 1, M - 1), row < M, ACC)",
        ),
    ),
}

# What runs with a residual alone.
_FUSED_EDITS = {
    ("row_norm.values", "load_stream"): (
        (
            "sum-not-rounded-before-the-norm",
            "y from the sum before it is rounded to what z holds",
            "rounded(x + load(residual_ptr + residual_row + n, mask, ACC), z_ptr.dtype.element_ty, ACC)",
            "x + load(residual_ptr + residual_row + n, mask, ACC)",
        ),
        ("residual-in-fp16", "the residual rounded to fp16", "mask, ACC), z_ptr", "mask, ACC).to(tl.float16), z_ptr"),
        ("residual-of-row-0", "every row adds the first one's", "residual_row + n", "residual_row * 0 + n"),
        (
            "z-without-residual",
            "y is right and z is x",
            "store(z_ptr + z_row + n, x, mask)",
            "store(z_ptr + z_row + n, x - load(residual_ptr + residual_row + n, mask, ACC), mask)",
        ),
    ),
    ("row_norm.narrow", "_row_norm_backward_kernel"): (
        ("dz-left-out", "dx of the norm alone", "dx += load(dz_ptr", "dx += 0.0 * load(dz_ptr"),
        ("dz-scaled", "dz times rstd", "dz_stride + n, mask, ACC)", "dz_stride + n, mask, ACC) * rstd"),
        (
            "dx-rounded-before-dz",
            "rounded to dx's dtype and then again, as an addition of its own does",
            "dx += load(dz_ptr",
            "dx = dx.to(dx_ptr.dtype.element_ty).to(ACC) + load(dz_ptr",
        ),
    ),
}

# What differs where the statistic is of a part of the row.
_PARTIAL_EDITS = {
    ("row_norm.values", "of_part"): (
        ("partial-c1-everywhere", "c1 in dx of every column", "value, 0.0)", "value, value)"),
        (
            "partial-c1-a-column-short",
            "c1 is not in dx of the last column of the part",
            "n < PARTIAL_N,",
            "n < PARTIAL_N - 1,",
        ),
    ),
    ("row_norm.narrow", "_row_norm_forward_kernel"): (
        (
            "partial-squares-of-a-column-too-many",
            "the column behind the part counts",
            "tl.where(n < PARTIAL_N, (xs",
            "tl.where(n < PARTIAL_N + 1, (xs",
        ),
        (
            "partial-squares-over-n",
            "N divides the part's squares",
            "zeros_like(squares) + PARTIAL_N)",
            "zeros_like(squares) + N)",
        ),
    ),
    ("row_norm.narrow", "_row_norm_backward_kernel"): (
        ("partial-c1-over-n", "N divides c1", "c1 = c1 / PARTIAL_N", "c1 = c1 / N"),
    ),
}

MUTANTS = tuple(
    Mutant(name, file, within, about, old, new, cells)
    for all_edits, cells in ((_EDITS, ()), (_FUSED_EDITS, ("fused",)), (_PARTIAL_EDITS, ("partial",)))
    for (file, within), edits in all_edits.items()
    for name, about, old, new in edits
)
