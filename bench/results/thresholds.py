"""The numbers of the report that somebody chose, each with its reason."""

SUBJECT = "normlib"  # the provider that the verdicts are about, where --subject names no other

# The figure that a tensor's dtype is judged by. fp32 cannot reach its rounding floor, so it is held against torch.
JUDGED_BY = {"fp16": "floor_ratio", "bf16": "floor_ratio", "fp32": "error_vs_torch"}

# Lowest and highest bound, by figure and dtype, as accuracy.py has them (a test holds the two together; that
# file imports torch). Figures draw the bounds that the records carry, and these where no record carries one.
# The bound of fp32's scale error falls with the number of statistics, from the value for one to the value for many.
BOUNDS = {
    ("rel_l2_error", "fp32"): (2.0**-20, 2.0**-20),
    ("floor_ratio", "fp16"): (1.05, 1.05),
    ("floor_ratio", "bf16"): (1.05, 1.05),
    ("error_vs_torch", "fp32"): (2.0, 2.0),
    ("scale_error", "fp32"): (1e-7, 1e-7 + 2.0**-22),
    ("scale_error", "fp16"): (1e-5, 1e-5),
    ("scale_error", "bf16"): (1e-5, 1e-5),
}

# What is drawn against size and mean: fp32's error itself, for a ratio to torch's also moves with torch's.
DRAWN_BY = {"fp16": "floor_ratio", "bf16": "floor_ratio", "fp32": "rel_l2_error"}

# fp32's unit roundoff: errors below it are luck, and count as equal to it.
LEAST_ERROR = 2.0**-24

# Two correct kernels differ by a few percent in the order of their sums; beyond this a peer is more accurate.
ACCURACY_MARGIN = 0.05

# (p90 - p10) / median above this: the cell's time is shown as noisy.
NOISY_SPREAD = 0.10

# Faster than the copy by more than this is no memory traffic: the data stayed in a cache, or bytes are miscounted.
ABOVE_ROOF = 1.05

DOTS = 20  # quantiles of a cell's samples that are drawn, each a twentieth of them
LEAST_SHOWN = 0.001  # of a mean: a smaller error is below what a percentage is written with
ROWS_SHOWN = 20  # rows of a static table before the rest is folded away
# Beyond these a page takes seconds to open and fills a telephone's memory: rows of the table of all cells, and entries
# of any other list.
TABLE_ROWS = 20_000
LISTED = 500
# Where a width class ends: up to 1,024 columns a warp or two hold a row, beyond 8,192 no program holds it in registers;
# up to 64 channels few programs share a batch norm's work, beyond 512 there are as many as a GPU has processors.
WIDTHS = {"columns": (1024, 8192), "channels": (64, 512)}
SUMMED_UP = 10  # losses in the summary for a pull request
WORST_SHOWN = 8  # cells in an operator's table of worst errors

# Of more squares a map writes no numbers, and of more cells a line over the run keeps each stretch's extremes: beyond
# both nothing could be told apart, and each is an element of the page.
SQUARES_WRITTEN = 600
POINTS_DRAWN = 400
LINE_POINTS = 40  # of a provider's line against size: some eight pixels of a panel each
DOTS_AN_OCTAVE = 4  # dots of a scatter: a panel has some twelve octaves, 25 pixels each
HEAT_LIMIT = 2.0  # a heat map's colour is full at this speedup and at one over it
SMALLEST_SHARE = 1e-4  # errors under this share of their bound are drawn at the edge of the figure

# Where the family `normal` stands on an axis of mean/std: its largest, as bench/cases/random_inputs.py draws it.
LARGEST_NORMAL_OFFSET = 3.0
LARGEST_ERROR_DRAWN = 10.0  # a result that has nothing to do with the truth; what is beyond, NaN too, is drawn there
