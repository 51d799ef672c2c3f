"""Plans of batch norm's sweeps: tiles, splits and what stays in cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import prod

from normlib.kernels.plan import Device, alignment, cdiv, launch_options, next_power_of_2


@dataclass(frozen=True, eq=False)  # hashed by identity: each exists once
class BatchNormPlan:
    """Tiles of block_c channels by block_s positions; a channel group's tiles are dealt to `splits` programs.

    Those leave partial results, one of each split. The sweep for moments has `moment_splits`, each one tile where
    there are few tiles; a sweep that leaves no partial results has `output_splits` programs a group.

    x is taken as (batch, C, S) when contiguous, and as (1, S, C) with all positions in one run when channels-last.
    """

    channels_last: bool
    batch: int
    channels: int
    positions: int  # S: elements of one channel that lie in one run of tiles
    block_c: int
    block_s: int
    splits: int
    moment_splits: int
    output_splits: int
    align: int  # a power of two, 16 at most, that divides the length of the contiguous run
    evict: str  # Triton's eviction policy for what training's last sweep moves
    stages: int  # of the pipeline of loads in a sweep of one activation; 0 where a split for moments is one tile
    sum_stages: int  # the same in a sweep of two
    moment_block_p: int  # splits whose moments are merged at a time, in float64
    sum_block_p: int  # splits whose sums are
    moment_options: dict[str, int]  # of training's sweeps that leave partial results: their programs all run at once
    partial_options: dict[str, int]
    options: dict[str, int]

    @cached_property
    def tiles(self) -> int:
        return self.batch * cdiv(self.positions, self.block_s)

    @cached_property
    def groups(self) -> int:
        return cdiv(self.channels, self.block_c)

    @cached_property
    def count(self) -> int:
        """Elements of one channel."""
        return self.batch * self.positions

    @cached_property
    def sign_bytes(self) -> int:
        """Bytes of a bit for every lane of every tile."""
        return self.tiles * self.groups * max(self.block_c * self.block_s // 8, 1)

    @property
    def kind(self) -> str:
        return "streaming"


@dataclass(frozen=True, eq=False)  # hashed by identity: each exists once
class ResidentPlan:
    """A program for each channel, which has `images` runs of it in registers, block_s lanes each."""

    images: int
    block_s: int
    options: dict[str, int]

    @property
    def kind(self) -> str:
        return "resident"


# Lanes of a program that holds its channel, with its threads and how many such are to run on a multiprocessor: few
# sizes, for they follow the batch. Whether runs are loaded by 8 bytes or more (True) or an element at a time, with an
# address each (False). With more lanes or fewer threads registers would spill.
RESIDENT = {
    True: {2048: (128, 6), 8192: (256, 2), 16384: (512, 1)},
    False: {2048: (128, 4), 8192: (512, 1)},
}


# Elements of a batch norm tile by itemsize: 16 values a thread at 128 threads, fewer where each takes two registers.
TILE = {2: 2048, 4: 2048, 8: 1024}
STAGES = {2: 4, 4: 3, 8: 3}


def batch_norm_plans(channels_last: bool, itemsize: int) -> str:
    """Returns the name of what batch norm is tuned for: one layout, elements of one size."""
    return f"batch_norm_{'nhwc' if channels_last else 'nchw'} {itemsize}"


@cache
def batch_norm_values(channels_last: bool, itemsize: int, device: Device) -> dict[str, int]:
    return device.tuning.of(
        batch_norm_plans(channels_last, itemsize),
        tile=TILE[itemsize],
        programs=4,  # of a multiprocessor, in a sweep that leaves partial results
        one_tile_programs=6,  # of a multiprocessor at most, where each has one tile and no loop
        stages=STAGES[itemsize],  # of the pipeline of loads
        output_tiles=4,  # of a program, in a sweep that leaves none
        resident_lanes=max(RESIDENT[True]),  # of a program that holds its channel, at most
        # Of the cache, the share that a pass may count on to find again what it read: the rest is for what it writes.
        l2_percent=40,
        # Of group norm: whole groups of so few tiles are a program's, however few programs that leaves.
        alone_tiles=4,
    )


def cache_room(plan_values: Mapping[str, int], device: Device) -> int:
    """Returns the bytes that may wait in cache for a second sweep."""
    return plan_values["l2_percent"] * device.l2 // 100


def spatial_block(s: int) -> int:
    """Returns the largest power of two, 64 to 4096, that pads a run of s by a sixteenth at most; else s padded."""
    for block in (4096, 2048, 1024, 512, 256, 128, 64):
        if 16 * (cdiv(s, block) * block - s) <= s:
            return block
    return next_power_of_2(s)


def channel_block(c: int) -> int:
    """Returns the number of channels, 64 of many and 32 of few or where that pads c less; or c padded.

    A channel group's splits are merged by one program, which takes longest where few groups are cut into many splits.
    """
    wide = c > 256 and cdiv(c, 64) * 64 == cdiv(c, 32) * 32
    return min(64 if wide else 32, next_power_of_2(c))


@cache
def batch_norm(shape: tuple[int, ...], channels_last: bool, itemsize: int, device: Device) -> BatchNormPlan:
    """Returns the plan of (N, C, *) in the given layout; (N, C) is always channels-last."""
    n, c, s = shape[0], shape[1], prod(shape[2:])
    batch, positions = (1, n * s) if channels_last else (n, s)
    chosen = batch_norm_values(channels_last, itemsize, device)
    tile = chosen["tile"]
    outgrows = 0 < cache_room(chosen, device) < prod(shape) * itemsize
    if channels_last:
        block_c = channel_block(c)
        # Positions follow the batch: no less for a few of them, or each would be a compilation of its own.
        block_s = tile // block_c
        while block_s > 1 and (block_s - 1) * c + block_c > 2**31:  # offsets inside a tile have 32 bits
            block_s //= 2
    else:
        block_s = min(spatial_block(positions), tile)
        block_c = min(tile // block_s, next_power_of_2(c))
    run = c if channels_last else s
    tiles, groups = batch * cdiv(positions, block_s), cdiv(c, block_c)
    align = alignment(run)
    # A run that starts anywhere is loaded an element at a time, with an address each: half as many a thread, or spill.
    threads = 128 if align * itemsize >= 8 else 256
    # A split takes one tile at least, and no program a second turn. CUDA's grid ends at 65535 along y.
    programs, most = chosen["programs"], chosen["one_tile_programs"]
    splits = max(min(programs * device.multiprocessors // groups, tiles, 65535), 1)
    one_tile = tiles * groups <= most * device.multiprocessors and tiles <= 65535
    output_splits = min(max(splits, cdiv(tiles, chosen["output_tiles"])), 65535)
    return BatchNormPlan(
        channels_last=channels_last,
        batch=batch,
        channels=c,
        positions=positions,
        block_c=block_c,
        block_s=block_s,
        splits=splits,
        moment_splits=tiles if one_tile else splits,
        output_splits=output_splits,
        align=align,
        # Results would push out what is still to be read again: they leave the cache first, as does what has been read
        # for the last time. A tensor that fits stays, for what comes after the norm.
        evict="evict_first" if outgrows else "",
        stages=0 if one_tile else chosen["stages"],
        # A program of few tiles has all of their loads under way at once without a pipeline.
        sum_stages=1 if tiles <= 3 * splits else max(chosen["stages"] - 1, 1),
        moment_block_p=min(max((512 if one_tile else 1024) // block_c, 1), 256),
        sum_block_p=min(max(2048 // block_c, 1), 256),
        moment_options=launch_options(threads, device, max((most if one_tile else programs) * 128 // threads, 1)),
        partial_options=launch_options(threads, device, max(programs * 128 // threads, 1)),
        options=launch_options(threads, device),
    )


@cache
def batch_norm_resident(plan: BatchNormPlan, itemsize: int, device: Device) -> ResidentPlan | None:
    """Returns the plan of training in one launch each way, None where channels are not for a program to hold."""
    block_s = next_power_of_2(plan.positions)
    if plan.channels_last or itemsize > 4 or 4 * plan.positions < 3 * block_s:
        return None
    most = batch_norm_values(False, itemsize, device)["resident_lanes"]
    for lanes, (threads, programs) in RESIDENT[plan.align * itemsize >= 8].items():
        images = lanes // block_s
        if lanes <= most and plan.batch <= images:
            return ResidentPlan(images, block_s, launch_options(threads, device, programs))
    return None


@cache
def batch_norm_drawing(plan: BatchNormPlan, device: Device) -> BatchNormPlan:
    """Returns the plan of sweeps that draw noise, whose words take registers beside every value: 16 values a thread.

    With 32, as without noise, channels-last tiles spill (compiled for sm_90); with fewer than 8 loads are narrow. Where
    they are narrow anyhow and each has an address of its own, 8 values in tiles half as long: 16 spill on sm_100.
    """
    if plan.align == 1 and not plan.channels_last and plan.block_s > 1:
        plan = replace(plan, block_s=plan.block_s // 2)
    threads = plan.options["num_warps"] * device.warp_size
    wanted = min(plan.block_c * plan.block_s // 16, 2 * threads)
    options = launch_options(max(wanted, threads), device)
    return replace(plan, options=options, moment_options=options, partial_options=options)


def batch_norm_sign_bytes(shape: tuple[int, ...], channels_last: bool, itemsize: int, device: Device) -> int:
    """Returns the bytes that hold a bit for every element of every tile.

    The batch size may be a symbol, which no branch may ask for its value: where a plan follows it, this is the most
    that any takes.
    """
    n, c, s = shape[0], int(shape[1]), int(prod(shape[2:]))
    if not channels_last:
        plan = batch_norm((1, c, s), False, itemsize, device)
        return n * plan.tiles * plan.groups * max(plan.block_c * plan.block_s // 8, 1)
    most = batch_norm_values(True, itemsize, device)["tile"] // channel_block(c)
    return cdiv(n * s, most) * most * cdiv(c, channel_block(c)) * channel_block(c) // 8
