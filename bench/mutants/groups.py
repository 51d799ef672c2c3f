"""Mutants of the kernels of group norm and instance norm: where groups begin and end, what becomes of their rows."""

from __future__ import annotations

from bench.mutants.planting import Mutant

# By the file and function that is spoilt: name, what is planted, the text, what it becomes.
_EDITS = {
    ("group_norm.rows", "place"): (
        (
            "group-end-short",
            "a program's last channel is nobody's",
            "tl.minimum(c0 + step, C)",
            "tl.minimum(c0 + step - 1, C)",
        ),
        (
            "group-start-of-whole-tiles",
            "programs begin a tile's rows apart",
            "% count).to(tl.int64) * step",
            "% count).to(tl.int64) * BLOCK_C",
        ),
    ),
    ("group_norm.rows", "image_offset"): (
        ("group-images-too-near", "images an element too near to each other", "image * C * S", "image * (C * S - 1)"),
    ),
    ("group_norm.rows", "sum_rows"): (
        (
            "group-sums-of-a-row",
            "c1 and c2 of each channel by itself",
            "over_rows(accurate_sum(groups, 1), ROWS, BLOCK_C)",
            "value",
        ),
    ),
    ("group_norm.rows", "merge_rows"): (
        ("group-gaps-counted", "rows that a group does not fill count", "mask = row < per_group", "mask = row < ROWS"),
        (
            "group-n-of-whole-tiles",
            "n counts rows that a group does not fill",
            "tl.cast(S, tl.int64) * per_group",
            "tl.cast(S, tl.int64) * ROWS",
        ),
        (
            "group-last-row-left-out",
            "a group's statistics lack its last channel",
            "mask = row < per_group",
            "mask = row < per_group - 1",
        ),
    ),
    ("group_norm.rows", "merge_parts"): (
        (
            "group-parts-of-one-size",
            "every split is as long as the first",
            "even_share(part // per_group,",
            "even_share(part // per_group * 0,",
        ),
        (
            "group-last-part-dropped",
            "the last part counts as empty",
            "tl.where(part < parts,",
            "tl.where(part < parts - 1,",
        ),
        (
            "group-merge-of-the-first-step",
            "parts beyond the first step are left out",
            "range(0, parts, BLOCK_P)",
            "range(0, tl.minimum(parts, BLOCK_P), BLOCK_P)",
        ),
        ("group-n-of-a-channel", "n is one channel's", "tl.cast(S, tl.int64) * per_group", "tl.cast(S, tl.int64)"),
    ),
    ("group_norm.rows", "part_offset"): (
        (
            "group-channels-one-short",
            "groups begin a channel too near to each other",
            "group % groups * per_group",
            "group % groups * (per_group - 1)",
        ),
        (
            "group-parts-of-the-first-image",
            "every image has the first one's",
            "(group // groups * splits",
            "(group // groups * 0",
        ),
    ),
    ("group_norm.rows", "finish_group_statistics"): (
        ("group-variance-unbiased", "y from the unbiased variance", "* per_group).to(ACC)", "* per_group - 1).to(ACC)"),
        ("group-eps-left-out", "eps is not added", "eps, eps_low, ACC)", "0.0, 0.0, ACC)"),
        ("group-saved-low-left-out", "the saved mean's low part is 0", "group, low, mask)", "group, low * 0.0, mask)"),
    ),
    ("group_norm.rows", "groups_of"): (
        (
            "group-boundary-off-by-one",
            "a group's last channel has the next one's statistics",
            "c // per_group",
            "(c + 1) // per_group",
        ),
        (
            "group-statistics-of-the-first-channels",
            "every block of channels has the first groups'",
            "c // per_group",
            "(c - c0) // per_group",
        ),
        ("group-statistics-of-image-0", "every image has the first one's", "image * (C // per_group)", "image * 0"),
    ),
    ("group_norm.rows", "group_gradient_of_tiles"): (
        ("group-c1-sign", "+ x_hat c1", "- ((x - mean) - low) * slope", "+ ((x - mean) - low) * slope"),
        ("group-c2-left-out", "dx without c2", "(weight * dy - c2)", "(weight * dy)"),
        ("group-dx-without-weight", "dx without the weight", "(weight * dy - c2)", "(dy - c2)"),
        ("group-dx-without-low", "x - mean without the low part", "((x - mean) - low)", "(x - mean)"),
        ("group-c1-without-rstd", "rstd once in place of twice", "c1 * rstd", "c1"),
    ),
    ("group_norm.one_launch", "_group_norm_backward_kernel"): (
        ("group-c1-unweighted", "c1 of dy without the weight", "sum_rows(weight * dw,", "sum_rows(dw,"),
        (
            "group-sums-of-one-image",
            "every image leaves its sums in the first one's place",
            "partials_ptr + image * C",
            "partials_ptr + image * 0",
        ),
    ),
    ("group_norm.streaming", "_group_norm_stats_kernel"): (
        (
            "group-moments-of-overlapping-parts",
            "images write over each other's parts",
            "image * splits + split",
            "image + split",
        ),
        (
            "group-splits-of-tiles-uneven",
            "the last split has a tile too few",
            "even_share(split, splits, blocks(S, BLOCK_S))",
            "even_share(split, splits, tl.maximum(blocks(S, BLOCK_S) - 1, 1))",
        ),
    ),
    ("group_norm.streaming", "_group_norm_merge_kernel"): (
        ("group-merged-groups-overlap", "programs merge groups one apart", "to(tl.int64) * BLOCK_G", "to(tl.int64)"),
    ),
    ("group_norm.streaming", "_group_norm_reduce_kernel"): (
        (
            "group-sums-of-overlapping-parts",
            "images write over each other's sums",
            "image * splits + split",
            "image + split",
        ),
    ),
    ("group_norm.streaming", "_group_norm_coefficients_kernel"): (
        (
            "group-weight-of-the-first-group",
            "every group's sums have its weights",
            "group % (C // per_group) * per_group",
            "group * 0",
        ),
        ("group-c2-unweighted", "c2 of dy without the weight", "db *= weight", "db *= 1.0"),
        ("group-c1-of-the-last-step", "c1 of the last parts alone", "c1 += dw", "c1 = dw"),
        (
            "group-coefficients-over-a-channel",
            "n is one channel's",
            "tl.cast(S, tl.int64) * per_group",
            "tl.cast(S, tl.int64)",
        ),
    ),
    ("group_norm.streaming", "_group_norm_input_gradient_kernel"): (
        ("group-coefficients-swapped", "c1 for c2", "c1, c2 =", "c2, c1 ="),
        (
            "group-dx-of-the-first-tiles",
            "every split writes the last one's tiles",
            "splits - 1 - tl.program_id(1)",
            "splits - 1 - tl.program_id(1) * 0",
        ),
    ),
}

# What instance norm alone runs: its running statistics.
_INSTANCE_EDITS = {
    ("group_norm.instance", "_instance_norm_running_kernel"): (
        (
            "instance-running-variance-biased",
            "n in place of n - 1",
            " * (tl.cast(S, tl.float64) / (tl.cast(S, tl.float64) - 1.0))",
            "",
        ),
        ("instance-running-mean-of-the-last-step", "of the last images alone", "means += ", "means = "),
        ("instance-images-one-too-many", "a mean over one image too many", "tl.float64) + N", "tl.float64) + N + 1"),
        (
            "instance-last-image-dropped",
            "the last image counts as 0",
            "mask, at = (image < N)",
            "mask, at = (image < N - 1)",
        ),
        (
            "instance-momentum-swapped-in-mean",
            "momentum weighs the old running mean",
            "old_mean * (1.0 - m) + mean * m",
            "old_mean * m + mean * (1.0 - m)",
        ),
        (
            "instance-momentum-swapped-in-variance",
            "momentum weighs the old running variance",
            "old_var * (1.0 - m) + var * m",
            "old_var * m + var * (1.0 - m)",
        ),
    ),
    ("group_norm.rows", "finish_group_statistics"): (
        (
            "instance-variance-of-deviations",
            "the running variance from deviations",
            "group, var, mask)",
            "group, tl.sqrt(var), mask)",
        ),
    ),
}

MUTANTS = tuple(
    Mutant(name, file, within, about, old, new, (cells,))
    for all_edits, cells in ((_EDITS, "groups"), (_INSTANCE_EDITS, "instances"))
    for (file, within), edits in all_edits.items()
    for name, about, old, new in edits
)
