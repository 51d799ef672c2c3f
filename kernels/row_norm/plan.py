"""Plans of rows of N columns: in registers as chunks, in slices, or in a loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from normlib.kernels.plan import Device, alignment, cdiv, launch_options, next_power_of_2

# A row is held in registers up to this many columns (by itemsize). Ahead-of-time compilation shows no spills up to them
# for any target (`python -m bench.audit`).
FORWARD_REGISTER_COLUMNS = {2: 16384, 4: 16384, 8: 8192}
BACKWARD_REGISTER_COLUMNS = {2: 8192, 4: 8192, 8: 4096}
# The columns of a row that a thread holds, by itemsize: enough that what is done once a row weighs little (`LEAST`), as
# many as fit beside weight, dw and db backward (`MOST`), and forward, where 16 bits are widened as they are used.
LEAST = {2: 32, 4: 32, 8: 16}
FORWARD_MOST = {2: 96, 4: 64, 8: 32}
BACKWARD_MOST = {2: 40, 4: 32, 8: 16}
# The kernels have code of its own for every chunk of a row: no more of them than these.
MAX_CHUNKS = 16


def _power_of_2_within(n: int) -> int:
    return max(next_power_of_2(n + 1) // 2, 1)


def threads_of_row(n: int, least: int, most: int) -> int:
    """Returns how many threads hold a row, a power of two: each has `least` columns or more, but not more than `most`.

    In short rows four threads share 64 bytes or more of 16 bits, which is what memory is loaded in. Where a thread has
    only one column and adds products, a compiler may round them differently from thread to thread.
    """
    threads = max(_power_of_2_within(n // least), min(_power_of_2_within(n // 8), 4))
    return threads if n <= most * threads else next_power_of_2(cdiv(n, most))


def row_tile(n: int, itemsize: int, row_threads: int, threads: int, slices: int = 1) -> dict[str, int]:
    """Returns a tile of rows of n columns, or of slices of them, each held by `row_threads` threads, as equal chunks.

    A chunk is as wide as a load of these threads is, 16 bytes each where the row's length leaves them aligned: then a
    thread has the same columns of every row. The last chunk may reach past the row's end.

    >>> row_tile(7168, 2, 128, 128), row_tile(1000, 2, 32, 128)
    ({'block_m': 1, 'block_n': 1024, 'chunks': 7}, {'block_m': 4, 'block_n': 256, 'chunks': 4})
    """
    each = min(16 // itemsize, max(alignment(n), next_power_of_2(cdiv(n, slices * row_threads * MAX_CHUNKS))))
    block_n = row_threads * each
    return {"block_m": threads // row_threads, "block_n": block_n, "chunks": cdiv(cdiv(n, block_n), slices)}


@dataclass(frozen=True)
class RowPlan:
    """Rows in registers, as `chunks`, block_m of them a tile; or, without chunks, in a loop over block_n columns.

    With several `slices` a row is that many programs', which wait for each other. In slices or in a loop the forward
    grid has `programs` groups at most, which take one row after another.
    """

    block_m: int
    options: dict[str, int | bool]
    chunks: int = 0
    block_n: int = 0
    programs: int = 0
    slices: int = 1
    ahead: bool = False  # whether the next rows are loaded before these are done

    @property
    def kind(self) -> str:
        if self.slices > 1:
            return "slices, barrier"
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


# The threads of a program that has a slice of a row, and the smallest program backward.
THREADS = 128
# Of a slice forward, by itemsize: its columns, and such programs of a multiprocessor. In 16 bits a thread has the next
# row's columns beside this one's and those of weight.
FORWARD_SLICE = {2: 8192, 4: 4096, 8: 1024}
FORWARD_SLICE_PROGRAMS = {2: 2, 4: 3, 8: 4}


def _sliced(n: int, itemsize: int, columns: int, programs: int, device: Device) -> RowPlan | None:
    """Returns a plan in slices, all programs resident; None if the device has no barrier or too few programs."""
    resident = programs * device.multiprocessors
    tile = row_tile(n, itemsize, THREADS, THREADS, cdiv(n, columns))
    slices = cdiv(n, tile["block_n"] * tile["chunks"])
    if not device.cooperative or slices > resident:
        return None
    options = {**launch_options(THREADS, device, programs), "launch_cooperative_grid": True}
    ahead = itemsize == 2 and alignment(n) * itemsize >= 16
    return RowPlan(**tile, options=options, programs=resident // slices, slices=slices, ahead=ahead)


@cache
def row_forward(n: int, itemsize: int, device: Device, tensors: int = 2, waits: bool = True) -> RowPlan:
    """Returns the forward plan of rows of which `tensors` activations move: x and y, with a residual also that and z.

    It depends on the columns, so that a row's bits do not depend on how many rows there are, and but for the number of
    programs on nothing else: with a residual the bits are the same. `waits`: the kernels have slices.
    """
    if n > FORWARD_REGISTER_COLUMNS[itemsize]:
        # What is not loaded 16 bytes at a time takes more registers.
        columns = FORWARD_SLICE[itemsize] // (1 if alignment(n) * itemsize >= 16 else 4)
        sliced = _sliced(n, itemsize, columns, FORWARD_SLICE_PROGRAMS[itemsize], device) if waits else None
        return sliced or _forward_loop(n, itemsize, device, tensors)
    row_threads = threads_of_row(n, max(LEAST[itemsize], n // 128), FORWARD_MOST[itemsize])
    chosen = device.tuning.of(row_plans("forward", n, itemsize), columns=cdiv(n, row_threads), threads=128)
    row_threads = next_power_of_2(cdiv(n, chosen["columns"]))
    threads = max(chosen["threads"], row_threads)
    tile = row_tile(n, itemsize, row_threads, threads)
    return RowPlan(**tile, options=launch_options(threads, device), ahead=False)


@dataclass(frozen=True)
class RowBackwardPlan:
    """A persistent grid of `programs`; each leaves one row of partial dw and db.

    With `rows.chunks` one kernel does it all. Without chunks the input gradient loops over the row, and the weight's
    are summed by a kernel of their own over (programs, column blocks of `block_columns`), `block_rows` rows at a time.
    """

    rows: RowPlan
    programs: int
    block_rows: int = 1
    block_columns: int = 0

    @property
    def kind(self) -> str:
        return self.rows.kind


# A backward program has THREADS threads or those of a row, and a multiprocessor two such programs: a thread may then
# have 255 registers, for weight, dw, db, x_hat and dy of its columns.
PROGRAMS = 2
# Columns of a slice by itemsize, in such a program.
SLICE = {2: 4096, 4: 4096, 8: 1024}
# The columns of a thread, by itemsize, up to which there are registers for the next row: only in 16 bits.
AHEAD_MOST = {2: 32, 4: 0, 8: 0}


@cache
def row_backward(m: int, n: int, itemsize: int, device: Device, whole: bool = True) -> RowBackwardPlan:
    """Returns the backward plan of (m, n); `whole`: dx and parameter gradients are both wanted."""
    if n > BACKWARD_REGISTER_COLUMNS[itemsize]:
        if whole and (sliced := _sliced(n, itemsize, SLICE[itemsize], PROGRAMS, device)):
            # The sums of more than 8 slices take the registers that the next row would need (compiled for sm_100).
            rows = replace(sliced, ahead=sliced.ahead and sliced.slices <= 8)
            return RowBackwardPlan(rows, min(sliced.programs, m))
        rows = RowPlan(block_m=1, options=launch_options(256, device), block_n=2048)
        block_rows, block_columns = 8, 256
        wanted = cdiv(4 * device.multiprocessors, cdiv(n, block_columns))
        return RowBackwardPlan(rows, max(min(wanted, cdiv(m, block_rows)), 1), block_rows, block_columns)
    # What is not loaded 16 bytes at a time takes more registers.
    wide = alignment(n) * itemsize >= 16
    row_threads = threads_of_row(n, LEAST[itemsize], BACKWARD_MOST[itemsize] if wide else LEAST[itemsize])
    if not wide and n > 24 * row_threads and row_threads < THREADS:
        row_threads *= 2
    columns = cdiv(n, row_threads)
    programs = max(PROGRAMS * THREADS // max(row_threads, THREADS), 1)
    if columns * max(itemsize, 4) <= 96 and row_threads <= THREADS:  # with fewer registers each
        programs += 1
    chosen = device.tuning.of(
        row_plans("backward", n, itemsize),
        columns=columns,
        threads=THREADS,
        # Of a multiprocessor: enough to hide latency, few enough that their partial rows stay small beside the input.
        programs=programs,
    )
    row_threads = next_power_of_2(cdiv(n, chosen["columns"]))
    threads = max(chosen["threads"], row_threads)
    tile = row_tile(n, itemsize, row_threads, threads)
    ahead = wide and tile["chunks"] * tile["block_n"] <= AHEAD_MOST[itemsize] * row_threads
    rows = RowPlan(**tile, options=launch_options(threads, device, chosen["programs"]), ahead=ahead)
    return RowBackwardPlan(rows, max(min(chosen["programs"] * device.multiprocessors, cdiv(m, rows.block_m)), 1))
