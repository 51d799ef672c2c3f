"""The backward pass of wide rows in slices: as right as in a loop, and the same bits in any order of programs."""

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

# Columns, the last slice partial or not; rows, uneven over groups.
CASES = {
    "one group": ((3, 10243), torch.float32, Device(2, cooperative=True)),
    "groups of uneven rows": ((5, 10248), torch.bfloat16, Device(3, cooperative=True)),
    "five slices": ((4, 4100), torch.float64, Device(3, cooperative=True)),
    "full slices": ((5, 12288), torch.float16, Device(3, cooperative=True)),
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
    assert {p.slices for p in plans} == {3, 5}
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


def test_what_is_not_whole_needs_no_slices():
    shape, dtype, device = CASES["one group"]
    assert row_plan.row_backward(*shape, dtype.itemsize, device, whole=False).slices == 1


@pytest.mark.parametrize("n", [8193, 12288, 16384, 65536, 131072])
def test_all_slices_of_a_gpu_are_resident(n):
    h200 = Device(132, l2=50 << 20, cooperative=True)
    for m in (1, 7, 4096):
        p = row_plan.row_backward(m, n, 2, h200)
        threads, columns = p.rows.options["num_warps"] * h200.warp_size, p.rows.chunks * p.rows.block_n
        assert p.slices * p.programs <= h200.multiprocessors * (h200.registers // (p.rows.options["maxnreg"] * threads))
        assert p.programs <= m and (p.slices - 1) * columns < n <= p.slices * columns


@pytest.mark.gpu
@pytest.mark.chance
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4096, 12288), (513, 16384), (7, 65536)])
def test_slices_on_a_gpu_match_float64_and_themselves(shape, dtype, device):
    x, dy, dz, weight = draw(shape, dtype, device)
    here = device_of(x)
    first = backward(x, dy, dz, weight, True, here)[2]
    for name, out, truth in zip(("dx", "dw", "db"), first, truth_of(x, dy, dz, weight, True), strict=True):
        assert_right(out, truth, name)
    for _ in range(20):
        again = backward(x, dy, dz, weight, True, here)[2]
        assert all(torch.equal(out, other) for out, other in zip(first, again, strict=True))
