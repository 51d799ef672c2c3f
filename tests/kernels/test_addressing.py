"""Reads and writes beyond 2^31 elements, without that memory; test_offset_widths.py reads the compiled code.

Memory that nobody touches is not there, so tensors of 2^31 elements cost a test nothing; and of a launch over them only
the programs at the grid's corners run. The interpreter wraps 32-bit integers as a GPU does: a product of 32 bits would
read and write 4 GB below the tensor, which usually ends the process.
"""

from contextlib import contextmanager
from itertools import product

import pytest
import torch
import triton
import triton.language as tl
from errors import assert_right

from normlib import functional, reference
from normlib.kernels.batch_norm import plan as batch_norm_plan
from normlib.kernels.batch_norm import streaming
from normlib.kernels.batch_norm.statistics import merge_statistics
from normlib.kernels.batch_norm.sweeps import INPUT_GRADIENT, OUTPUT, STATISTICS, SUMS, launch_sweep
from normlib.kernels.host import float_pair
from normlib.kernels.numerics import INTERPRETED
from normlib.kernels.plan import Device
from normlib.kernels.row_norm import launch as row_norm
from normlib.kernels.weight_norm import launch as weight_norm

BEYOND = 2**31
DTYPE = torch.bfloat16
# So many programs that each has one tile.
WIDE = Device(2**20)

interpreted = pytest.mark.skipif(not INTERPRETED.value, reason="picks the programs that the interpreter runs")


@contextmanager
def corner_programs():
    """Of every launch, only the programs at the grid's corners."""
    from triton.runtime.interpreter import GridExecutor, interpreter_builder

    launch = GridExecutor.__call__
    set_dim, set_index = interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx

    def launch_corners(self, *args, **kwargs):
        grid = (*self.grid, 1, 1)[:3]
        corners = [sorted({0, length - 1}) for length in grid]
        self.grid = tuple(map(len, corners))
        interpreter_builder.set_grid_dim = lambda *_: set_dim(*grid)
        interpreter_builder.set_grid_idx = lambda *at: set_index(*(c[i] for c, i in zip(corners, at, strict=True)))
        try:
            return launch(self, *args, **kwargs)
        finally:
            interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx = set_dim, set_index

    GridExecutor.__call__ = launch_corners
    try:
        yield
    finally:
        GridExecutor.__call__ = launch


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("n", [24, 1600, 32776])  # many rows a program, chunks, and the loops
def test_rows_may_be_any_distance_apart(n, centred, device):
    # Row 2 of x, and of dy behind it, begins beyond 2^31 elements.
    stride = BEYOND // 2 + 16
    memory = torch.empty(2 * stride + 2 * n, dtype=DTYPE, device=device)
    x, dy = (memory.as_strided((3, n), (stride, 1), offset) for offset in (0, n))
    for t in (x, dy):
        t.copy_(torch.randn(3, n))
    weight, bias = torch.randn(2, n, device=device)
    y, mean, rstd = row_norm.forward(x, weight, bias, 1e-5, centred, n)
    dx, dw, db = row_norm.backward(dy, x, mean, rstd, weight, centred, n, torch.float32, torch.float32, True)
    formula = reference.layer_norm if centred else reference.rms_norm
    truth = formula(x, (n,), weight, bias, 1e-5, dy)
    for name, out in {"y": y, "dx": dx, "dw": dw, "db": db, "rstd": rstd}.items():
        assert_right(out, truth[name], name)


@pytest.mark.parametrize("n", [24, 20000])  # in registers, and the loops
def test_rows_of_weights_may_be_any_distance_apart(n, device):
    stride = BEYOND // 2 + 16
    memory = torch.empty(2 * stride + 2 * n, dtype=DTYPE, device=device)
    x, dy = (memory.as_strided((3, n), (stride, 1), offset) for offset in (0, n))
    for t in (x, dy):
        t.copy_(torch.randn(3, n))
    weight = torch.rand(3, device=device) + 0.5
    y, norm = weight_norm.forward(x, weight)
    dx, dw = weight_norm.backward(dy, x, norm, weight, True, True)
    truth = reference.weight_norm(x, weight, dy)
    for name, out in {"y": y, "dx": dx, "dw": dw}.items():
        assert_right(out, truth[name], name)


@interpreted
@pytest.mark.parametrize("n", [1600, 20000])
def test_weights_are_written_beyond_2_31_elements(n):
    row, row_dy = torch.randn(2, 1, n).to(DTYPE)
    rows = BEYOND // n + 3
    x, dy = row.expand(rows, n), row_dy.expand(rows, n)
    weight = torch.full((rows,), 1.5)
    with corner_programs():
        y, norm = weight_norm.forward(x, weight, WIDE)
        dx, _ = weight_norm.backward(dy, x, norm, weight, True, False, WIDE)
    truth = reference.weight_norm(row, weight[:1], row_dy)
    for name, out in {"y": y, "dx": dx}.items():
        assert out.numel() > BEYOND
        for i in (0, rows - 1):
            assert_right(out[i : i + 1], truth[name], f"{name}, row {i}")


@interpreted
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("n", [1600, 32776])
def test_results_are_written_beyond_2_31_elements(n, centred):
    row, row_dy = torch.randn(2, 1, n).to(DTYPE)
    rows = BEYOND // n + 3
    x, dy = row.expand(rows, n), row_dy.expand(rows, n)
    with corner_programs():
        y, mean, rstd = row_norm.forward(x, None, None, 1e-5, centred, n, WIDE)
        dx, *_ = row_norm.backward(dy, x, mean, rstd, None, centred, n, None, None, True, WIDE)
    formula = reference.layer_norm if centred else reference.rms_norm
    truth = formula(row, (n,), None, None, 1e-5, row_dy)
    for name, out in {"y": y, "dx": dx}.items():
        assert out.numel() > BEYOND
        for i in (0, rows - 1):
            assert_right(out[i : i + 1], truth[name], f"{name}, row {i}")


# (batch, channels, positions): 2^31 elements and more in 65535 tiles a channel group at most, one tile a program.
HUGE = {"contiguous": ((2, 514, 2**21), False), "channels-last": ((2**19 + 32, 4096), True)}


def corner_tiles(t, p):
    """The first tile of the first channels, and the last tile of the last."""
    if p.channels_last:
        return t[: p.block_s, : p.block_c], t[-p.block_s :, -p.block_c :]
    return t[:1, : p.block_c, : p.block_s], t[-1:, -p.block_c :, -p.block_s :]


@interpreted
@pytest.mark.parametrize("kernel", ["statistics", "evaluation", "sums", "input gradient"])
@pytest.mark.parametrize("layout", HUGE)
def test_batch_norm_reaches_beyond_2_31_elements(layout, kernel):
    shape, last = HUGE[layout]
    p = batch_norm_plan.batch_norm(shape, last, DTYPE.itemsize, WIDE)
    assert p.splits == p.tiles and p.channels % p.block_c == 0 == p.positions % p.block_s
    x, dy, out = (torch.empty(shape, dtype=DTYPE) for _ in range(3))
    for t in (*corner_tiles(x, p), *corner_tiles(dy, p)):
        t.copy_(torch.randn(t.shape) + 3)  # no mean and no sum comes out near zero, where a relative error says little
    c = shape[1]
    mean, var, weight = torch.randn(c), torch.rand(c) + 0.5, torch.randn(c)
    pair, rstd = torch.stack([mean, torch.zeros(c)]), (var + 1e-5).rsqrt()
    dw, db = torch.randn(2, c)
    partials = torch.zeros(3, p.splits, c)
    corners = [(slice(0, p.block_c), 0), (slice(c - p.block_c, c), p.splits - 1)]
    plain = {"RELU": False, "PRE_RELU": False}
    sweeps = {
        "statistics": lambda: launch_sweep(
            streaming._batch_norm_stats_kernel,
            *(p, None, None, None, None, partials, None, x),
            sweep=STATISTICS,
            scalars=(0.0, 0.0),
            PRE_RELU=False,
        ),
        "evaluation": lambda: launch_sweep(
            streaming._batch_norm_normalize_kernel,
            *(p, out, None, x, None, mean, var, weight, None),
            **plain,
            sweep=OUTPUT,
            scalars=(1e-5,),
            EVAL=True,
        ),
        "sums": lambda: launch_sweep(
            streaming._batch_norm_reduce_kernel,
            *(p, None, None, partials, None, None, None, dy, None, x, pair, rstd, weight, None),
            **plain,
            sweep=SUMS,
            scalars=(1e-5,),
            EVAL=False,
        ),
        "input gradient": lambda: launch_sweep(
            streaming._batch_norm_input_gradient_kernel,
            *(p, out, None, dy, None, x, pair, rstd, weight, None, dw, db, None),
            **plain,
            sweep=INPUT_GRADIENT,
        ),
    }
    assert x.numel() > BEYOND
    with corner_programs():
        sweeps[kernel]()
    for x_tile, dy_tile, out_tile, (channels, split) in zip(
        *(corner_tiles(t, p) for t in (x, dy, out)), corners, strict=True
    ):
        given = mean[channels], var[channels], weight[channels]
        truth = reference.batch_norm_eval(x_tile, *given, None, 1e-5, dy_tile)
        found = partials[:, split, channels]
        if kernel == "statistics":
            assert_right(found[0] + found[1], reference.batch_norm(x_tile)["mean"], "mean")
        elif kernel == "evaluation":
            assert_right(out_tile, truth["y"], "y")
        elif kernel == "sums":
            assert_right(found[0], truth["dw"], "dw")
            assert_right(found[1], truth["db"], "db")
        else:
            d = (x_tile.double().movedim(1, -1) - mean[channels].double()) * rstd[channels].double()
            rest = (dw[channels].double() * d + db[channels].double()) / p.count
            wdy = (dy_tile.double().movedim(1, -1) - rest) * (weight * rstd.double())[channels]
            assert_right(out_tile, wdy.movedim(-1, 1), "dx")


@triton.jit
def _merge(
    mean_ptr, rstd_ptr, partials_ptr, C, S, tiles, splits, eps, eps_low,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_P: tl.constexpr
):  # fmt: skip
    merge_statistics(
        mean_ptr, rstd_ptr, None, None, partials_ptr, 0, C, S, tiles, splits,
        eps, eps_low, 0.0, 0.0, BLOCK_C, BLOCK_S, BLOCK_P, tl.float32
    )  # fmt: skip


def test_a_channel_may_have_more_than_2_31_elements(device):
    # Two splits of 2^32 elements each: means 1 and 3, variances 0.5.
    partials = torch.tensor([[[1.0], [3.0]], [[0.0], [0.0]], [[2.0**31], [2.0**31]]], device=device)
    mean, rstd = torch.empty(2, 1, device=device), torch.empty(1, device=device)
    channels, positions, tiles, splits = 1, 2**13, 2**20, 2
    sizes = (channels, positions, tiles, splits)
    _merge[(1,)](mean, rstd, partials, *sizes, *float_pair(1e-5), BLOCK_C=1, BLOCK_S=positions, BLOCK_P=2)
    assert mean.flatten().tolist() == [2.0, 0.0]
    assert_right(rstd, torch.tensor([0.5 + 1 + 1e-5], dtype=torch.float64, device=device).rsqrt(), "rstd")


@pytest.mark.parametrize("channels", [2**k for k in range(20, 31)])
def test_an_offset_inside_a_batch_norm_tile_fits_32_bits(channels):
    # The kernels keep it in 32 bits, beside the tile's own in 64.
    for batch, itemsize in product((1, 8, 64, 1024), (2, 4, 8)):
        p = batch_norm_plan.batch_norm((batch, channels), True, itemsize, Device(132))
        assert (p.block_s - 1) * channels + p.block_c <= BEYOND, f"{batch} rows, {itemsize} bytes an element"


@pytest.mark.parametrize("positions", [49, 2**13 - 1, 2**14 + 1, 6 * 2**12 - 1, 2**20 - 1, 2**24 + 1, 2**30, 2**31 - 1])
def test_an_offset_inside_a_contiguous_batch_norm_tile_fits_32_bits(positions):
    for channels, itemsize in product((1, 3, 64, 4096, 2**20), (2, 4, 8)):
        p = batch_norm_plan.batch_norm((1, channels, positions), False, itemsize, Device(132))
        assert (p.block_c - 1) * positions + p.block_s <= BEYOND


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "batch_norm"])
def test_a_gpu_goes_over_more_than_2_31_elements(name):
    shape = HUGE["contiguous"][0] if name == "batch_norm" else (BEYOND // 4096 + 8, 4096)
    x, dy = (torch.empty(shape, dtype=DTYPE, device="cuda").normal_() for _ in range(2))
    x.requires_grad_()
    if name == "batch_norm":
        y = functional.batch_norm(x, None, None, training=True, eps=1e-5)
        formula = lambda part, gradient: reference.batch_norm(part, None, None, 1e-5, gradient)
        parts = [(slice(None), slice(c, c + 1)) for c in (0, shape[1] - 1)]
    else:
        y = getattr(functional, name)(x, shape[1:], eps=1e-5)
        formula = lambda part, gradient: getattr(reference, name)(part, shape[1:], None, None, 1e-5, gradient)
        parts = [slice(0, 8), slice(shape[0] - 8, shape[0])]
    (dx,) = torch.autograd.grad(y, x, dy)
    for part in parts:
        truth = formula(x.detach()[part], dy[part])
        assert_right(y.detach()[part], truth["y"], "y")
        assert_right(dx[part], truth["dx"], "dx")
