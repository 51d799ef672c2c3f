"""Mutants of kernels/batch_norm/sync.py: messages, the merge of all ranks', and what follows from their count."""

from __future__ import annotations

from bench.mutants.planting import Mutant

# Of the first rank that has any.
_FIRST_COUNT = "tl.sum(tl.where(rank == first, counts, 0.0), 1, keep_dims=True)"
# By the function that is spoilt: name, what is planted, the text, what it becomes.
_EDITS = {
    "_sync_batch_norm_message_kernel": (
        (
            "sync-message-without-low",
            "a rank's mean without its low part",
            "mean, low, m2, BLOCK_N)",
            "mean, low * 0.0, m2, BLOCK_N)",
        ),
        (
            "sync-message-of-the-first-channels",
            "every block of channels writes in the first one's place",
            "1, c0, C, mean",
            "1, c0 * 0, C, mean",
        ),
        ("sync-message-variance", "M2 over the count", "mean, low, m2, BLOCK_N)", "mean, low, m2 / count, BLOCK_N)"),
    ),
    "_sync_batch_norm_merge_kernel": (
        (
            "sync-ranks-of-one-count",
            "every rank that has any counts as much",
            "mean, low, m2 = merge_all_moments(counts, means",
            "counts = n / ranks * (counts > 0.0).to(tl.float64)\n    mean, low, m2 = merge_all_moments(counts, means",
        ),
        (
            "sync-last-rank-unread",
            "the last rank's moments are 0",
            "mask, last = (rank < ranks)",
            "mask, last = (rank < ranks - 1)",
        ),
        (
            "sync-a-rank-merged-twice",
            "the last rank's message is its neighbour's",
            "rank.to(tl.int64) *",
            "tl.minimum(rank, ranks - 2).to(tl.int64) *",
        ),
        ("sync-messages-without-the-count", "messages are read 3 C apart", "(3 * plane + 2)", "(3 * plane)"),
        (
            "sync-lows-left-out",
            "ranks' means without their low parts",
            "load(message + plane + c, mask, ACC)",
            "0.0 * load(message + plane + c, mask, ACC)",
        ),
        (
            "sync-mean-of-float32-products",
            "the means weighed and added in float32",
            "counts > 0.0, divisor, first_mean, 1)\n",
            "counts > 0.0, divisor, first_mean, 1)\n"
            "    mean, low = tl.sum(counts.to(ACC) * means, 1, keep_dims=True) / divisor.to(ACC), 0.0 * low\n",
        ),
        (
            "sync-variance-by-one-ranks-count",
            "M2 of all ranks over one's count",
            "divisor.to(ACC),",
            f"{_FIRST_COUNT}.to(ACC),",
        ),
        (
            "sync-running-statistics-kept",
            "running buffers as they were",
            "tl.where(some, momentum, 0.0)",
            "tl.where(some, 0.0, 0.0)",
        ),
        ("sync-count-of-one-rank", "dx by one rank's count", "n.to(ACC))", f"{_FIRST_COUNT}.to(ACC))"),
        ("sync-eps-left-out", "eps is not added", "C, eps,\n        eps_low,", "C, 0.0,\n        0.0,"),
    ),
    "moments": (
        (
            "sync-count-of-one-image",
            "a rank counts one image",
            "float(plan.count)",
            "plan.count / x.shape[0]",
        ),
    ),
    "sums": (
        (
            "sync-sums-without-low",
            "sums about the mean's high part",
            "x, mean, rstd, None, None)",
            "x, mean * torch.tensor([[1.0], [0.0]]).to(mean), rstd, None, None)",
        ),
    ),
    "add_sums": (
        (
            "sync-last-ranks-sums-dropped",
            "dx without the last rank's sums",
            "messages.view(1, ranks, 2 * channels)",
            "messages[:-1].reshape(1, ranks - 1, 2 * channels)",
        ),
    ),
    "input_gradient": (
        ("sync-sums-swapped", "dw for db in dx", "total[0], total[1], count", "total[1], total[0], count"),
        ("sync-dx-by-its-own-count", "dx by the count of this rank's share", "total[1], count)", "total[1], None)"),
        ("sync-dx-without-weight", "dx without the weight", "mean, rstd, weight, None,", "mean, rstd, None, None,"),
    ),
    "normalize": (
        ("sync-y-without-bias", "y without the bias", "rstd, weight, bias, plan)\n", "rstd, weight, None, plan)\n"),
    ),
}

MUTANTS = tuple(
    Mutant(name, "batch_norm.sync", within, about, old, new, ("sync",))
    for within, edits in _EDITS.items()
    for name, about, old, new in edits
)
