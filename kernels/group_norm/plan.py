"""Plans of group norm: whole groups a program, or an image's channels over many."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from math import prod

from normlib.kernels.batch_norm.plan import (
    TILE,
    batch_norm,
    batch_norm_values,
    cache_room,
    channel_block,
    spatial_block,
)
from normlib.kernels.plan import Device, alignment, cdiv, launch_options, next_power_of_2

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
    stages: int  # of a sweep's pipeline of loads
    options: dict[str, int]

    @cached_property
    def tiles(self) -> int:
        return cdiv(self.positions, self.block_s)

    @cached_property
    def step(self) -> int:
        """Channels of a program."""
        return self.block_c // self.rows * self.per_group if self.rows else self.block_c

    @cached_property
    def groups(self) -> int:
        """Of channels that a program has, in all images."""
        return self.batch * cdiv(self.channels, self.step)

    @cached_property
    def statistics(self) -> int:
        """Groups that are normalized, in all images."""
        return self.batch * (self.channels // self.per_group)

    @cached_property
    def merges(self) -> int:
        """Programs that merge them."""
        return cdiv(self.statistics, MERGED_GROUPS)

    @cached_property
    def parts(self) -> int:
        """Partial results of one channel."""
        return self.batch * self.splits

    @cached_property
    def count(self) -> int:
        """Elements of one channel in all images."""
        return self.batch * self.positions

    @property
    def kind(self) -> str:
        return "one launch" if self.rows else "streaming"


def _whole_groups(
    channels: int, positions: int, per_group: int, last: bool, itemsize: int, alone_tiles: int
) -> tuple[int, int, int]:
    """Returns (rows, block_c, block_s) of tiles of whole groups; zeros where there are none.

    Channels-last a tile is as wide as it can be, of groups that are neighbours in memory: rows may have no gaps.
    """
    # Where each load has an address of its own, half as many of them, or what Triton 3.6 makes of backward spills.
    parts = 2 if alignment(positions) == 1 and not last else 1
    tile, rows = TILE[itemsize] // parts, next_power_of_2(per_group)
    gaps, run = rows != per_group, min(next_power_of_2(positions), GROUP_RUN[last] // parts)
    if rows * run > tile or (last and gaps and per_group != channels):
        return 0, 0, 0
    if last:
        block_s = next_power_of_2(positions)
        wide = min(max(channel_block(channels), tile // block_s), next_power_of_2(channels))
    else:
        block_s = min(spatial_block(positions), tile // rows)
        # Where a program's tiles are many, they are half the size, and the programs twice as many.
        elements = tile if cdiv(positions, block_s) <= alone_tiles else tile // 2
        wide = 1 if gaps else min(elements // block_s, next_power_of_2(channels))
    block_c = max(min(wide, tile // run), rows)
    return rows, block_c, min(block_s, tile // block_c)


@cache
def group_norm(
    shape: tuple[int, ...], groups: int, channels_last: bool, itemsize: int, device: Device
) -> GroupNormPlan:
    """Returns the plan of (N, C, *) in the given layout, normalized in `groups` groups of channels."""
    n, c, s = shape[0], shape[1], prod(shape[2:])
    chosen = batch_norm_values(channels_last, itemsize, device)
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
    outgrows = 0 < cache_room(chosen, device) < prod(shape) * itemsize
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
        stages=chosen["stages"],
        options=launch_options(128 if align * itemsize >= 8 else 256, device),
    )
