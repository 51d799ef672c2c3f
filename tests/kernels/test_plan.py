import subprocess
import sys
from math import prod
from pathlib import Path

import pytest

from normlib.kernels import plan
from normlib.kernels.batch_norm import plan as batch_norm_plan
from normlib.kernels.plan import Device
from normlib.kernels.row_norm import plan as row_plan

PLANNING_ALONE = f"""
import sys, types
package = sys.modules["normlib"] = types.ModuleType("normlib")
package.__path__ = [{str(Path(__file__).parents[2] / "normlib")!r}]
from normlib.kernels.batch_norm import plan
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
    assert 3 * H200.multiprocessors <= p.groups * p.splits <= 4 * H200.multiprocessors  # in one turn


@pytest.mark.parametrize("channels_last", [False, True])
def test_only_what_outgrows_its_share_of_the_cache_is_evicted_first(channels_last):
    policy = lambda batch, device: batch_norm_plan.batch_norm((batch, 64, 56, 56), channels_last, 2, device).evict
    assert policy(32, H200) == ""  # 12.8 MB of 20
    assert policy(64, H200) == "evict_first"
    assert policy(64, Device(132)) == ""


@pytest.mark.parametrize(("lengths", "width"), [((49,), 1), ((100,), 4), ((196, 392), 4), ((4096,), 16), ((48, 24), 8)])
def test_alignment_is_the_common_power_of_two(lengths, width):
    assert plan.alignment(*lengths) == width


def test_a_backward_pass_leaves_few_partial_rows():
    for m, n in [(1, 64), (300000, 128), (4096, 4096), (64, 65536)]:
        p = row_plan.row_backward(m, n, 2, H200)
        assert 1 <= p.programs <= 4 * H200.multiprocessors
