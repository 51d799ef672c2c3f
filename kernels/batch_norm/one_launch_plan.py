"""Plans of batch norm's passes in one launch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from normlib.kernels.batch_norm.plan import TILE, BatchNormPlan, batch_norm_values, cache_room, most_cache_room
from normlib.kernels.plan import Device, cdiv, launch_options

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

    @property
    def kind(self) -> str:
        return ("on chip" if self.kept else "one launch") + (", barrier" if self.splits > 1 else "")


# Tiles of x, or of dy and x, that a program holds in registers, and elements of such a tile by itemsize. Ahead-of-time
# compilation shows no spills for any target with what three or two programs of a multiprocessor leave a thread.
KEPT = {1: 3, 2: 2}
KEPT_TILE = {2: 2048, 4: 2048, 8: 512}


def _on_chip(plan: BatchNormPlan, itemsize: int, tensors: int, device: Device, alone: bool) -> OncePlan | None:
    """Returns the plan whose programs hold all of x (and dy) in registers; None where there is more of it.

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
    """Returns the plan in one launch of a pass that sweeps twice over `tensors` activations; None if three are better.

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
    chosen = batch_norm_values(plan.channels_last, itemsize, device)
    room = cache_room(chosen, device)
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
    # By the channels only: a new batch size compiles nothing.
    block_p = min(max(TILE[itemsize] // 8 // plan.block_c, 1), 256)
    if plan.channels_last and plan.block_c == 16 and tensors == 2:
        block_p *= 2  # or what ptxas makes of MobileNetV2's first backward pass for sm_100 spills 8 bytes
    if few and group <= room:
        return OncePlan(plan, windows=plan.groups, splits=1, ahead=0, block_p=block_p, options=options)
    most_waiting = room if plan.groups == 1 else tensors * most_cache_room(chosen, device)
    if not device.cooperative or programs < least or group > most_waiting:
        return None
    resident = programs * device.multiprocessors
    most = min(plan.groups, max(room // group, 1), resident)
    # With groups to follow, half as many windows that run a group ahead hide the wait at the barrier.
    ahead = int(1 < most < plan.groups)

    def steps(windows: int) -> int:
        """Returns the tiles that a program sweeps, counting the cost of each round as one more."""
        return cdiv(plan.groups, windows) * (cdiv(plan.tiles, min(resident // windows, plan.tiles)) + 1)

    windows = min(range(1, most // (1 + ahead) + 1), key=steps)
    splits = min(resident // windows, plan.tiles)
    options = {**options, "launch_cooperative_grid": splits > 1}
    return OncePlan(plan, windows, splits, ahead if splits > 1 else 0, block_p, options)
