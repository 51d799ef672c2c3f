"""Mutants of kernels/row_norm.py where a row is held in registers: layer norm and RMS norm."""

from __future__ import annotations

from bench.mutants.planting import Mutant

# By the function that is spoilt: name, what is planted, the text, what it becomes.
_EDITS = {
    "_row_norm_forward_kernel": (
        (
            "last-column-unread",
            "x's last column read as 0",
            "(row < M) & (n < N), ACC)",
            "(row < M) & (n < N - 1), ACC)",
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
            "zeros_like(squares) + N)",
            "zeros_like(squares) + N + 1)",
        ),
        ("variance-unbiased", "N - 1 divides the squares", "zeros_like(squares) + N)", "zeros_like(squares) + N - 1)"),
        ("eps-left-out", "eps is not added", "+ from_pair(eps, eps_low, ACC))", "+ 0.0)"),
        ("eps-1e-3", "1e-3 in place of the eps given", "from_pair(eps, eps_low, ACC)", "1e-3"),
        (
            "eps-outside-the-root",
            "1 / (sqrt(var) + eps)",
            "reciprocal_sqrt(divide(squares, tl.zeros_like(squares) + N) + from_pair(eps, eps_low, ACC))",
            "1.0 / (tl.sqrt(divide(squares, tl.zeros_like(squares) + N)) + from_pair(eps, eps_low, ACC))",
        ),
        (
            "rstd-in-bf16",
            "rstd rounded to bf16",
            "    _save_statistics(",
            "    rstd = rstd.to(tl.bfloat16).to(ACC)\n    _save_statistics(",
        ),
        (
            "rstd-in-fp16",
            "rstd rounded to fp16",
            "    _save_statistics(",
            "    rstd = rstd.to(tl.float16).to(ACC)\n    _save_statistics(",
        ),
        (
            "one-pass-variance",
            "E[x^2] - mean^2",
            "tl.sum(d * d, 1, keep_dims=True)\n    rstd = reciprocal_sqrt(divide(squares, tl.zeros_like(squares) + N)",
            "tl.sum(xs[i] * xs[i], 1, keep_dims=True)\n"
            "    rstd = reciprocal_sqrt(divide(squares, tl.zeros_like(squares) + N) - mean * mean",
        ),
        (
            "squares-of-masked-lanes",
            "lanes past the row's end count mean^2 each",
            "d = tl.where(n < N, (xs[i] - mean) - low, 0.0)",
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
    "_row_norm_backward_kernel": (
        ("c1-sign", "+ x_hat c1", "- x_hats[i] * c1", "+ x_hats[i] * c1"),
        ("c2-sign", "+ c2", "(wdys[i] - c2)", "(wdys[i] + c2)"),
        ("c1-not-divided", "c1 is the sum, not the mean", "c1 = c1 / N", "c1 = c1 * 1.0"),
        ("c1-over-n-plus-1", "N + 1 divides c1", "c1 = c1 / N", "c1 = c1 / (N + 1)"),
        ("c1-of-the-last-chunk", "earlier chunks' share of c1 forgotten", "c1 += ", "c1 = "),
        ("c2-left-out", "layer norm's dx without c2", "c2 = c2 / N", "c2 = c2 * 0.0"),
        ("c2-of-dy", "c2 without the weight", "c2 += tl.sum(wdy,", "c2 += tl.sum(dy,"),
        (
            "dx-without-weight",
            "dy in place of weight dy",
            "wdy = _affine(dy, weight_ptr, None, n, n < N, ACC)",
            "wdy = dy",
        ),
        ("dx-without-rstd", "dx is not scaled", "- x_hats[i] * c1) * rstd", "- x_hats[i] * c1)"),
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
    "_affine": (
        (
            "weight-twice",
            "the weight squared",
            "x_hat *= load(weight_ptr + n, mask, ACC)",
            "w = load(weight_ptr + n, mask, ACC)\n        x_hat *= w * w",
        ),
        (
            "bias-before-weight",
            "(x_hat + bias) weight",
            "x_hat *= load(weight_ptr + n, mask, ACC)",
            "if bias_ptr is not None:\n"
            "            x_hat += load(bias_ptr + n, mask, ACC)\n"
            "        x_hat *= load(weight_ptr + n, mask, ACC)",
        ),
    ),
    "_save_statistics": (
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
    "_load_statistics": (
        (
            "rstd-of-the-next-row",
            "the backward takes row + 1's rstd",
            "load(rstd_ptr + row, row < M, ACC)",
            "load(rstd_ptr + tl.minimum(row + 1, M - 1), row < M, ACC)",
        ),
    ),
}

MUTANTS = tuple(
    Mutant(name, "row_norm", within, about, old, new)
    for within, edits in _EDITS.items()
    for name, about, old, new in edits
)
