"""Mutants of kernels/weight_norm.py, of rows in registers and of the loops over a row."""

from __future__ import annotations

from bench.mutants.planting import Mutant

# By the function that is spoilt: name, what is planted, the text, what it becomes.
_EDITS = {
    "_weight_norm_forward_kernel": (
        ("weight-norm-last-column-unread", "x's last column read as 0", "(n < N), ACC)", "(n < N - 1), ACC)"),
        ("weight-norm-of-the-last-chunk", "earlier chunks' squares forgotten", "squares += ", "squares = "),
        ("weight-norm-root-mean-square", "N divides the squares", "square_root(squares)", "square_root(squares / N)"),
        (
            "weight-norm-in-bf16",
            "the norm rounded to bf16",
            "    save_norm(",
            "    norm = norm.to(tl.bfloat16).to(ACC)\n    save_norm(",
        ),
        (
            "weight-norm-last-row-unwritten",
            "y's last row is never stored",
            "inverse * factor, (row < M)",
            "inverse * factor, (row < M - 1)",
        ),
    ),
    "_weight_norm_backward_kernel": (
        (
            "weight-norm-dx-along-x",
            "the part of dy along x stays in dx",
            "dys[i] - scaled[i] * parallel",
            "dys[i] - 0.0 * scaled[i] * parallel",
        ),
        (
            "weight-norm-dx-without-weight",
            "dx is not scaled",
            "factor = divide(load(weight_ptr + row, row < M, ACC), ",
            "factor = divide(1.0 + 0.0 * norm, ",
        ),
        ("weight-norm-dw-of-the-last-chunk", "earlier chunks' products forgotten", "total += ", "total = "),
        ("weight-norm-dw-without-norm", "dy x in place of dy x_hat", "dw = divide(total, norm)", "dw = total"),
    ),
}
_LOOP_EDITS = {
    "_weight_norm_forward_loop_kernel": (
        (
            "weight-norm-scale-of-the-last-block",
            "squares of earlier blocks do not follow a larger scale",
            "lanes * (shrunk * shrunk)",
            "lanes",
        ),
        (
            "weight-norm-loop-last-column",
            "x's last column is not written",
            "inverse * factor, n < N)",
            "inverse * factor, n < N - 1)",
        ),
    ),
    "_weight_norm_backward_loop_kernel": (
        ("weight-norm-loop-last-block", "dw of the last block alone", "lanes += ", "lanes = "),
        (
            "weight-norm-loop-dx-twice-scaled",
            "dx over the norm twice",
            "* factor * inverse",
            "* factor * inverse / norm",
        ),
    ),
}

MUTANTS = tuple(
    Mutant(name, "weight_norm", within, about, old, new, cells)
    for all_edits, cells in ((_EDITS, ("weights",)), (_LOOP_EDITS, ("wide weights",)))
    for within, edits in all_edits.items()
    for name, about, old, new in edits
)
