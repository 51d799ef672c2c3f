"""Mutants of kernels/batch_norm/, forward: tiles, statistics, running buffers, y."""

from __future__ import annotations

from bench.mutants.planting import Mutant

# By the file and function that is spoilt: name, what is planted, the text, what it becomes.
_EDITS = {
    ("batch_norm.tiles", "addresses"): (
        (
            "batch-channels-stride-short",
            "channels-last positions C - 1 apart in place of C",
            "offsets = s * C + c",
            "offsets = s * (C - 1) + c",
        ),
        (
            "batch-channel-stride-short",
            "contiguous channels S - 1 apart in place of S",
            "offsets = c * S + s",
            "offsets = c * (S - 1) + s",
        ),
        (
            "batch-channel-group-ignored",
            "every group of channels is read from and written to the first",
            "(batch * C + c0) * S + s0",
            "(batch * C) * S + s0",
        ),
        (
            "batch-channels-last-group-ignored",
            "the same, channels-last",
            "s0.to(tl.int64) * C + c0",
            "s0.to(tl.int64) * C",
        ),
        (
            "batch-tail-counts-full",
            "a ragged tile counts as a whole one",
            "tl.minimum(BLOCK_S, S - s0)",
            "tl.minimum(BLOCK_S, S)",
        ),
    ),
    ("batch_norm.tiles", "channel_values"): (
        (
            "batch-channels-of-the-first-group",
            "per-channel vectors of the first group for all",
            "c = c0 + tl.arange",
            "c = tl.arange",
        ),
    ),
    ("batch_norm.statistics", "moments_of_tiles"): (
        (
            "batch-last-tile-dropped",
            "a split's last tile of several has no share in the statistics",
            "range(first, last)",
            "range(first, tl.maximum(last - 1, first + 1))",
        ),
        (
            "batch-tile-shared-by-two-splits",
            "a split's last tile is counted in the next split too",
            "range(first, last)",
            "range(tl.maximum(first - 1, 0), last)",
        ),
        (
            "batch-stale-mean",
            "a split's mean is that of its first tile",
            "count, mean, low, m2 = merge_moments(count, mean, low, m2, tile_count, tile_mean, tile_low, tile_m2)",
            "mean, low = tl.where(count == 0.0, tile_mean, mean), tl.where(count == 0.0, tile_low, low)\n"
            "        count, _, _, m2 = merge_moments(count, mean, low, m2, tile_count, tile_mean, "
            "tile_low, tile_m2)",
        ),
        (
            "batch-partial-low-left-out",
            "a split's mean without its low part",
            "return mean, tl.where(is_finite(low), low, 0.0), m2",
            "return mean, low * 0.0, m2",
        ),
    ),
    ("batch_norm.statistics", "merge_splits"): (
        (
            "batch-last-split-dropped",
            "the last split counts as empty",
            "split_count = tl.where(split < splits,",
            "split_count = tl.where(split < tl.maximum(splits - 1, 1),",
        ),
    ),
    ("batch_norm.statistics", "finish_statistics"): (
        ("batch-variance-unbiased", "y from the unbiased variance", "divide(m2, n)", "divide(m2, n - 1.0)"),
        ("batch-eps-left-out", "eps is not added", "eps, eps_low, ACC)", "0.0, 0.0, ACC)"),
        ("batch-eps-1e-3", "1e-3 in place of the eps given", "eps, eps_low, ACC)", "1e-3, 0.0, ACC)"),
        (
            "batch-eps-outside-the-root",
            "1 / (sqrt(var) + eps)",
            "rstd_of(divide(m2, n), eps, eps_low, ACC)",
            "1.0 / (tl.sqrt(divide(m2, n)) + eps)",
        ),
        (
            "batch-rstd-in-bf16",
            "rstd rounded to bf16",
            "rstd_of(divide(m2, n), eps, eps_low, ACC)",
            "rstd_of(divide(m2, n), eps, eps_low, ACC).to(tl.bfloat16).to(ACC)",
        ),
        (
            "batch-saved-low-left-out",
            "the saved mean's low part is 0",
            "store(mean_ptr + C + c, low, mask)",
            "store(mean_ptr + C + c, low * 0.0, mask)",
        ),
        ("batch-running-variance-biased", "n in place of n - 1", "(n.to(tl.float64) - 1.0)", "n.to(tl.float64)"),
        (
            "batch-momentum-swapped-in-mean",
            "momentum weighs the old running mean",
            "old_mean * (1.0 - m) + new_mean * m",
            "old_mean * m + new_mean * (1.0 - m)",
        ),
        (
            "batch-momentum-swapped-in-variance",
            "momentum weighs the old running variance",
            "old_var * (1.0 - m) + unbiased * m",
            "old_var * m + unbiased * (1.0 - m)",
        ),
    ),
    ("batch_norm.statistics", "statistics"): (
        (
            "batch-evaluation-forgets-eps",
            "rstd from running_var alone",
            "rstd_of(variance, eps, eps_low, ACC)",
            "rstd_of(variance, 0.0, 0.0, ACC)",
        ),
    ),
    ("batch_norm.streaming", "_batch_norm_merge_kernel"): (
        (
            "batch-merge-of-the-first-channels",
            "every program merges the first block of channels",
            "tl.program_id(0) * BLOCK_N",
            "tl.program_id(0) * 0",
        ),
    ),
    ("batch_norm.streaming", "_batch_norm_normalize_kernel"): (
        (
            "batch-weight-left-out",
            "y without the weight",
            "scale = scale_of(rstd, weight_ptr, c0, C, BLOCK_C, ACC)",
            "scale = rstd",
        ),
    ),
    ("batch_norm.output", "normalized"): (
        (
            "batch-bias-before-weight",
            "the bias is scaled too",
            "tl.fma((x - mean) - low, scale, shift)",
            "(((x - mean) - low) + shift) * scale",
        ),
        ("batch-low-dropped-in-y", "x - mean without the low part", "(x - mean) - low,", "x - mean,"),
    ),
    ("batch_norm.launch", "batch_norm_eval_forward"): (
        (
            "batch-evaluation-by-the-batch",
            "the batch's statistics in evaluation",
            "        with on(x):",
            "        over = [d for d in range(x.dim()) if d != 1]\n"
            "        running_var, running_mean = torch.var_mean(x.float(), over, correction=0)\n"
            "        with on(x):",
        ),
    ),
}

# In the same form, of what a ReLU and a residual add.
_FUSED_EDITS = {
    ("batch_norm.activation", "relu"): (
        ("batch-relu-leaks", "a hundredth of what is negative", "0.0, x)", "0.01 * x, x)"),
        ("batch-relu-of-one", "nothing below one", "tl.where(x <= 0.0,", "tl.where(x <= 1.0,"),
    ),
    ("batch_norm.output", "store_output"): (
        (
            "batch-residual-left-out",
            "the residual is read and not added",
            "y += load(residual_ptr + at, mask, ACC, EVICT)",
            "y += 0.0 * load(residual_ptr + at, mask, ACC, EVICT)",
        ),
        (
            "batch-norm-rounded-before-the-residual",
            "bf16 between the norm and the sum, as of two operators",
            "y += load(",
            "y = y.to(tl.bfloat16).to(ACC) + load(",
        ),
        (
            "batch-signs-before-the-residual",
            "the signs of the norm, not of the sum",
            "y <= 0.0, tile,",
            "normalized(x, mean, low, scale, shift) <= 0.0, tile,",
        ),
    ),
    ("batch_norm.activation", "store_signs"): (
        (
            "batch-signs-in-the-other-order",
            "a byte's first element in its last bit",
            "<< tl.arange(0, LANES)[None, :]",
            "<< (LANES - 1 - tl.arange(0, LANES)[None, :])",
        ),
        ("batch-signs-not-transposed", "a channels-last tile packed along its positions", "if LAST:", "if not LAST:"),
    ),
    ("batch_norm.activation", "sign_addresses"): (
        ("batch-signs-of-one-group", "every group of channels keeps its signs in one place", " + c0 // BLOCK_C", ""),
    ),
}

MUTANTS = tuple(
    Mutant(name, file, within, about, old, new, cells)
    for all_edits, cells in ((_EDITS, ()), (_FUSED_EDITS, ("batch fused",)))
    for (file, within), edits in all_edits.items()
    for name, about, old, new in edits
)
