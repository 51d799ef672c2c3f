import subprocess
import sys
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path

import pytest

from normlib.kernels import plan
from normlib.kernels.batch_norm import one_launch_plan
from normlib.kernels.batch_norm import plan as batch_norm_plan
from normlib.kernels.plan import Device
from normlib.kernels.row_norm import plan as row_plan

PLANNING_ALONE = f"""
import sys, types
package = sys.modules["normlib"] = types.ModuleType("normlib")
package.__path__ = [{str(Path(__file__).parents[2] / "normlib")!r}]
from normlib.kernels.batch_norm import one_launch_plan, plan
from normlib.kernels.group_norm import plan as _
from normlib.kernels.row_norm import plan as _
print({{"torch", "triton"}} & set(sys.modules), plan.TILE[2])
"""
H200 = Device(132, l2=50 << 20, cooperative=True)
RESNET50 = [(64, 112), (64, 56), (256, 56), (128, 28), (512, 28), (256, 14), (1024, 14), (512, 7), (2048, 7)]
WIDTHS = [1, 2, 3, 49, 64, 100, 511, 512, 513, 768, 1000, 1600, 4095, 4097, 5120, 7168, 8192, 12288, 16384]


def test_planning_needs_neither_torch_nor_triton():
    # The package itself imports torch: an empty one in its place, in the same folder.
    done = subprocess.run([sys.executable, "-c", PLANNING_ALONE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", str(batch_norm_plan.TILE[2])]


def _tiles(n, itemsize):
    """Of both directions, for rows of n columns that fit in registers."""
    found = [row_plan.row_forward(n, itemsize, H200), row_plan.row_backward(64, n, itemsize, H200).rows]
    return [p for p, most in zip(found, (16384, 4096), strict=True) if n <= most // (itemsize // 8 + 1)]


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("n", WIDTHS)
def test_chunks_cover_a_row_once_in_powers_of_two(n, itemsize):
    for p in _tiles(n, itemsize):
        assert p.block_n & (p.block_n - 1) == 0
        assert p.chunks * p.block_n >= n > (p.chunks - 1) * p.block_n
        assert p.chunks <= row_plan.MAX_CHUNKS


@pytest.mark.parametrize("n", [5120, 6144, 7168, 12288, 1600, 2560])
def test_ragged_model_widths_are_hardly_padded(n):
    p = row_plan.row_forward(n, 2, H200)
    assert p.chunks * p.block_n <= n * 9 / 8


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("n", WIDTHS)
def test_a_thread_sums_several_products_or_a_row_alone(n, itemsize):
    for p in _tiles(n, itemsize):
        threads = H200.warp_size * p.options["num_warps"]
        assert p.chunks * p.block_n * p.block_m >= 2 * threads or p.block_n == 1


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("n", WIDTHS)
def test_a_forward_row_does_not_know_how_many_rows_there_are(n, itemsize):
    # The plan has no number of rows to look at; this fails if somebody gives it one.
    assert row_plan.row_forward(n, itemsize, H200) is row_plan.row_forward(n, itemsize, H200)
    assert "m" not in row_plan.row_forward.__wrapped__.__code__.co_varnames[:3]


@pytest.mark.parametrize(
    "shape", [(1, 3), (5, 7), (32, 64, 112, 112), (4, 65, 7, 7), (256, 2048, 7, 7), (2, 3, 4, 5, 6)]
)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_batch_norm_tiles_cover_every_element(shape, channels_last, itemsize):
    p = batch_norm_plan.batch_norm(shape, channels_last or len(shape) == 2, itemsize, H200)
    assert p.groups * p.block_c >= shape[1] > (p.groups - 1) * p.block_c
    assert p.tiles * p.block_s >= p.count
    assert p.count * shape[1] == prod(shape)
    assert 1 <= p.splits <= min(p.tiles, 65535)
    assert p.block_c * p.block_s <= batch_norm_plan.TILE[itemsize]


def test_a_few_channels_are_split_over_the_whole_device():
    p = batch_norm_plan.batch_norm((32, 64, 112, 112), False, 2, H200)
    assert p.groups * p.splits >= 4 * H200.multiprocessors


@pytest.mark.parametrize("tensors", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 32, 256])
@pytest.mark.parametrize(("channels", "side"), RESNET50)
def test_programs_that_wait_for_each_other_are_all_resident(channels, side, batch, channels_last, tensors):
    p = batch_norm_plan.batch_norm((batch, channels, side, side), channels_last, 2, H200)
    once = one_launch_plan.batch_norm_once(p, 2, tensors, H200)
    if once is None or once.splits == 1:
        assert once is None or not once.options.get("launch_cooperative_grid")
        return
    assert once.options["launch_cooperative_grid"]
    threads = once.options["num_warps"] * H200.warp_size
    registers = -(-once.options["maxnreg"] // 8) * 8  # as the hardware hands them out
    assert once.windows * once.splits <= H200.multiprocessors * (H200.registers // (registers * threads))
    assert once.splits <= once.tiled.tiles and once.windows <= once.tiled.groups
    assert not once.ahead or once.windows < p.groups


@pytest.mark.parametrize("tensors", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize(("channels", "side"), RESNET50)
def test_what_is_held_on_chip_is_all_there_is_and_fits_in_registers(channels, side, itemsize, channels_last, tensors):
    for batch in (1, 2, 3, 8, 32, 64, 256):
        p = batch_norm_plan.batch_norm((batch, channels, side, side), channels_last, itemsize, H200)
        once = one_launch_plan.batch_norm_once(p, itemsize, tensors, H200)
        if once is None or not once.kept:
            continue
        tiled, threads = once.tiled, once.options["num_warps"] * H200.warp_size
        assert tiled.block_c * tiled.block_s <= one_launch_plan.KEPT_TILE[itemsize]
        assert once.windows == tiled.groups and once.splits * once.kept >= tiled.tiles
        held = tensors * once.kept * tiled.block_c * tiled.block_s * max(itemsize // 4, 1)
        assert held <= threads * once.options["maxnreg"] // 2, "half of the registers are for all the rest"


@pytest.mark.parametrize(
    ("shape", "channels_last", "held"),
    [
        ((32, 512, 7, 7), False, (True, True)),  # 0.8 million elements
        ((32, 256, 14, 14), True, (True, True)),  # 1.6
        ((32, 256, 14, 14), False, (True, False)),  # in tiles of 256 positions, of which a channel has 196
        ((24, 128, 28, 28), True, (True, False)),  # 2.4
        ((32, 128, 28, 28), True, (False, False)),  # 3.2
    ],
)
def test_a_tensor_is_held_on_chip_where_all_registers_together_have_room(shape, channels_last, held):
    p = batch_norm_plan.batch_norm(shape, channels_last, 2, H200)
    off = replace(H200, tuning=plan.Tuning({batch_norm_plan.batch_norm_plans(channels_last, 2): {"on_chip": 0}}))
    for tensors, expected in enumerate(held, start=1):
        once, without = (one_launch_plan.batch_norm_once(p, 2, tensors, device) for device in (H200, off))
        assert bool(once and once.kept) is expected
        assert without is None or not without.kept


def test_forward_keeps_signs_by_the_tiles_that_backward_reads_them_by():
    for batch, (channels, side), itemsize, last in product((1, 2, 8, 32), RESNET50, (2, 4), (False, True)):
        p = batch_norm_plan.batch_norm((batch, channels, side, side), last, itemsize, H200)
        both = [
            one_launch_plan.batch_norm_once(p, itemsize, tensors, H200, relu=True, signs=True) for tensors in (1, 2)
        ]
        tiles = {(once.tiled.block_c, once.tiled.block_s) if once else (p.block_c, p.block_s) for once in both}
        assert len(tiles) == 1, (batch, channels, side, itemsize, last)


@pytest.mark.parametrize("tensors", [1, 2])
@pytest.mark.parametrize(("channels", "side"), RESNET50)
def test_what_waits_for_its_second_sweep_fits_in_cache(channels, side, tensors):
    p = batch_norm_plan.batch_norm((32, channels, side, side), False, 2, H200)
    once = one_launch_plan.batch_norm_once(p, 2, tensors, H200)
    groups = p.groups if once is None else once.windows * (1 + once.ahead)  # without a window, all of it
    assert groups * p.block_c * p.count * 2 * tensors <= 0.4 * H200.l2


# A line of ResNet-50's first norm is all of its channels: 49 MiB of x, and of dy, for 32 images.
@pytest.mark.parametrize(
    ("batch", "c", "itemsize", "channels"),
    [
        (8, 64, 2, 64),  # fits in a cache's share as a whole
        (16, 64, 2, 64),  # dy and x of a line fit
        (32, 64, 2, 32),  # of half a line
        (64, 64, 2, 32),  # x of half a line
        (128, 64, 2, 64),  # not even that
        (32, 64, 4, 16),
        (32, 256, 2, 32),
        (32, 24, 2, 32),  # 48 bytes
    ],
)
def test_half_a_line_is_swept_at_a_time_where_a_whole_one_outgrows_the_cache(batch, c, itemsize, channels):
    assert batch_norm_plan.batch_norm((batch, c, 112, 112), True, itemsize, H200).block_c == channels
    # Without a barrier nothing waits a few channels at a time, and tiles are as wide as they are anywhere.
    streaming = batch_norm_plan.batch_norm((batch, c, 112, 112), True, itemsize, replace(H200, cooperative=False))
    assert streaming.block_c == batch_norm_plan.batch_norm((1, c, 7, 7), True, itemsize, H200).block_c


@pytest.mark.parametrize("channels_last", [False, True])
def test_only_what_outgrows_its_share_of_the_cache_is_evicted_first(channels_last):
    policy = lambda batch, device: batch_norm_plan.batch_norm((batch, 64, 56, 56), channels_last, 2, device).evict
    assert policy(32, H200) == ""  # 12.8 MB of 20
    assert policy(64, H200) == "evict_first"
    assert policy(64, Device(132, l2=50 << 20)) == ""


def test_no_program_waits_for_another_where_the_device_promises_no_barrier():
    alone = Device(132, l2=50 << 20)
    for shape in [(32, 64, 56, 56), (2, 4096, 8, 8), (64, 1000)]:
        once = one_launch_plan.batch_norm_once(
            batch_norm_plan.batch_norm(shape, len(shape) == 2, 2, alone), 2, 1, alone
        )
        assert once is None or once.splits == 1


@pytest.mark.parametrize(("lengths", "width"), [((49,), 1), ((100,), 4), ((196, 392), 4), ((4096,), 16), ((48, 24), 8)])
def test_alignment_is_the_common_power_of_two(lengths, width):
    assert plan.alignment(*lengths) == width


def test_a_backward_pass_leaves_few_partial_rows():
    for m, n in [(1, 64), (300000, 128), (4096, 4096), (64, 65536)]:
        p = row_plan.row_backward(m, n, 2, H200)
        assert 1 <= p.programs <= 4 * H200.multiprocessors
