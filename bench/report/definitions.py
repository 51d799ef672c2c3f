"""What each figure of the report means, in the reader's words."""

from __future__ import annotations

from bench.results.thresholds import ACCURACY_MARGIN, NOISY_SPREAD, SUBJECT

DEFINITIONS = (
    (
        "time",
        "Median of all samples of one call, with the 10th and 90th percentile beside it. On a GPU, device events "
        "around each call, after a warm-up; a buffer larger than any L2 is cleared before each call, outside of them.",
    ),
    (
        "spread",
        "The 90th percentile less the 10th, over the median. "
        f"Above {NOISY_SPREAD:.0%} a cell is called noisy; differences inside it mean nothing.",
    ),
    (
        "GB/s",
        "The bytes that the operator must move at least (each activation once for a pass that cannot be avoided), over "
        "the median time. It is not the traffic that an implementation causes: one that moves more reads lower.",
    ),
    (
        "of copy",
        "GB/s over the bandwidth of a large device-to-device copy (bytes read plus bytes written), measured in this "
        "run by the same clock. It is a measured roof, not the data sheet's.",
    ),
    (
        "speedup",
        "The baseline's median over this provider's, same cell, same run; above 1 is faster. "
        "Given only for right outputs timed by a GPU's clock. Means over cells are geometric; their 95% interval is "
        "that of these cells' medians, and says nothing about cells that were not measured.",
    ),
    (
        "best peer",
        f"For each cell the fastest provider other than {SUBJECT} whose output is right, the baseline included. "
        "It may be another one in every cell, which makes it harder to beat than any single peer.",
    ),
    (
        "longer by",
        "What a call takes more than the best peer's. A large cell that loses little stands before a small one that "
        "loses much, for that is what the reader pays.",
    ),
    (
        "norms of a model",
        "The time of every shape as often as the model has it, added up: calls one after another, none of whose data "
        "is in the cache. Given only where every shape has a time.",
    ),
    (
        "rel_l2_error",
        "Euclidean norm of output less reference, over the norm of the reference. "
        "The reference is computed in float64 from the inputs as rounded to the cell's dtype. "
        "Judges fp32 tensors, at sixteen unit roundoffs, more for sums whose terms cancel.",
    ),
    (
        "floor_ratio",
        "rel_l2_error over the error of the reference itself once rounded to the dtype: no output can do better than "
        "about 1.00, where only the last rounding is left. Judges fp16 and bf16 tensors.",
    ),
    (
        "inputs",
        "The family that x is drawn from. All but normal are there to be judged, and are not timed: mean/std of a "
        "given size, an outlier, no variance, values near the ends of the dtype, NaN and Inf.",
    ),
    (
        "error_vs_torch",
        "rel_l2_error over that of PyTorch's eager operator on the same inputs; below 1 is more accurate. "
        "Judges fp32 tensors, whose floor is out of reach; what rounding a statistic once can make is allowed, and an "
        "error below half a unit in the last place counts as no larger than PyTorch's.",
    ),
    (
        "scale_error",
        "How far the output's scale along the reference is off, averaged over rows or channels. Random rounding "
        "averages out of it; a wrong divisor, a wrong eps or a lost column does not.",
    ),
    (
        "max_ulp",
        "The largest single error, in units in the last place of the reference. Kept in the records, not judged.",
    ),
    (
        "worst figure",
        "The figure of a cell that is nearest to its bound, or furthest beyond it, over all its output tensors. "
        "NaN and Inf must stand exactly where the reference has them.",
    ),
    (
        "more accurate",
        f"A right peer's rel_l2_error is smaller by more than {ACCURACY_MARGIN:.0%} in some tensor; errors below "
        "fp32's unit roundoff count as equal to it. Two right kernels that sum in another order stay inside it.",
    ),
    (
        "hot, with host, in a graph, kernels alone",
        "The same call in other ways: its data left in the cache by the last one; one of many in a row, the host's "
        "work included; replayed in a CUDA graph; the time of its kernels added up.",
    ),
    (
        "median from, to; standard error",
        "The 95% interval of the median by ranks, and the standard error of the mean over the mean.",
    ),
    (
        "retaken, throttled by",
        "Samples thrown away and taken again because the GPU's clocks were held down, and the reason that it gave.",
    ),
    (
        "compile ms",
        "Wall time of building the cell and of its first call, on the host; small where a cache was filled before.",
    ),
)

STATUS_WORDS = (
    ("ok", "ran, and every tensor is within its bounds"),
    ("wrong", "ran, and a tensor is beyond a bound; it gets no speedup"),
    ("impossible", "its time is shorter than the memory can make it, so something else was timed; it gets no speedup"),
    ("oom", "ran out of memory"),
    ("crash", "raised an error"),
    ("timeout", "did not come back in time"),
    ("unsupported", "the provider does not serve this case and says why"),
    ("skipped", "was not run"),
)
