"""Mutants of kernels/batch_norm/, backward: dx, dw, db."""

from __future__ import annotations

from bench.mutants.planting import Mutant

# By the file and function that is spoilt: name, what is planted, the text, what it becomes.
_EDITS = {
    ("batch_norm.gradients", "sums_of_tiles"): (
        (
            "batch-dw-without-rstd",
            "x - mean in place of x_hat",
            "accurate_sum(dw, 1) * rstd",
            "accurate_sum(dw, 1)",
        ),
        (
            "batch-dw-in-bf16",
            "dw accumulated in bf16",
            "dw += weight_terms(dz, x, mean, low, mask)",
            "dw = (dw + weight_terms(dz, x, mean, low, mask)).to(tl.bfloat16).to(ACC)",
        ),
        ("batch-db-of-rounded-dy", "dy rounded to bf16 in db", "db += dz", "db += dz.to(tl.bfloat16).to(ACC)"),
        (
            "batch-sums-without-the-last-tile",
            "a split's last tile of several adds nothing to dw and db",
            "range(first, last)",
            "range(first, tl.maximum(last - 1, first + 1))",
        ),
        ("batch-dw-of-the-last-tile", "a split keeps the dw of its last tile alone", "dw += ", "dw = "),
        (
            "batch-dw-off-by-1e-5",
            "dw a hundred-thousandth too large",
            "accurate_sum(dw, 1) * rstd",
            "accurate_sum(dw, 1) * rstd * 1.00001",
        ),
        (
            "batch-dw-off-by-1e-6",
            "dw a millionth too large",
            "accurate_sum(dw, 1) * rstd",
            "accurate_sum(dw, 1) * rstd * 1.000001",
        ),
        (
            "batch-dw-of-one-channel-off-by-3e-6",
            "the first channel's dw a little too large",
            "accurate_sum(dw, 1) * rstd",
            "accurate_sum(dw, 1) * rstd * (1.0 + tl.where(c0 + tl.arange(0, BLOCK_C)[:, None] == 0, 3e-6, 0.0))",
        ),
        (
            "batch-dw-in-19-bits",
            "a split's dw loses its last five bits",
            "accurate_sum(dw, 1) * rstd",
            "((accurate_sum(dw, 1) * rstd).to(tl.uint32, bitcast=True) & 0xFFFFFFE0).to(tl.float32, bitcast=True)",
        ),
        (
            "batch-db-off-by-1e-5",
            "db a hundred-thousandth too large",
            "accurate_sum(db, 1)",
            "accurate_sum(db, 1) * 1.00001",
        ),
        (
            "batch-db-off-by-1e-6",
            "db a millionth too large",
            "accurate_sum(db, 1)",
            "accurate_sum(db, 1) * 1.000001",
        ),
    ),
    ("batch_norm.gradients", "weight_terms"): (
        ("batch-dw-without-low", "x - mean without the low part", "((x - mean) - low)", "(x - mean)"),
    ),
    ("batch_norm.gradients", "input_gradient"): (
        (
            "batch-dx-without-low",
            "x - mean without the low part, as PyTorch has it",
            "((x - mean) - low)",
            "(x - mean)",
        ),
        ("batch-c1-sign", "+ (x - mean) c1", "- ((x - mean) - low) * c1", "+ ((x - mean) - low) * c1"),
        ("batch-c2-sign", "+ c2", "(dz - c2)", "(dz + c2)"),
        ("batch-c2-left-out", "dx without the mean of dy", "(dz - c2)", "dz"),
    ),
    ("batch_norm.gradients", "input_gradient_of_tiles"): (
        (
            "batch-c1-not-divided",
            "c1 is the sum, not the mean",
            "c1 = divide(dw * rstd, n)",
            "c1 = dw * rstd",
        ),
        ("batch-c1-without-rstd", "rstd once in place of twice", "divide(dw * rstd, n)", "divide(dw, n)"),
    ),
    ("batch_norm.streaming", "_batch_norm_input_gradient_kernel"): (
        (
            "batch-dx-without-weight",
            "dx without the weight",
            "scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)",
            "scale = rstd",
        ),
        (
            "batch-dx-weight-twice",
            "the weight squared",
            "scale = scale_of(rstd, ",
            "scale = scale_of(scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC), ",
        ),
        (
            "batch-n-of-whole-tiles",
            "n counts the masked positions",
            "n = elements_before(tiles, S, BLOCK_S).to(ACC)",
            "n = (tiles * BLOCK_S).to(ACC)",
        ),
    ),
    ("batch_norm.launch", "batch_norm_backward"): (
        (
            "batch-dx-of-evaluation",
            "dx by evaluation's formula in training",
            "if evaluating or dx is None else (None, None)",
            "\n        need_dx = evaluating",
        ),
    ),
}

# In the same form, of what a ReLU and a residual add.
_FUSED_EDITS = {
    ("batch_norm.gradients", "load_gradient"): (
        ("batch-relu-lets-all-gradients-through", "dz is dy", "tl.where(blocked, 0.0, dy)", "dy"),
        (
            "batch-sign-without-bias",
            "the sign of what is left when the bias is left out",
            "normalized(x, mean, low, scale, shift)",
            "normalized(x, mean, low, scale, shift * 0.0)",
        ),
        (
            "batch-sign-without-weight",
            "the sign with a weight of one half",
            "normalized(x, mean, low, scale, shift)",
            "normalized(x, mean, low, scale * 0.5, shift)",
        ),
    ),
    ("batch_norm.gradients", "store_gradients"): (
        ("batch-dresidual-is-dx", "the residual gets the gradient of x", "dz_ptr + at, dz,", "dz_ptr + at, dx,"),
    ),
    ("batch_norm.activation", "load_signs"): (
        ("batch-signs-one-bit-on", "the sign of the element after", "[None, :]) & 1", "[None, :] + 1) & 1"),
    ),
    ("batch_norm.launch", "batch_norm_backward"): (
        ("batch-bias-not-handed-on", "no bias for the sign", "bias if relu and signs is None else None", "None"),
    ),
}

MUTANTS = tuple(
    Mutant(name, file, within, about, old, new, cells)
    for all_edits, cells in ((_EDITS, ()), (_FUSED_EDITS, ("batch fused",)))
    for (file, within), edits in all_edits.items()
    for name, about, old, new in edits
)
