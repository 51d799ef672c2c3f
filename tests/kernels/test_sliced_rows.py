"""Wide rows in slices, both passes: as right as in a loop, and the same bits in any order of programs."""

import pytest
import torch
from errors import assert_right
from interleaving import interleaved

from normlib import reference
from normlib.kernels.host import device_of
from normlib.kernels.numerics import INTERPRETED
from normlib.kernels.plan import Device
from normlib.kernels.row_norm import launch as row_norm
from normlib.kernels.row_norm import plan as row_plan

# Backward: columns, the last slice partial or not; rows, uneven over groups.
CASES = {
    "one group": ((3, 10243), torch.float32, Device(2, cooperative=True)),
    "groups of uneven rows": ((5, 10248), torch.bfloat16, Device(3, cooperative=True)),
    "five slices": ((4, 4100), torch.float64, Device(3, cooperative=True)),
    "full slices": ((5, 12288), torch.float16, Device(3, cooperative=True)),
}

# Forward the same, with what a call may have besides.
FORWARD = {
    "odd width": ((3, 16385), torch.float32, Device(6, cooperative=True), {}),
    "groups of uneven rows": ((5, 16400), torch.bfloat16, Device(3, cooperative=True), {"residual": True}),
    "nine slices": ((4, 8200), torch.float64, Device(3, cooperative=True), {"zero_centred": True}),
    "full slices": ((5, 24576), torch.float16, Device(4, cooperative=True), {}),
    "a part": ((3, 16400), torch.bfloat16, Device(3, cooperative=True), {"partial_n": 7000}),  # in the second slice
}


def draw(shape, dtype, where):
    x, dy, dz = (torch.randn(shape, dtype=torch.float64) + offset for offset in (3.0, 0.0, 0.0))
    weight = torch.rand(shape[1], dtype=torch.float64) + 0.5
    return tuple(t.to(where, dtype) for t in (x, dy, dz, weight))


def backward(x, dy, dz, weight, centred, device):
    n = x.shape[1]
    _, mean, rstd = row_norm.forward(x, weight, None, 1e-5, centred, n, device)
    db_dtype = x.dtype if centred else None
    return mean, rstd, row_norm.backward(dy, x, mean, rstd, weight, centred, n, x.dtype, db_dtype, True, device, dz)


def truth_of(x, dy, dz, weight, centred):
    shape = x.shape[1:]
    if centred:
        truth = reference.layer_norm(x, shape, weight, torch.zeros_like(weight), 1e-5, dy)
    else:
        truth = reference.rms_norm(x, shape, weight, None, 1e-5, dy)
    return truth["dx"] + (0.0 if dz is None else dz.double()), truth["dw"], truth["db"] if centred else None


def test_the_cases_are_in_slices_and_their_groups_are_uneven():
    plans = [row_plan.row_backward(*shape, dtype.itemsize, device) for shape, dtype, device in CASES.values()]
    assert {p.rows.slices for p in plans} == {3, 5}
    assert {p.programs for p in plans} == {1, 2}
    assert any(shape[0] % p.programs for p, (shape, *_) in zip(plans, CASES.values(), strict=True))


@pytest.mark.skipif(not INTERPRETED.value, reason="orders the programs of Triton's interpreter")
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_slices_match_float64_in_any_order(case, centred, monkeypatch):
    shape, dtype, device = CASES[case]
    passed_on = torch.zeros(4, dtype=torch.int32)  # from launch to launch, as those of one stream do it on a GPU
    monkeypatch.setattr(row_norm, "counters", lambda n, device: passed_on[:n])
    x, dy, dz, weight = draw(shape, dtype, "cpu")
    dz = dz if centred else None
    torch.use_deterministic_algorithms(True)  # a sum that is read before it is written is NaN
    try:
        runs = []
        for seed in range(2):
            with interleaved(seed):
                runs.append(backward(x, dy, dz, weight, centred, device)[2])
            assert not passed_on.any()
    finally:
        torch.use_deterministic_algorithms(False)
    for name, out, again, truth in zip(("dx", "dw", "db"), *runs, truth_of(x, dy, dz, weight, centred), strict=True):
        assert (out is None) == (truth is None)
        if out is not None:
            assert torch.equal(out, again), f"{name} depends on the order"
            assert_right(out, truth, name)


@pytest.mark.skipif(not INTERPRETED.value, reason="orders the programs of Triton's interpreter")
def test_slices_of_rows_whose_statistic_is_of_a_part_match_float64():
    shape, dtype, device = CASES["groups of uneven rows"]
    x, dy, _, weight = draw(shape, dtype, "cpu")
    n, of = shape[1], {"partial_n": 5000}  # in the second of three slices
    _, mean, rstd = row_norm.forward(x, weight, None, 1e-5, False, n, device, **of)
    with interleaved(0):
        found = row_norm.backward(dy, x, mean, rstd, weight, False, n, dtype, None, True, device, **of)
    truth = reference.partial_rms_norm(x, (n,), weight, None, 1e-5, dy, 5000 / n)
    for name, out in zip(("dx", "dw"), found, strict=False):
        assert_right(out, truth[name], name)


def forward(x, residual, weight, bias, centred, device, **options):
    z = torch.empty_like(x) if residual is not None else None
    y, mean, rstd = row_norm.forward(
        x, weight, bias, 1e-5, centred, x.shape[1], device, residual=residual, z=z, **options
    )
    return y, mean, rstd, z


def forward_truth(x, weight, bias, centred, zero_centred=False, partial_n=None):
    """Returns (y, mean, rstd) in float64."""
    x = x.double()
    mean = x.mean(1, keepdim=True) if centred else torch.zeros(len(x), 1, dtype=x.dtype)
    d = (x - mean)[:, :partial_n]
    rstd = (d.square().mean(1, keepdim=True) + 1e-5).rsqrt()
    y = (x - mean) * rstd * (weight.double() + zero_centred) + (0.0 if bias is None else bias.double())
    return y, mean[:, 0], rstd[:, 0]


def assert_forward_is_right(found, x, residual, weight, bias, centred, **options):
    y, mean, rstd, z = found
    if residual is not None:
        assert torch.equal(z, (x.double() + residual.double()).to(x.dtype))
        x = z
    truth, truth_mean, truth_rstd = forward_truth(x, weight, bias, centred, **options)
    assert_right(y, truth, "y")
    assert_right(rstd, truth_rstd, "rstd")
    if centred:
        assert_right(mean[0], truth_mean, "mean")


def test_the_forward_cases_are_in_slices_and_their_groups_are_uneven():
    plans = [row_plan.row_forward(shape[1], dtype.itemsize, device) for shape, dtype, device, _ in FORWARD.values()]
    assert {p.slices for p in plans} == {3, 9, 17}
    assert {p.ahead for p in plans} == {True, False}
    assert any(shape[0] % p.programs for p, (shape, *_) in zip(plans, FORWARD.values(), strict=True))


@pytest.mark.skipif(not INTERPRETED.value, reason="orders the programs of Triton's interpreter")
@pytest.mark.parametrize(
    ("case", "centred"),
    [(case, centred) for case in FORWARD for centred in (True, False) if not (centred and case == "a part")],
)
def test_forward_slices_match_float64_in_any_order(case, centred, monkeypatch):
    shape, dtype, device, options = FORWARD[case]
    passed_on = torch.zeros(4, dtype=torch.int32)
    monkeypatch.setattr(row_norm, "counters", lambda n, device: passed_on[:n])
    x, residual, _, weight = draw(shape, dtype, "cpu")
    given = (x, residual if "residual" in options else None, weight, weight.flip(0) if centred else None, centred)
    options = {key: value for key, value in options.items() if key != "residual"}
    torch.use_deterministic_algorithms(True)  # a moment that is read before it is written is NaN
    try:
        runs = []
        for seed in range(2):
            with interleaved(seed):
                runs.append(forward(*given, device, **options))
            assert not passed_on.any()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_forward_is_right(runs[0], *given, **options)
    for out, again in zip(*runs, strict=True):
        assert out is again is None or torch.equal(out, again)


@pytest.mark.skipif(not INTERPRETED.value, reason="orders the programs of Triton's interpreter")
@pytest.mark.parametrize("first", [1e6, float("inf"), float("nan")])
def test_one_slice_far_from_the_others_costs_no_accuracy(first):
    shape, dtype, device, _ = FORWARD["odd width"]
    x, _, _, weight = draw(shape, dtype, "cpu")
    x[0, :3000] += first
    x[1, 9000] = first
    given = (x, None, weight, None, True)
    with interleaved(0):
        y, mean, rstd, _ = forward(*given, device)
    truth, truth_mean, truth_rstd = forward_truth(x, weight, None, True)
    if first == 1e6:
        assert_right(y, truth, "y")
        assert_right(rstd, truth_rstd, "rstd")
    else:
        assert torch.equal(y.isnan(), truth.isnan()) and y[:2].isnan().all() and not y[2].isnan().any()
        assert torch.equal(mean[0, :2].double(), truth_mean[:2]) or first != first


def test_what_is_not_whole_needs_no_slices():
    shape, dtype, device = CASES["one group"]
    assert row_plan.row_backward(*shape, dtype.itemsize, device, whole=False).rows.slices == 1


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("n", [8193, 12288, 16384, 20001, 65536, 131072])
def test_all_slices_of_a_gpu_are_resident(n, itemsize):
    h200 = Device(132, l2=50 << 20, cooperative=True)
    backward = [(p.rows, p.programs) for p in (row_plan.row_backward(m, n, itemsize, h200) for m in (1, 7, 4096))]
    forward = row_plan.row_forward(n, itemsize, h200)
    for rows, programs in (*backward, (forward, forward.programs)):
        if rows.slices > 1:
            threads, columns = rows.options["num_warps"] * h200.warp_size, rows.chunks * rows.block_n
            at_once = h200.registers // (rows.options["maxnreg"] * threads)
            assert rows.slices * programs <= h200.multiprocessors * at_once
            assert (rows.slices - 1) * columns < n <= rows.slices * columns
    assert forward.slices > 1 or n <= 16384
    assert all(programs <= m for (_, programs), m in zip(backward, (1, 7, 4096), strict=True))


@pytest.mark.gpu
@pytest.mark.chance
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4096, 12288), (513, 16384), (7, 65536)])
def test_slices_on_a_gpu_match_float64_and_themselves(shape, dtype, device):
    x, dy, dz, weight = draw(shape, dtype, device)
    here = device_of(x)
    given = (x, dz, weight, weight, True)  # with a residual, whose gradient dz is backward
    found = forward(*given, here)
    assert_forward_is_right(*((t.cpu() for t in found),), *(t.cpu() for t in given[:4]), True)
    first = backward(x, dy, dz, weight, True, here)[2]
    for name, out, truth in zip(("dx", "dw", "db"), first, truth_of(x, dy, dz, weight, True), strict=True):
        assert_right(out, truth, name)
    for _ in range(20):
        again = backward(x, dy, dz, weight, True, here)[2]
        again += forward(*given, here)
        assert all(torch.equal(out, other) for out, other in zip((*first, *found), again, strict=True))
