"""The row kernels against float64: many short rows, ragged ones in chunks, and rows too long for registers."""

import pytest
import torch
from errors import assert_right

from normlib import reference
from normlib.kernels.plan import Device
from normlib.kernels.row_norm import launch as row_norm
from normlib.kernels.row_norm import plan as row_plan

SHAPES = [(1, 1), (4, 8), (33, 100), (9, 768), (5, 1600), (3, 7168), (2, 20000)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def draw(shape, dtype, device, offset=3.0):
    x = torch.randn(shape, dtype=torch.float64) * 2 + offset
    dy = torch.randn(shape, dtype=torch.float64)
    weight, bias = (torch.randn(shape[-1], dtype=torch.float64) + 1 for _ in range(2))
    return tuple(t.to(device, dtype) for t in (x, dy, weight, bias))


def run(x, dy, weight, bias, centred, multiprocessors=2):
    n, device = x.shape[-1], Device(multiprocessors)
    y, mean, rstd = row_norm.forward(x, weight, bias, 1e-5, centred, n, device)
    dx, dw, db = row_norm.backward(dy, x, mean, rstd, weight, centred, n, x.dtype, x.dtype, True, device)
    return {"y": y, "dx": dx, "dw": dw, "db": db, "rstd": rstd}


def truth_of(x, dy, weight, bias, centred):
    formula = reference.layer_norm if centred else reference.rms_norm
    return formula(x, x.shape[-1:], weight, bias, 1e-5, dy)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward_match_float64(shape, dtype, centred, device):
    inputs = draw(shape, dtype, device)
    found, truth = run(*inputs, centred), truth_of(*inputs, centred)
    for name, out in found.items():
        if shape[1] > 1:  # a single column's x_hat and dx are zero, or the rest of a cancellation
            assert_right(out, truth[name], name)
        else:
            torch.testing.assert_close(out.double(), truth[name], rtol=1e-2, atol=1e-4)


# Rows of 20000 columns, in the same loops, have every pair of these.
@pytest.mark.parametrize(("dtype", "centred"), [(torch.float32, True), (torch.bfloat16, False)])
def test_rows_of_131072_columns_match_float64(dtype, centred, device):
    inputs = draw((2, 131072), dtype, device)
    assert not row_plan.row_forward(131072, dtype.itemsize, Device(2)).chunks
    found, truth = run(*inputs, centred), truth_of(*inputs, centred)
    for name, out in found.items():
        assert_right(out, truth[name], name)


@pytest.mark.parametrize("n", [96, 20000])
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6])
def test_float32_layer_norm_errors_do_not_grow_with_the_mean(offset, n, device):
    inputs = draw((4, n), torch.float32, device, offset)
    found, truth = run(*inputs, centred=True), truth_of(*inputs, centred=True)
    for name, out in found.items():
        assert_right(out, truth[name], name)


@pytest.mark.parametrize("centred", [True, False])
def test_the_split_of_rows_over_programs_changes_no_row(centred, device):
    inputs = draw((40, 300), torch.float32, device)
    few, many = run(*inputs, centred, 1), run(*inputs, centred, 7)
    for name in ("y", "dx", "rstd"):
        assert torch.equal(few[name], many[name])


@pytest.mark.parametrize("n", [64, 1000, 32776])
@pytest.mark.parametrize("centred", [True, False])
def test_a_row_does_not_depend_on_its_neighbours(centred, n, device):
    x, _, weight, bias = draw((9, n), torch.bfloat16, device)
    together, *_ = row_norm.forward(x, weight, bias, 1e-5, centred, n)
    for i in (0, 4, 8):
        alone, *_ = row_norm.forward(x[i : i + 1], weight, bias, 1e-5, centred, n)
        assert torch.equal(alone[0], together[i])


def test_an_infinite_value_spoils_a_layer_norm_row_and_one_rms_norm_element(device):
    x, _, weight, bias = draw((3, 40), torch.float32, device)
    x[1, 7] = float("inf")
    y, *_ = row_norm.forward(x, weight, bias, 1e-5, True, 40)
    assert y[1].isnan().all() and y[[0, 2]].isfinite().all()
    y, *_ = row_norm.forward(x, weight, bias, 1e-5, False, 40)
    assert y[1, 7].isnan() and int(y.isnan().sum()) == 1


def test_a_constant_row_has_no_variance(device):
    x = torch.full((2, 1000), 54321.123, device=device)
    y, *_ = row_norm.forward(x, None, None, 1e-5, True, 1000)
    assert not y.any()


@pytest.mark.parametrize("n", [100, 20000])
def test_only_what_is_asked_for_is_computed(n, device):
    x, dy, weight, bias = draw((6, n), torch.float32, device)
    _, mean, rstd = row_norm.forward(x, weight, bias, 1e-5, True, n)
    full = row_norm.backward(dy, x, mean, rstd, weight, True, n, x.dtype, x.dtype, True)
    for dw, db, dx in [(None, None, True), (x.dtype, None, False), (None, x.dtype, False), (x.dtype, None, True)]:
        found = row_norm.backward(dy, x, mean, rstd, weight, True, n, dw, db, dx)
        for out, all_of_it, wanted in zip(found, full, (dx, dw, db), strict=True):
            assert torch.equal(out, all_of_it) if wanted else out is None


@pytest.mark.parametrize("n", [37, 20000])
def test_every_element_is_written(n, device):
    # With this setting torch.empty is full of NaN, so an element that no kernel wrote shows.
    inputs = draw((5, n), torch.float32, device)
    torch.use_deterministic_algorithms(True)
    try:
        found = run(*inputs, centred=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(t.isfinite().all() for t in found.values())


@pytest.mark.parametrize("layout", ["rows apart", "transposed", "expanded"])
def test_strided_inputs_and_gradients_are_understood(layout, device):
    n = 24
    x, dy, weight, bias = draw((10, n), torch.float32, device)
    views = {
        "rows apart": lambda t: torch.stack([t, t], 1)[:, 0],
        "transposed": lambda t: t.t().contiguous().t(),
        "expanded": lambda t: t[:, :1].expand(10, n),
    }
    strided_x, strided_dy = views[layout](x), views[layout](dy)
    found = run(strided_x, strided_dy, weight, bias, False)
    plain = run(strided_x.contiguous(), strided_dy.contiguous(), weight, bias, False)
    assert all(torch.equal(found[k], plain[k]) for k in found)
