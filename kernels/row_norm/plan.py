"""Plans of rows of N columns: in registers as chunks, in a loop, or backward in slices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from normlib.kernels.plan import Device, cdiv, launch_options, next_power_of_2

# A row is held in registers up to this many columns (forward by itemsize), and in a loop beyond. Ahead-of-time
# compilation shows no spills below these for any target (`python -m bench.audit`).
FORWARD_REGISTER_COLUMNS = {2: 16384, 4: 16384, 8: 8192}
BACKWARD_REGISTER_COLUMNS = 8192
# Padding a row to one power of two wastes lanes; splitting it costs a reduction a chunk. Below this, pad.
CHUNK_FROM = 512
MAX_CHUNKS = 3


def row_chunks(n: int) -> tuple[tuple[int, int], ...]:
    """Returns a row of n columns as (offset, power-of-two size) chunks; the last one may reach past the end.

    >>> row_chunks(7168), row_chunks(1000), row_chunks(1600)
    (((0, 4096), (4096, 2048), (6144, 1024)), ((0, 1024),), ((0, 1024), (1024, 512), (1536, 64)))
    """
    chunks: list[tuple[int, int]] = []
    offset = 0
    while offset < n:
        rest = n - offset
        padded = next_power_of_2(rest)
        last = len(chunks) == MAX_CHUNKS - 1 or padded <= CHUNK_FROM or 8 * (padded - rest) < padded
        size = padded if last else padded // 2
        chunks.append((offset, size))
        offset += size
    return tuple(chunks)


@dataclass(frozen=True)
class RowPlan:
    """Rows in registers, as `chunks`, block_m of them a tile; or, without chunks, in a loop over block_n columns.

    Forward such a loop has a grid of `programs` at most, which take one row after another.
    """

    block_m: int
    options: dict[str, int | bool]
    chunks: tuple[tuple[int, int], ...] = ()
    block_n: int = 0
    programs: int = 0

    @property
    def kind(self) -> str:
        return "rows in registers" if self.chunks else "loop over a row"


def row_plans(direction: str, n: int, itemsize: int) -> str:
    """Returns the name of what rows of n columns are tuned for: widths up to the next power of two, one itemsize."""
    loop = "_loop" if direction == "forward" and n > FORWARD_REGISTER_COLUMNS[itemsize] else ""
    return f"row_{direction}{loop} {next_power_of_2(n)} {itemsize}"


# Threads of a multiprocessor that loop over rows: those that can have 128 registers, for with 64 the loops spill.
LOOP_THREADS = 512
# Elements of a row that each of them has in flight by itemsize: 32 KB a multiprocessor, 16 in float64. Memory of
# 4.8 TB/s at a latency of 0.7 us wants 26 KB of each of an H200's 132 (Little's law).
LOOP_ELEMENTS = {2: 32, 4: 16, 8: 4}


@cache
def _forward_loop(n: int, itemsize: int, device: Device, tensors: int) -> RowPlan:
    """Returns a plan of as many rows at a time as the cache holds, so that their second sweep finds them there.

    Where rows are so long that it holds fewer than there are multiprocessors, some are idle, and the others draw less
    from memory than all would; their second sweep, from the cache, is the faster for it. Below a quarter of them every
    multiprocessor takes a row instead, and meets what is left of it. Where that pays is an estimate: no GPU has been
    asked yet, and `l2_percent` is there to be tuned.
    """
    chosen = device.tuning.of(
        row_plans("forward", n, itemsize),
        threads=LOOP_THREADS,
        # Of the cache, what these rows may take of all tensors: twice batch norm's share, which is only for its loads.
        l2_percent=80,
    )
    at_once = LOOP_THREADS // chosen["threads"]
    resident = at_once * device.multiprocessors
    held = chosen["l2_percent"] * device.l2 // 100 // (n * itemsize * tensors)
    return RowPlan(
        block_m=1,
        options=launch_options(chosen["threads"], device, at_once),
        block_n=LOOP_ELEMENTS[itemsize] * chosen["threads"],
        programs=min(held, resident) if 4 * held >= device.multiprocessors else resident,
    )


@cache
def row_forward(n: int, itemsize: int, device: Device, tensors: int = 2) -> RowPlan:
    """Returns the forward plan of rows of which `tensors` activations move: x and y, with a residual also that and z.

    It depends on the columns, so that a row's bits do not depend on how many rows there are, and but for the number of
    programs on nothing else: with a residual the bits are the same.
    """
    if n > FORWARD_REGISTER_COLUMNS[itemsize]:
        return _forward_loop(n, itemsize, device, tensors)
    chunks = row_chunks(n)
    width = sum(size for _, size in chunks)
    # 4096 elements and 128 threads a program keep 32 values a thread and some 8 KB of loads in flight.
    chosen = device.tuning.of(
        row_plans("forward", n, itemsize),
        elements=4096 // max(itemsize // 4, 1),
        threads=128 if width * itemsize <= 16384 else 256 if width <= 8192 else next_power_of_2(width) // 32,
    )
    block_m = max(chosen["elements"] // next_power_of_2(width), 1)
    return RowPlan(block_m=block_m, options=launch_options(chosen["threads"], device), chunks=chunks)


@dataclass(frozen=True)
class RowBackwardPlan:
    """A persistent grid of `programs`; each leaves one row of partial dw and db.

    With `rows.chunks` one kernel does it all. So it does with `slices` programs a row, of `rows.block_n` columns each,
    that wait for each other once in `block_rows` rows. Without either, the input gradient loops over the row, and the
    weight's are summed by a kernel of their own over (programs, column blocks of `block_columns`), `block_rows` rows at
    a time.
    """

    rows: RowPlan
    programs: int
    block_rows: int = 1
    block_columns: int = 0
    slices: int = 0

    @property
    def kind(self) -> str:
        return "slices, barrier" if self.slices else self.rows.kind


# Columns of a slice by itemsize, with 256 threads: dw, db and the weight of a slice stay in registers, next to dy and
# x, in the 128 registers that two programs a multiprocessor leave a thread.
SLICE = {2: 4096, 4: 2048, 8: 1024}
SLICE_THREADS, SLICE_PROGRAMS = 256, 2


def _sliced(m: int, n: int, itemsize: int, device: Device) -> RowBackwardPlan | None:
    """Returns the plan in slices, all programs resident; None if the device has no barrier or too few programs."""
    resident = SLICE_PROGRAMS * device.multiprocessors
    columns = SLICE[itemsize]
    slices = cdiv(n, columns)
    if not device.cooperative or slices > resident:
        return None
    groups = min(resident // slices, m)
    # dy and x of two rounds wait in cache, in the share of it that batch norm's first sweeps may take.
    waiting = 2 * 2 * slices * groups * columns * itemsize
    rows = max(min(40 * device.l2 // 100 // waiting, cdiv(m, groups)), 1)
    options = {**launch_options(SLICE_THREADS, device, SLICE_PROGRAMS), "launch_cooperative_grid": True}
    return RowBackwardPlan(RowPlan(1, options, block_n=columns), groups, block_rows=rows, slices=slices)


@cache
def row_backward(m: int, n: int, itemsize: int, device: Device, whole: bool = True) -> RowBackwardPlan:
    """Returns the backward plan of (m, n); `whole`: dx and parameter gradients are both wanted."""
    if n > BACKWARD_REGISTER_COLUMNS * 4 // max(itemsize, 4):
        if whole and (sliced := _sliced(m, n, itemsize, device)):
            return sliced
        rows = RowPlan(block_m=1, options=launch_options(256, device), block_n=2048)
        block_rows, block_columns = 8, 256
        wanted = cdiv(4 * device.multiprocessors, cdiv(n, block_columns))
        return RowBackwardPlan(rows, max(min(wanted, cdiv(m, block_rows)), 1), block_rows, block_columns)
    chunks = row_chunks(n)
    width = sum(size for _, size in chunks)
    chosen = device.tuning.of(
        row_plans("backward", n, itemsize),
        elements=2048 // max(itemsize // 4, 1),
        threads=128 if width <= 2048 else 256 if width < 8192 else 512,
        # Of a multiprocessor: enough to hide latency, few enough that their partial rows stay small beside the input.
        programs=4 if width <= 2048 else 2 if width <= 4096 else 1,
    )
    block_m = max(chosen["elements"] // next_power_of_2(width), 1)
    rows = RowPlan(block_m=block_m, options=launch_options(chosen["threads"], device), chunks=chunks)
    return RowBackwardPlan(rows, max(min(chosen["programs"] * device.multiprocessors, cdiv(m, block_m)), 1))
