"""From shape and device to launch plan: tiles, warps, splits. Pure Python; imports neither torch nor triton.

A plan holds every choice that changes how a kernel is compiled or launched, so that tests can compile a plan ahead of
time for a device that is not there, and run any plan in the interpreter. What is chosen and does not follow from shape
and device has a name and a default here; `make tune` measures other values on a GPU and keeps them in tuned/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from math import gcd, prod
from pathlib import Path


@dataclass(frozen=True, eq=False)  # hashed by identity
class Tuning:
    """Values measured on a device in place of defaults: by the plans they are for, by name."""

    values: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def of(self, plans: str, **defaults: int) -> dict[str, int]:
        return {**defaults, **self.values.get(plans, {})}


UNTUNED = Tuning()


def tuning_file(device_name: str) -> Path:
    """Where the values of a device are kept, by the name that PyTorch has for it: tuned/nvidia-h200.json."""
    return Path(__file__).parent / "tuned" / f"{re.sub('[^a-z0-9]+', '-', device_name.lower()).strip('-')}.json"


def tuning_of(device_name: str) -> Tuning:
    """What was measured on such a device, if anything."""
    file = tuning_file(device_name)
    return Tuning(json.loads(file.read_text(encoding="utf-8"))["values"]) if file.exists() else UNTUNED


@dataclass(frozen=True)
class Device:
    """What a plan asks of a device."""

    multiprocessors: int
    warp_size: int = 32
    registers: int | None = 65536  # of an NVIDIA multiprocessor; None where the compiler takes no cap (AMD)
    l2: int = 0  # bytes of cache that all multiprocessors share; 0 where none is to be counted on
    cooperative: bool = False  # whether programs of one launch may wait for each other
    tuning: Tuning = UNTUNED


# The interpreter runs programs one after another at some 2 ms each: as few as show that a split works.
INTERPRETER = Device(multiprocessors=1)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def alignment(*lengths: int) -> int:
    """The largest power of two, 16 at most, that divides every length: how wide, in elements, aligned loads can be.

    Triton itself sees in an argument only whether 16 divides it.
    """
    return gcd(16, *lengths)


def launch_options(threads: int, device: Device, programs: int = 1) -> dict[str, int]:
    """Warps and, on NVIDIA, all the registers that so many threads may have, `programs` times a multiprocessor.

    Left alone, ptxas spills a few values to get under the next step of occupancy; a plan chooses its own occupancy.
    """
    options = {"num_warps": max(threads // device.warp_size, 1)}
    if device.registers is not None:
        options["maxnreg"] = min(device.registers // (threads * programs) // 8 * 8, 255)  # handed out in eights
    return options


# ---------------------------------------------------------------------------------------------- rows of N columns

# A row is held in registers up to this many columns (forward by itemsize), and in a loop beyond. Ahead-of-time
# compilation shows no spills below these for any target (`python -m bench.audit`).
FORWARD_REGISTER_COLUMNS = {2: 16384, 4: 16384, 8: 8192}
BACKWARD_REGISTER_COLUMNS = 8192
# Padding a row to one power of two wastes lanes; splitting it costs a reduction a chunk. Below this, pad.
CHUNK_FROM = 512
MAX_CHUNKS = 3


def row_chunks(n: int) -> tuple[tuple[int, int], ...]:
    """A row of n columns as (offset, power-of-two size) chunks; the last one may reach past the end.

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


def row_plans(direction: str, n: int, itemsize: int) -> str:
    """What rows of n columns are tuned with: all of a width up to the next power of two, in elements of one size."""
    loop = "_loop" if direction == "forward" and n > FORWARD_REGISTER_COLUMNS[itemsize] else ""
    return f"row_{direction}{loop} {next_power_of_2(n)} {itemsize}"


# Threads of a multiprocessor that loop over rows: those that can have 128 registers, for with 64 the loops spill.
LOOP_THREADS = 512
# Elements of a row that each of them has in flight by itemsize: 32 KB a multiprocessor, 16 in float64. Memory of
# 4.8 TB/s at a latency of 0.7 us wants 26 KB of each of an H200's 132 (Little's law).
LOOP_ELEMENTS = {2: 32, 4: 16, 8: 4}


@cache
def _forward_loop(n: int, itemsize: int, device: Device, tensors: int) -> RowPlan:
    """As many rows at a time as the cache holds: their second sweep meets what the first one read, 2 units and not 3.

    Where rows are so long that it holds fewer than there are multiprocessors, some are idle, and the others draw less
    from memory than all would; their second sweep, from the cache, is the faster for it. Below a quarter of them every
    multiprocessor takes a row instead, and meets what is left of it. Where that pays is an estimate: no GPU has been
    asked yet, and `l2_percent` is there to be tuned.
    """
    chosen = device.tuning.of(
        row_plans("forward", n, itemsize),
        threads=LOOP_THREADS,
        # Of the cache, what these rows may take of all tensors: twice batch norm's share, which is for its loads alone.
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
    """The forward plan of rows of which so many activations are moved: x and y, and with a residual that and z.

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


# Columns of a slice by itemsize, with 256 threads: dw, db and the weight of a slice stay in registers, next to dy and
# x, in the 128 registers that two programs a multiprocessor leave a thread.
SLICE = {2: 4096, 4: 2048, 8: 1024}
SLICE_THREADS, SLICE_PROGRAMS = 256, 2


def _sliced(m: int, n: int, itemsize: int, device: Device) -> RowBackwardPlan | None:
    """Rows in slices, all programs resident; None where the device promises no barrier, or has too few programs."""
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
    """The backward plan of (m, n); `whole`: dx and parameter gradients are both wanted."""
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


# ------------------------------------------------------------------------------------------------------ batch norm


@dataclass(frozen=True, eq=False)  # hashed by identity: each exists once
class BatchNormPlan:
    """Tiles of block_c channels by block_s positions; a channel group's tiles are dealt to `splits` programs.

    x is taken as (batch, C, S) when contiguous, and as (1, S, C) with all positions in one run when channels-last.
    """

    channels_last: bool
    batch: int
    channels: int
    positions: int  # S: elements of one channel that lie in one run of tiles
    block_c: int
    block_s: int
    splits: int
    align: int  # a power of two, 16 at most, that divides the length of the contiguous run
    evict: str  # Triton's eviction policy for what training's last sweep moves
    options: dict[str, int]

    @property
    def tiles(self) -> int:
        return self.batch * cdiv(self.positions, self.block_s)

    @property
    def groups(self) -> int:
        return cdiv(self.channels, self.block_c)

    @property
    def count(self) -> int:
        """Elements of one channel."""
        return self.batch * self.positions


# Elements of a batch norm tile by itemsize: 32 values a thread at 128 threads, fewer where each takes two registers.
TILE = {2: 4096, 4: 4096, 8: 1024}


def batch_norm_plans(channels_last: bool, itemsize: int) -> str:
    """What batch norm is tuned with: one layout, elements of one size."""
    return f"batch_norm_{'nhwc' if channels_last else 'nchw'} {itemsize}"


@cache
def _batch_norm_values(channels_last: bool, itemsize: int, device: Device) -> dict[str, int]:
    return device.tuning.of(
        batch_norm_plans(channels_last, itemsize),
        tile=TILE[itemsize],
        programs=4,  # of a multiprocessor, in three launches
        # Of the cache, the share that a pass may count on to find again what it read: the rest is for what it writes.
        l2_percent=40,
        # A second sweep over so few tiles costs one program less than a barrier costs many.
        alone_tiles=4,
        # Bytes side by side, channels-last, that tiles of what outgrows the cache have at least.
        run=64,
        on_chip=1,  # 0: what registers could hold is swept twice all the same
    )


def _room(plan_values: Mapping[str, int], device: Device) -> int:
    """Bytes that may wait in cache for a second sweep."""
    return plan_values["l2_percent"] * device.l2 // 100


def _most_room(plan_values: Mapping[str, int], device: Device) -> int:
    """The same where nothing else is swept meanwhile and results leave first: all of the cache, by default."""
    return 5 * _room(plan_values, device) // 2


def _spatial_block(s: int) -> int:
    """The largest power of two, 128 to 4096, that pads a run of s by a sixth at most; else s padded."""
    for block in (4096, 2048, 1024, 512, 256, 128):
        if 6 * (cdiv(s, block) * block - s) <= s:
            return block
    return next_power_of_2(s)


LINE = 128  # bytes of a cache line


def _channel_block(c: int, itemsize: int, run: int = 0) -> int:
    """Of 128, 64, 32 and 16 channels, the one that pads c least.

    The widest of such, of 32 at least; or the narrowest with a run of so many bytes.
    """
    blocks = [block for block in (16, 32, 64, 128) if block * itemsize >= run] if run else [128, 64, 32]
    return min(min(blocks, key=lambda block: cdiv(c, block) * block), next_power_of_2(c))


def _run(c: int, count: int, itemsize: int, most: int, least: int) -> int:
    """Bytes of a tile's run, channels-last, of what does not stay in cache as a whole but a few channels at a time.

    A whole line; or a part of one, `least` bytes or more, where x of so few channels stays, and dy as well if it can.
    """
    run = LINE
    while run > least and 2 * min(run, c * itemsize) * count > most:
        run //= 2
    return run if min(run, c * itemsize) * count <= most else LINE


@cache
def batch_norm(shape: tuple[int, ...], channels_last: bool, itemsize: int, device: Device) -> BatchNormPlan:
    """The plan of (N, C, *) in the given layout; (N, C) is channels-last by nature."""
    n, c, s = shape[0], shape[1], prod(shape[2:])
    batch, positions = (1, n * s) if channels_last else (n, s)
    chosen = _batch_norm_values(channels_last, itemsize, device)
    tile = chosen["tile"]
    outgrows = device.cooperative and prod(shape) * itemsize > _room(chosen, device)
    if channels_last:
        most = _most_room(chosen, device)
        block_c = _channel_block(c, itemsize, _run(c, n * s, itemsize, most, chosen["run"]) if outgrows else 0)
        # Positions follow the batch: no less for a few of them, or each would be a compilation of its own.
        block_s = tile // block_c
        while block_s > 1 and (block_s - 1) * c + block_c > 2**31:  # offsets inside a tile have 32 bits
            block_s //= 2
    else:
        block_s = min(_spatial_block(positions), tile)
        block_c = min(tile // block_s, next_power_of_2(c))
    run = c if channels_last else s
    tiles, groups = batch * cdiv(positions, block_s), cdiv(c, block_c)
    align = alignment(run)
    # A run that starts anywhere is loaded an element at a time, with an address each: half as many a thread, or spill.
    threads = 128 if align * itemsize >= 8 else 256
    # A split takes one tile at least. CUDA's grid ends at 65535 along y.
    splits = max(min(cdiv(chosen["programs"] * device.multiprocessors, groups), tiles, 65535), 1)
    return BatchNormPlan(
        channels_last=channels_last,
        batch=batch,
        channels=c,
        positions=positions,
        block_c=block_c,
        block_s=block_s,
        splits=splits,
        align=align,
        # Results would push out what is still to be read again: they leave the cache first, as does what has been read
        # for the last time. A tensor that fits stays, for what comes after the norm.
        evict="evict_first" if outgrows else "",
        options=launch_options(threads, device),
    )


@cache
def batch_norm_drawing(plan: BatchNormPlan, device: Device) -> BatchNormPlan:
    """The same for sweeps that draw noise, whose words take registers beside every value: 16 values a thread.

    With 32, as without noise, channels-last tiles spill (compiled for sm_90); with fewer than 8 loads are narrow. Where
    they are narrow anyhow and each has an address of its own, 8 values in tiles half as long: 16 spill on sm_100.
    """
    if plan.align == 1 and not plan.channels_last and plan.block_s > 1:
        plan = replace(plan, block_s=plan.block_s // 2)
    threads = plan.options["num_warps"] * device.warp_size
    wanted = min(plan.block_c * plan.block_s // 16, 2 * threads)
    return replace(plan, options=launch_options(max(wanted, threads), device))


def batch_norm_sign_bytes(shape: tuple[int, ...], channels_last: bool, itemsize: int, device: Device) -> int:
    """Bytes that hold a bit for every element of every tile.

    The batch size may be a symbol, which no branch may ask for its value: where a plan follows it, this is the most
    that any takes.
    """
    n, c, s = shape[0], int(shape[1]), int(prod(shape[2:]))
    if not channels_last:
        plan = batch_norm((1, c, s), False, itemsize, device)
        return n * plan.tiles * plan.groups * max(plan.block_c * plan.block_s // 8, 1)
    chosen = _batch_norm_values(True, itemsize, device)
    blocks = [_channel_block(c, itemsize, run) for run in (0, LINE, chosen["run"])]
    most = chosen["tile"] // min(blocks)
    return cdiv(n * s, most) * most * max(cdiv(c, block) * block for block in blocks) // 8


# Threads of a multiprocessor: few, so that each has the 168 registers without which the kernels of one launch spill.
ONCE_THREADS = 384
# Programs of a multiprocessor that keep device memory busy, at 4096 elements in flight each; with fewer, three launches
# of more programs are the better plan.
ONCE_PROGRAMS = 3
# A ReLU behind the norm, and wider elements, take more than 168: fewer threads, of which each has all that it can have.
# Elements twice as wide keep as many bytes in flight.
ONCE_FEW_THREADS, ONCE_FEW_PROGRAMS = 256, 2


@dataclass(frozen=True)
class OncePlan:
    """A pass of batch norm in training as one launch of (windows, splits) programs.

    A window takes one channel group after another, `splits` programs at each; the first sweep runs `ahead` groups ahead
    of the second. With splits > 1 the launch is cooperative: every program is resident, and they wait for each other.

    With `kept` there is a window for each channel group, and a program holds so many tiles at most in registers.
    """

    tiled: BatchNormPlan  # whose tiles it goes over
    windows: int
    splits: int
    ahead: int
    block_p: int  # splits merged at a time
    options: dict[str, int | bool]
    kept: int = 0


# Tiles of x, or of dy and x, that a program holds in registers, and elements of such a tile by itemsize. Ahead-of-time
# compilation shows no spills for any target with what three or two programs of a multiprocessor leave a thread.
KEPT = {1: 4, 2: 2}
KEPT_TILE = {2: 2048, 4: 2048, 8: 512}


def _on_chip(plan: BatchNormPlan, itemsize: int, tensors: int, device: Device, alone: bool) -> OncePlan | None:
    """A pass whose programs hold all of x (and dy) in registers; None where there is more of it.

    `alone`: a group may not be split, since one program that sweeps twice costs less than a barrier does.
    """
    block_c, block_s = plan.block_c, plan.block_s
    while block_c * block_s > KEPT_TILE[itemsize]:
        if plan.channels_last or block_c == 1:
            block_s //= 2
        else:
            block_c //= 2
    tiled = replace(plan, block_c=block_c, block_s=block_s)
    threads = plan.options["num_warps"] * device.warp_size
    programs = 2 if threads > 128 else 3
    kept, block_p = KEPT[tensors], min(max(TILE[itemsize] // 8 // block_c, 1), 256)
    if tiled.tiles <= kept:
        # Nobody waits, so that others may follow: each has all the registers that it can have.
        return OncePlan(tiled, tiled.groups, 1, 0, block_p, launch_options(threads, device), kept)
    # As few as hold all of it, for each adds to what all have to merge; but a program for every multiprocessor.
    splits = max(cdiv(tiled.tiles, kept), min(cdiv(device.multiprocessors, tiled.groups), tiled.tiles))
    if alone or not device.cooperative or splits * tiled.groups > programs * device.multiprocessors:
        return None
    options = {**launch_options(threads, device, programs), "launch_cooperative_grid": True}
    return OncePlan(tiled, tiled.groups, splits, 0, block_p, options, kept)


@cache
def batch_norm_once(
    plan: BatchNormPlan, itemsize: int, tensors: int, device: Device, relu: bool = False, signs: bool = False
) -> OncePlan | None:
    """One launch for a pass that sweeps twice over so many activations; None where three are better.

    A tensor that all multiprocessors' registers can hold is loaded once. `signs`: bits are kept for backward. They lie
    by tiles, which have to be the same both ways: so forward holds x on chip only where backward holds dy and x.

    What is between its two sweeps, windows * (1 + ahead) channel groups, is to stay in a share of the cache, so that
    the second sweep does not read device memory again. Of a single group that is up to twice as large half is left.

    Channels-last, a line of 128 bytes has 64 channels in 16 bits. Of ResNet-50's first norm, 32 x 64 x 112 x 112, that
    is everything: 98 MiB backward beside an L2 of 50. So its groups are half a line, two sectors of every position: 49
    MiB wait, and 3 units are expected. That counts sectors one by one. An L2 in which half a line takes up a whole one
    keeps half as much, and 3.98 units are left, as with whole lines; and one told to fetch more than 64 bytes at once
    (cudaLimitMaxL2FetchGranularity) reads both halves each time. No GPU has been asked yet which it is: `run` decides.
    """
    group = min(plan.block_c, plan.channels) * plan.count * itemsize * tensors
    chosen = _batch_norm_values(plan.channels_last, itemsize, device)
    room = _room(chosen, device)
    few = plan.tiles <= chosen["alone_tiles"]
    waiting = group // tensors * 2 if signs else group
    if room and chosen["on_chip"]:
        held = _on_chip(plan, itemsize, 2 if signs else tensors, device, alone=few and waiting <= room)
        if held is not None:
            return held
    threads = plan.options["num_warps"] * device.warp_size
    most_threads, least = (ONCE_THREADS, ONCE_PROGRAMS)
    if relu or itemsize > 2:
        most_threads, least = ONCE_FEW_THREADS, ONCE_FEW_PROGRAMS
    programs = max(most_threads // threads, 1)
    if plan.align < 4:  # narrow loads, each with an address of its own, take all the registers there are
        if relu and tensors == 2:  # and more, beside the signs of a residual
            return None
        programs = 1
    options = launch_options(threads, device, programs)
    # By the channels alone: a new batch size compiles nothing.
    block_p = min(max(TILE[itemsize] // 8 // plan.block_c, 1), 256)
    if plan.channels_last and plan.block_c == 16 and tensors == 2:
        block_p *= 2  # or what ptxas makes of MobileNetV2's first backward pass for sm_100 spills 8 bytes
    if few and group <= room:
        return OncePlan(plan, windows=plan.groups, splits=1, ahead=0, block_p=block_p, options=options)
    most_waiting = room if plan.groups == 1 else tensors * _most_room(chosen, device)
    if not device.cooperative or programs < least or group > most_waiting:
        return None
    resident = programs * device.multiprocessors
    most = min(plan.groups, max(room // group, 1), resident)
    # With groups to follow, half as many windows that run a group ahead hide the wait at the barrier.
    ahead = int(1 < most < plan.groups)

    def steps(windows: int) -> int:
        """Tiles that a program sweeps, counting what every round costs as one more."""
        return cdiv(plan.groups, windows) * (cdiv(plan.tiles, min(resident // windows, plan.tiles)) + 1)

    windows = min(range(1, most // (1 + ahead) + 1), key=steps)
    splits = min(resident // windows, plan.tiles)
    options = {**options, "launch_cooperative_grid": splits > 1}
    return OncePlan(plan, windows, splits, ahead if splits > 1 else 0, block_p, options)


# ------------------------------------------------------------------------------------------------------ group norm

# Groups whose channels' parts a program merges, and parts of each at a time: one a thread.
MERGED_GROUPS, MERGED_PARTS = 4, 32
# The least a tile of whole groups has of a row: contiguous, positions that make a load worth its address; less
# channels-last, where a load is of neighbouring channels.
GROUP_RUN = {False: 32, True: 4}


@dataclass(frozen=True, eq=False)  # hashed by identity: each exists once
class GroupNormPlan:
    """Tiles of block_c channels of one image by block_s positions.

    With `rows` a program has whole groups, `rows` rows of a tile each, and there is one launch. Without, the tiles of a
    block of channels are dealt to `splits` programs, whose partial results are merged.
    """

    channels_last: bool
    batch: int
    channels: int
    positions: int
    per_group: int  # channels
    block_c: int
    block_s: int
    rows: int
    splits: int
    align: int  # a power of two, 16 at most, that divides the length of the contiguous run
    evict: str  # Triton's eviction policy for what the last sweep moves
    options: dict[str, int]

    @property
    def tiles(self) -> int:
        return cdiv(self.positions, self.block_s)

    @property
    def step(self) -> int:
        """Channels of a program."""
        return self.block_c // self.rows * self.per_group if self.rows else self.block_c

    @property
    def groups(self) -> int:
        """Of channels that a program has, in all images."""
        return self.batch * cdiv(self.channels, self.step)

    @property
    def statistics(self) -> int:
        """Groups that are normalized, in all images."""
        return self.batch * (self.channels // self.per_group)

    @property
    def merges(self) -> int:
        """Programs that merge them."""
        return cdiv(self.statistics, MERGED_GROUPS)

    @property
    def parts(self) -> int:
        """Partial results of one channel."""
        return self.batch * self.splits

    @property
    def count(self) -> int:
        """Elements of one channel in all images."""
        return self.batch * self.positions


def _whole_groups(
    channels: int, positions: int, per_group: int, last: bool, itemsize: int, alone_tiles: int
) -> tuple[int, int, int]:
    """(rows, block_c, block_s) of tiles of whole groups; zeros where there are none.

    Channels-last a tile is as wide as it can be, of groups that are neighbours in memory: rows may have no gaps.
    """
    tile, rows = TILE[itemsize], next_power_of_2(per_group)
    gaps, run = rows != per_group, min(next_power_of_2(positions), GROUP_RUN[last])
    if rows * run > tile or (last and gaps and per_group != channels):
        return 0, 0, 0
    if last:
        block_s = next_power_of_2(positions)
        wide = min(max(_channel_block(channels, itemsize, False), tile // block_s), next_power_of_2(channels))
    else:
        block_s = min(_spatial_block(positions), tile // rows)
        # Where a program's tiles are many, they are a quarter of the size, and the programs four times as many.
        elements = tile if cdiv(positions, block_s) <= alone_tiles else tile // 4
        wide = 1 if gaps else min(elements // block_s, next_power_of_2(channels))
    block_c = max(min(wide, tile // run), rows)
    return rows, block_c, min(block_s, tile // block_c)


@cache
def group_norm(
    shape: tuple[int, ...], groups: int, channels_last: bool, itemsize: int, device: Device
) -> GroupNormPlan:
    """The plan of (N, C, *) in the given layout, normalized in so many groups of channels."""
    n, c, s = shape[0], shape[1], prod(shape[2:])
    chosen = _batch_norm_values(channels_last, itemsize, device)
    per_group, wanted, most = c // groups, chosen["programs"] * device.multiprocessors, chosen["alone_tiles"]
    # A single position lies in both layouts at once, and one of them lets rows have gaps.
    channels_last = channels_last and (s > 1 or per_group == next_power_of_2(per_group))
    rows, block_c, block_s = _whole_groups(c, s, per_group, channels_last, itemsize, most)
    whole = rows > 0 and (block_s * c if channels_last else block_c * s) <= 2**31  # offsets in a tile have 32 bits
    # Enough programs to fill the device, or so little to sweep that more would not pay.
    if not (whole and (n * cdiv(groups, block_c // rows) >= wanted or cdiv(s, block_s) <= most)):
        one = batch_norm((1, *shape[1:]), channels_last, itemsize, device)
        rows, block_c, block_s = 0, one.block_c, min(one.block_s, next_power_of_2(s))
    splits = min(cdiv(wanted, max(n, 1) * cdiv(c, block_c)), cdiv(s, block_s), 65535)
    align = alignment(c if channels_last else s)
    # As in batch norm, whose comments say why.
    outgrows = device.cooperative and prod(shape) * itemsize > _room(chosen, device)
    return GroupNormPlan(
        channels_last=channels_last,
        batch=n,
        channels=c,
        positions=s,
        per_group=per_group,
        block_c=block_c,
        block_s=block_s,
        rows=rows,
        splits=1 if rows else splits,
        align=align,
        evict="evict_first" if outgrows else "",
        options=launch_options(128 if align * itemsize >= 8 else 256, device),
    )


@dataclass(frozen=True)
class MergePlan:
    """Partial results of P programs for N columns, merged block_n columns a program, block_p rows at a time."""

    block_p: int
    block_n: int
    options: dict[str, int]


@cache
def merge(programs: int, columns: int, device: Device) -> MergePlan:
    """The second stage's plan: narrow column blocks where there are many rows to add, to fill the device."""
    block_p = 16 if programs <= 16 else 64  # of two sizes, for programs may follow the batch
    block_n = min(max(1024 // block_p, 16), next_power_of_2(columns), 128)
    return MergePlan(block_p, block_n, launch_options(128, device))


@cache
def merge_ranks(ranks: int, columns: int, device: Device) -> MergePlan:
    """How messages of all processes are merged: every rank in one block, whose values stay in registers.

    A thread has four values, and a program four channels: with eight channels, compiled for sm_90, float64 spills.
    """
    block_p = next_power_of_2(ranks)
    block_n = min(max(512 // block_p, 1), next_power_of_2(columns), 4)
    threads = min(max(block_p * block_n // 4, 32), 512)
    return MergePlan(block_p, block_n, launch_options(threads, device))
