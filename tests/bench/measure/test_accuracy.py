"""The verdict must pass what is right, in every dtype and size, and see what usual tolerances let through."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch
from torch import Tensor

from bench.cases.case import DTYPES, Case
from bench.cases.operators import Inputs, operators
from bench.measure import accuracy
from bench.measure.providers import _autograd
from bench.results.records import TensorError

CPU = torch.device("cpu")
OPS = ("batch_norm", "layer_norm", "rms_norm")
BUGS = ("last column dropped", "divisor N + 1", "eps 1e-3 for 1e-5", "rstd rounded to bf16")
# Values per statistic: what a bug of one in N must show itself against.
SHAPES = {
    "batch_norm": ((8, 16, 8, 8), (16, 24, 16, 16)),
    "layer_norm": ((64, 768), (32, 4096)),
    "rms_norm": ((64, 768), (32, 4096)),
}
TINY = {"batch_norm": ((3, 37, 7, 7), (8, 33)), "layer_norm": ((1, 64), (5, 100)), "rms_norm": ((1, 64), (5, 100))}


def problem(op: str, shape: tuple[int, ...], dtype: str, seed: int = 0) -> tuple[Case, Inputs, dict[str, Tensor]]:
    """Inputs, and the float64 truth of forward and backward."""
    operator = operators()[op]
    case = Case(op, shape, (), dtype, operator.layouts[0], "fwd_bwd", eps=1e-5)
    inputs = operator.inputs(case, CPU, seed)
    truth = operator.reference(case, inputs)
    return case, inputs, {name: truth[name] for name in ("y", "dx", "dw", "db") if name in truth}


def float32_norm(case: Case, inputs: Inputs, bug: str = "") -> dict[str, Tensor]:
    """Forward and backward with float32 sums and one rounding at the end: as good as a kernel can be, or bugged."""
    channels = case.op == "batch_norm"
    lay = lambda t: t.movedim(1, -1).reshape(-1, case.shape[1]).T if channels else t
    unlay = lambda t: t.T.reshape(case.shape[0], *case.shape[2:], case.shape[1]).movedim(-1, 1) if channels else t
    per = lambda v: v.float()[:, None] if channels else v.float()
    x, dy = lay(inputs["x"]).float(), lay(inputs["dy"]).float()
    weight, bias = per(inputs["weight"]), per(inputs["bias"]) if "bias" in inputs else 0.0
    count = x.shape[1]
    counted = x[:, :-1] if bug == BUGS[0] else x
    divisor = count + (bug == BUGS[1])
    mean = 0.0 if case.op == "rms_norm" else counted.sum(1, keepdim=True) / divisor
    rstd = ((counted - mean).square().sum(1, keepdim=True) / divisor + (1e-3 if bug == BUGS[2] else case.eps)).rsqrt()
    rstd = rstd.bfloat16().float() if bug == BUGS[3] else rstd
    x_hat = (x - mean) * rstd
    wdy = weight * dy
    c1 = (x_hat * wdy).sum(1, keepdim=True) / divisor
    c2 = 0.0 if case.op == "rms_norm" else wdy.sum(1, keepdim=True) / divisor
    over = 1 if channels else 0
    out = {
        "y": unlay(x_hat * weight + bias).to(inputs["x"].dtype),
        "dx": unlay(rstd * (wdy - x_hat * c1 - c2)).to(inputs["x"].dtype),
    }
    out["dw"] = (dy * x_hat).sum(over).to(inputs["weight"].dtype)
    if "bias" in inputs:
        out["db"] = dy.sum(over).to(inputs["bias"].dtype)
    return out


def torch_errors(case: Case, inputs: Inputs, truth: dict[str, Tensor]) -> dict[str, float]:
    out = _autograd.runnable(case, inputs, _autograd.bound(case, torch.nn.functional)).outputs()
    return accuracy.yardstick(checked(case, inputs, out, truth))


def checked(
    case: Case,
    inputs: Inputs,
    out: dict[str, Tensor],
    truth: dict[str, Tensor],
    yardstick: dict[str, float] | None = None,
) -> list[TensorError]:
    operator = operators()[case.op]
    return accuracy.check(out, truth, operator.dtypes(inputs), yardstick, operator.statistics_dim)


def one(
    out: Tensor | None, ref: Tensor, dtype: torch.dtype = torch.float32, yardstick: float | None = None
) -> TensorError:
    """The error of a single tensor."""
    return accuracy.check({"y": out}, {"y": ref}, {"y": dtype}, None if yardstick is None else {"y": yardstick})[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "shape"), [(op, s) for op in OPS for s in (*SHAPES[op], *TINY[op])], ids=str)
def test_float32_sums_and_one_last_rounding_are_right(op, shape, dtype):
    case, inputs, truth = problem(op, shape, dtype)
    errors = checked(case, inputs, float32_norm(case, inputs), truth, torch_errors(case, inputs, truth))
    assert accuracy.verdict(errors) == ("ok", "")


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "shape"), [(op, s) for op in OPS for s in SHAPES[op]], ids=str)
def test_a_planted_bug_is_wrong_in_y(op, shape, dtype, bug):
    case, inputs, truth = problem(op, shape, dtype)
    errors = checked(case, inputs, float32_norm(case, inputs, bug), truth)
    status, reason = accuracy.verdict(errors)
    assert status == "wrong"
    assert reason.startswith("y: ")


@pytest.mark.parametrize("dtype", ("fp16", "bf16"))
def test_the_rounded_truth_has_floor_ratio_one_and_no_scale_error_however_small_the_tensor(dtype):
    torch_dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    for size in (1, 3, 64, 10000):
        ref = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
        error = one(ref.to(torch_dtype), ref, torch_dtype)
        assert (error.ok, error.floor_ratio, error.scale_error) == (True, 1.0, 0.0)


def test_a_relative_error_of_a_few_parts_in_a_hundred_thousand_is_seen_in_bf16():
    ref = torch.randn(512, 768, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    error = one((ref * (1 + 3e-5)).bfloat16(), ref, torch.bfloat16)
    assert error.floor_ratio < 1.001
    assert (error.ok, error.decided_by) == (False, "scale_error")


def test_a_result_at_twice_the_floor_is_wrong_in_fp16():
    generator = torch.Generator().manual_seed(0)
    ref = torch.randn(64, 256, dtype=torch.float64, generator=generator)
    noisy = ref * (1 + 5e-4 * torch.randn(ref.shape, dtype=torch.float64, generator=generator))
    error = one(noisy.half(), ref, torch.float16)
    assert (error.ok, error.decided_by) == (False, "floor_ratio")


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        (None, "y: missing"),
        ([1.0, 2.0], "y: a list instead of a tensor"),
        (torch.ones(3), "y: shape [3] instead of [2]"),
        (torch.ones(2, dtype=torch.float16), "y: dtype fp16 instead of fp32"),
        (torch.ones(2, dtype=torch.float64), "y: dtype torch.float64 instead of fp32"),
    ],
)
def test_what_is_no_such_tensor_is_wrong(out, reason):
    assert accuracy.verdict([one(out, torch.ones(2, dtype=torch.float64))]) == ("wrong", reason)


def test_a_tensor_that_nobody_returned_is_wrong():
    errors = accuracy.check({}, {"dw": torch.ones(2).double()}, {"dw": torch.float32})
    assert accuracy.verdict(errors) == ("wrong", "dw: missing")


def test_zeros_are_wrong():
    ref = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        error = one(torch.zeros(8, 8, dtype=dtype), ref, dtype, yardstick=1e-7)
        assert (error.ok, error.rel_l2_error) == (False, 1.0)


def test_a_reference_of_zeros_allows_zeros_alone():
    zeros = torch.zeros(4, 4, dtype=torch.float64)
    for dtype in (torch.float32, torch.float16):
        assert one(zeros.to(dtype), zeros, dtype, yardstick=0.0).ok
        error = one(zeros.to(dtype) + 1e-7, zeros, dtype, yardstick=0.0)
        assert (error.ok, error.rel_l2_error) == (False, inf)


@pytest.mark.parametrize("special", (nan, inf, -inf))
def test_a_special_value_must_be_where_the_reference_has_it(special):
    ref = torch.tensor([[1.0, 2.0], [3.0, special]], dtype=torch.float64)
    same, elsewhere, nowhere = ref.float(), ref.float().flip(0), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert one(same, ref).ok
    for out in (elsewhere, nowhere):
        assert accuracy.verdict([one(out, ref)]) == ("wrong", "y: NaN or Inf in other places than the reference")


def test_the_sign_of_an_infinity_counts():
    ref = torch.tensor([1.0, inf], dtype=torch.float64)
    assert not one(torch.tensor([1.0, -inf]), ref).masks_match


def test_what_overflows_the_dtype_must_overflow():
    ref = torch.tensor([1.0, 1e5], dtype=torch.float64)
    assert one(torch.tensor([1.0, inf]).half(), ref, torch.float16).ok
    assert not one(torch.tensor([1.0, 65504.0]).half(), ref, torch.float16).ok


def test_a_nan_in_the_output_is_wrong_though_everything_else_is_right():
    ref = torch.ones(64, dtype=torch.float64)
    out = torch.ones(64)
    out[7] = nan
    assert not one(out, ref).ok


@pytest.mark.parametrize(("size", "ok"), [(2 * 2.0**-23, True), (3 * 2.0**-23, False)])
def test_fp32_is_held_to_the_rounding_of_a_statistic_where_torch_is_exact(size, ok):
    ref = torch.ones(4096, dtype=torch.float64)
    # Alternating, so that the scale is right and PyTorch's figure alone decides.
    out = (ref + size * torch.tensor([1.0, -1.0]).repeat(2048)).float()
    error = one(out, ref, yardstick=0.0)
    assert error.scale_error < 3e-8
    assert error.ok is ok


def test_fp32_may_have_twice_torchs_error_and_no_more():
    ref, size = torch.ones(4096, dtype=torch.float64), 2.0**-21
    out = (ref + size * torch.tensor([1.0, -1.0]).repeat(2048)).float()
    assert one(out, ref, yardstick=0.51 * size).ok
    error = one(out, ref, yardstick=0.49 * size)
    assert (error.ok, error.decided_by, error.bound) == (False, "error_vs_torch", 2.0)
    assert error.floor_ratio is None


@pytest.mark.parametrize(("units", "figure"), [(0.1, 0.2), (0.2, 1.0), (0.4, 1.0), (0.5, 1.0), (1.0, 2.0), (2.0, 4.0)])
def test_within_half_a_unit_nothing_is_held_against_a_luckier_torch(units, figure):
    ref = torch.full((4096,), 1.5, dtype=torch.float64)
    # A float64 tensor stands for the output, so that its error can be a part of a unit, which is 2^-23 here.
    out = ref + units * 2.0**-23
    yardstick = (0.2 if units >= 0.2 else 0.5) * 2.0**-23 / 1.5
    error = accuracy._compare("y", out, ref, "fp32", yardstick, 0, accuracy.STATISTIC_ROUNDING, 1.0)
    assert error.error_vs_torch == pytest.approx(figure)


def test_where_one_statistic_has_all_the_energy_its_error_may_be_the_scales():
    alike = torch.ones(64, dtype=torch.float64)
    alone = torch.cat([torch.tensor([1e3], dtype=torch.float64), torch.full((63,), 1e-3, dtype=torch.float64)])
    # 2.8e-7 is between the bounds of one statistic, 3.4e-7, and of 64 alike, 1.3e-7.
    assert one((alone * (1 + 2.8e-7)).float(), alone).ok
    error = one((alike * (1 + 2.8e-7)).float(), alike)
    assert (error.ok, error.decided_by) == (False, "scale_error")
    assert error.bound == pytest.approx(accuracy.SCALE_BOUND["fp32"] + accuracy.STATISTIC_ROUNDING / 8)


def test_torchs_own_lost_digits_are_no_excuse_in_fp32():
    ref, size = torch.ones(4096, dtype=torch.float64), 2.0**-19
    out = (ref + size * torch.tensor([1.0, -1.0]).repeat(2048)).float()
    error = one(out, ref, yardstick=size)
    assert (error.ok, error.decided_by, error.bound) == (False, "rel_l2_error", 2.0**-20)


def test_torch_is_measured_against_itself_as_one():
    case, inputs, truth = problem("layer_norm", (8, 64), "fp32")
    out = _autograd.runnable(case, inputs, _autograd.bound(case, torch.nn.functional)).outputs()
    errors = checked(case, inputs, out, truth, torch_errors(case, inputs, truth))
    assert [error.error_vs_torch for error in errors] == [1.0] * 4


@pytest.mark.parametrize(
    ("dtype", "value", "ulp"),
    [
        (torch.float32, 1.0, 2.0**-23),
        (torch.float16, 1.0, 2.0**-10),
        (torch.bfloat16, 3.0, 2.0**-6),
        (torch.float16, 0.0, 2.0**-24),
        (torch.float16, 2.0**-20, 2.0**-24),
    ],
)
def test_an_ulp_is_that_of_the_dtype_at_the_reference(dtype, value, ulp):
    ref = torch.zeros(3, 4, dtype=torch.float64)
    ref[1, 2] = value
    out = ref.clone()
    out[1, 2] += 2 * ulp
    error = one(out.to(dtype), ref, dtype)
    assert (error.max_ulp, error.max_ulp_index) == (2.0, [1, 2])


def test_the_reason_names_every_tensor_that_is_wrong():
    ref = {"y": torch.ones(4).double(), "dx": torch.ones(4).double(), "dw": torch.ones(4).double()}
    out = {"y": torch.ones(4), "dx": torch.full((4,), 1.5), "dw": None}
    status, reason = accuracy.verdict(accuracy.check(out, ref, dict.fromkeys(ref, torch.float32)))
    assert (status, reason) == ("wrong", "dx: scale_error 0.5 is beyond 2.19e-07; dw: missing")


def test_a_sum_that_cancels_is_held_to_what_its_terms_allow():
    from bench.cases.operators import operators

    operator = operators()["batch_norm"]
    dy = torch.randn(4, 3, 7, 7)
    dy[:, 1] -= dy[:, 1].mean() - 1e-4  # db of channel 1 is the rest of a cancellation
    inputs = {"x": dy, "dy": dy, "weight": torch.ones(3), "bias": torch.zeros(3)}
    reference = {"y": torch.randn(4, 3, 7, 7).double(), "dw": torch.ones(3).double(), "db": dy.double().sum((0, 2, 3))}
    plain = operator.amplification(inputs, reference)
    dy[:, 0] -= dy[:, 0].mean() - 1e-4
    dy[:, 2] -= dy[:, 2].mean() - 1e-4
    reference["db"] = dy.double().sum((0, 2, 3))
    cancelled = operator.amplification(inputs, reference)
    assert cancelled["db"] > 100 > plain["db"] >= 1.0
    ref = {"db": reference["db"]}
    off = {"db": (reference["db"] * (1 + 1e-5)).float()}
    judge = lambda amplification: accuracy.check(off, ref, {"db": torch.float32}, None, 1, amplification)[0].ok
    assert judge(cancelled) and not judge(None)


def test_a_tensor_of_nan_has_no_small_error():
    ref = torch.randn(8, 8, dtype=torch.float64)
    error = one(torch.full((8, 8), torch.nan), ref)
    assert (error.ok, error.decided_by, error.rel_l2_error) == (False, "masks_match", inf)
    assert accuracy.yardstick([error]) == {}


def test_slack_widens_what_chance_has_a_part_in_and_not_the_floor():
    ref = torch.linspace(1, 2, 64, dtype=torch.float64).reshape(8, 8)
    off = 1 + 1.5 * (accuracy.SCALE_BOUND["fp32"] + accuracy.STATISTIC_ROUNDING / 8**0.5)
    found = {"y": (ref * off).float()}
    for slack, status in ((1.0, "wrong"), (2.0, "ok")):
        errors = accuracy.check(found, {"y": ref}, {"y": torch.float32}, slack=slack)
        assert accuracy.verdict(errors)[0] == status
    rough = {"y": (ref * (1 + 2**-8)).half()}
    (error,) = accuracy.check(rough, {"y": ref}, {"y": torch.float16}, slack=1e9)
    assert error.decided_by == "floor_ratio" and not error.ok
