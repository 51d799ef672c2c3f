"""Device memory under a batch-norm plan, with an ideal cache: how much of its second sweep finds what the first read.

The cache holds whole tiles of a few KB and drops the one used longest ago, but before any of those what a sweep
declares to leave first. Where tiles are parts of a line, it holds each sector by itself. Programs start in launch
order, as many at a time as fit, and take turns, a tile each. A bound and no measurement: a real cache is
set-associative, in parts, and its programs do not keep step.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

from normlib.kernels.batch_norm.plan import BatchNormPlan
from normlib.kernels.group_norm.plan import GroupNormPlan
from normlib.kernels.plan import cdiv
from normlib.kernels.traffic import TileSweep

Tile = int
Step = tuple[TileSweep, Tile]
MOST_STEPS = 32  # that a program is simulated with in one sweep of a channel group


@dataclass(frozen=True)
class Programs:
    """The programs of one launch: `splits` at each channel group."""

    sweeps: tuple[TileSweep, ...]
    splits: int
    resident: int  # programs that run at a time


def expected_units(
    plan: BatchNormPlan | GroupNormPlan, launches: Sequence[Programs], itemsize: int, cache_bytes: int
) -> float:
    """Returns the units of device memory that a plan's launches with sweeps move; `itemsize` of x."""
    # Several tiles of one program in a row are taken as one where there are many: finer turns change the third digit.
    most = max(launch.splits for launch in launches) * MOST_STEPS
    tiles = cdiv(plan.tiles, max(plan.tiles // most, 1))
    tile_bytes = plan.channels * plan.count * itemsize / (plan.groups * tiles)
    return device_units(plan.groups, tiles, tuple(launches), int(cache_bytes / tile_bytes))


@cache
def device_units(groups: int, tiles: int, launches: tuple[Programs, ...], capacity: int) -> float:
    """Returns the units that reach device memory: loads that miss, and every store once.

    `tiles` are those of one channel group, and `capacity` is how many of them the cache holds.
    """
    sweeps = [sweep for launch in launches for sweep in launch.sweeps]
    if len(sweeps) == 1:  # nothing is met again
        return len(sweeps[0].loads) + len(sweeps[0].stores)
    cached: OrderedDict[tuple[str, Tile], None] = OrderedDict()
    missed = 0
    for launch in launches:
        for sweep, tile in _in_turns(_programs(groups, tiles, launch), launch.resident):
            for tensor in (*sweep.loads, *sweep.stores):
                key = (tensor, tile)
                missed += tensor in sweep.loads and key not in cached
                cached[key] = None
                cached.move_to_end(key, last=not sweep.evicts)
                if len(cached) > capacity:
                    cached.popitem(last=False)
    return missed / (groups * tiles) + sum(len(sweep.stores) for sweep in sweeps)


def _in_turns(programs: Iterator[Iterator[Step]], at_once: int) -> Iterator[Step]:
    """Yields the steps of all programs; where one ends the next begins in its place."""
    running = deque(islice(programs, at_once))
    while running:
        program = running.popleft()
        step = next(program, None)
        if step is not None:
            yield step
            running.append(program)
        elif (following := next(programs, None)) is not None:
            running.appendleft(following)


def _programs(groups: int, tiles: int, launch: Programs) -> Iterator[Iterator[Step]]:
    """Yields programs in launch order, channel groups innermost, each with the steps of its sweeps."""
    for dealt in range(launch.splits):
        split = launch.splits - 1 - dealt if launch.sweeps[0].backwards else dealt
        share, over = divmod(tiles, launch.splits)
        first = split * share + min(split, over)
        own = range(first, first + share + (split < over))
        for group in range(groups):
            yield _steps(group * tiles, own, launch)


def _steps(start: Tile, own: range, launch: Programs) -> Iterator[Step]:
    """Yields a program's own tiles of the channel group that starts there, once for each sweep."""
    for sweep in launch.sweeps:
        for tile in reversed(own) if sweep.backwards else own:
            yield sweep, start + tile
