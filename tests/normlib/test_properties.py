"""Hypothesis' inputs: results within their bounds of float64, and the laws that arithmetic keeps to the bit.

Inputs are small multiples of 1/4, "on a grid", so that shifts and scalings of inputs are exact. A result is within its
bound of the true value: one rounding to the result's dtype, and term_bounds.ROUNDINGS of the accumulator's on the terms
that are summed. Where arithmetic keeps a law exactly (moving rows, powers of two) the bits must agree.
"""

from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
import triton
import triton.language as tl
from calls import Ran
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from term_bounds import ROUNDINGS, terms

from normlib import functional as N
from normlib import reference
from normlib.kernels.batch_norm import launch as batch_norm_kernels
from normlib.kernels.batch_norm import plan as batch_norm_plan
from normlib.kernels.numerics import accumulator, load
from normlib.kernels.plan import Device
from normlib.kernels.reduction import merge_moments, tile_moments

# Bits of a significand.
PRECISION = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}
DTYPES = tuple(PRECISION)
STEP, LIMIT = 0.25, 12  # the grid: STEP times the integers up to LIMIT, so that 5 x and x + x' stay exact in bfloat16

# An example takes the interpreter 0.2 s: few of them, and no search for a smaller one after a failure, which would
# take minutes. The fixtures are the same for every example.
laws = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
each_norm = pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "batch_norm"])
each_row_norm = pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
powers_of_two = st.sampled_from([0.125, 0.25, 0.5, 2.0, 4.0, 8.0])
# None so small that a gradient of a constant channel, 1 / sqrt(eps) times dy, would overflow in float16.
EPS = 1e-3
epsilons = st.sampled_from([EPS, 0.1, 1.0])

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """Shapes of the input: `rows` of layer and RMS norm, `batch` of batch norm."""

    dtype: torch.dtype
    rows: tuple[int, int]  # rows, columns
    batch: tuple[int, int, int]  # samples, channels, positions
    channels_last: bool
    wide_parameters: bool
    seed: int

    def generator(self):
        return torch.Generator().manual_seed(self.seed)

    def tensors(self, norm, device) -> Tensors:
        """x and dy on the grid, weight and bias anywhere."""
        shape = self.batch if norm == "batch_norm" else self.rows
        draw = self.generator()
        found = {k: on_grid(shape, draw) for k in ("x", "dy")}
        if norm == "batch_norm" and self.channels_last:
            found = {k: t.movedim(1, -1).contiguous().movedim(-1, 1) for k, t in found.items()}
        found = {k: t.to(device, self.dtype) for k, t in found.items()}
        wide = statistics_dtype(self.dtype) if self.wide_parameters else self.dtype
        for k in ("weight", "bias"):
            found[k] = torch.randn(shape[1], generator=draw, dtype=torch.float64).to(device, wide)
        return found

    def order(self, length, device):
        return torch.randperm(length, generator=self.generator()).to(device)


def on_grid(shape, generator):
    return torch.randint(-LIMIT, LIMIT + 1, shape, generator=generator).double() * STEP


def statistics_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


# 600 columns are two chunks of a row; 65 channels, channels-last, three groups. A channel has two elements at least.
cases = st.builds(
    Case,
    dtype=st.sampled_from(DTYPES),
    rows=st.tuples(st.integers(1, 9), st.one_of(st.integers(1, 16), st.integers(1, 100), st.just(600))),
    batch=st.one_of(
        st.tuples(st.integers(2, 3), st.integers(1, 9), st.integers(1, 9)),
        st.tuples(st.integers(2, 4), st.integers(1, 4), st.integers(10, 100)),
        st.tuples(st.just(2), st.just(65), st.integers(1, 3)),
    ),
    channels_last=st.booleans(),
    wide_parameters=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


def run(norm, x, dy, weight, bias, eps=EPS) -> Tensors:
    """y, dx, dw and db, by the kernels."""
    return run_backward(norm, x, (dy,), weight, bias, eps)[0]


def run_backward(norm, x, dys, weight, bias, eps=EPS) -> list[Tensors]:
    """The same for each of several dy."""
    x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
    with Ran() as ran:
        if norm == "batch_norm":
            y = N.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
        else:
            y = getattr(N, norm)(x, weight.shape, weight, bias=bias, eps=eps)
        found = [torch.autograd.grad(y, (x, weight, bias), dy, retain_graph=True) for dy in dys]
    assert all(name.startswith(norm) for name in ran.ours) and len(set(ran.ours)) == 2
    return [{"y": y.detach(), **dict(zip(("dx", "dw", "db"), gradients, strict=True))} for gradients in found]


def evaluate(x, weight, bias, mean, var, dy, eps=EPS):
    """(y, dx) of batch norm with given statistics, by the kernels."""
    x = x.detach().requires_grad_()
    with Ran() as ran:
        y = N.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
        (dx,) = torch.autograd.grad(y, x, dy)
    assert set(ran.ours) == {"batch_norm_eval", "batch_norm_backward"}
    return y.detach(), dx


def truth(norm, x, dy, weight, bias, eps=EPS) -> Tensors:
    if norm == "batch_norm":
        return reference.batch_norm(x, weight, bias, eps, dy)
    return getattr(reference, norm)(x, weight.shape, weight, bias, eps, dy)


def magnitudes(norm, x, dy, weight, bias, eps=EPS, mean=None, var=None) -> Tensors:
    """Returns the sum of the absolute terms of y and each gradient."""
    tensors = {"input": x, "weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    found = terms(norm, tensors, dy, 1, eps, mean is not None)
    return {"y": found["y"], "dx": found["dinput"], "dw": found["dweight"], "db": found["dbias"]}


def bound(out, its_terms):
    """Returns the largest allowed error: one rounding to the dtype, and the accumulator's share of the terms."""
    info, wide = torch.finfo(out.dtype), torch.finfo(statistics_dtype(out.dtype))
    last = info.eps / 2 * out.double().abs().clamp(min=info.smallest_normal) if out.dtype.itemsize == 2 else 0.0
    return last + ROUNDINGS * wide.eps / 2 * its_terms


def assert_within(difference, bounds, name):
    excess = (difference.abs() / bounds.expand_as(difference)).nan_to_num(0.0)
    assert bool((difference.abs() <= bounds).all()), f"{name}: {float(excess.max()):.2f} times the bound"


def assert_agree(ours: Tensors, others: Tensors, its_terms: Tensors, names=("y", "dx", "dw", "db")):
    """Two results of one truth, each within its bound of it."""
    for k in names:
        a, b = ours[k], others[k]
        assert_within(a.double() - b.double(), bound(a, its_terms[k]) + bound(b, its_terms[k]), k)


def assert_same_bits(ours: Tensors, others: Tensors, names=("y", "dx", "dw", "db")):
    assert [k for k in names if not torch.equal(ours[k], others[k])] == []


def assert_scaled(scaled, plain, factor, name):
    """scaled = factor * plain to the bit, but for subnormal numbers, which have a fixed spacing: half of it each."""
    info = torch.finfo(plain.dtype)
    half = info.smallest_normal * info.eps / 2
    normal = (plain.abs() >= info.smallest_normal) & (scaled.abs() >= info.smallest_normal)
    slack = torch.where(normal, 0.0, half * (1 + factor))
    assert bool(((scaled.double() - factor * plain.double()).abs() <= slack).all()), name


# ------------------------------------------------------------------------------------------------------ the truth


@each_norm
@laws
@given(case=cases, eps=epsilons, factor=st.sampled_from([0.125, 0.5, 1.0, -1.0, 8.0]), data=st.data())
def test_results_are_those_of_float64_at_any_mean_and_scale(norm, case, eps, factor, data, device):
    """Truth and bound are the unshifted input's: no error may grow with the mean, up to 1e5 standard deviations."""
    given_ = scaled_input(case.tensors(norm, device), factor)
    exact, allowed = truth(norm, **given_, eps=eps), magnitudes(norm, **given_, eps=eps)
    if norm != "rms_norm":
        # The largest shift on the grid at which every sum is exact, and at most 2^20 steps.
        most = 2 ** min(PRECISION[case.dtype] - 1, 20) - LIMIT
        shift = data.draw(st.integers(-most, most), label="steps") * STEP * factor
        shifted = given_["x"] + shift
        assert torch.equal(shifted.double() - shift, given_["x"].double())
        given_["x"] = shifted
    for k, out in run(norm, **given_, eps=eps).items():
        assert_within(out.double() - exact[k], bound(out, allowed[k]), k)


@laws
@given(case=cases, eps=epsilons)
def test_results_of_evaluation_are_those_of_float64_and_of_each_element_alone(case, eps, device):
    given_ = case.tensors("batch_norm", device)
    x, dy, weight, bias = (given_[k] for k in ("x", "dy", "weight", "bias"))
    mean, var = draw_statistics(case, device)
    y, dx = evaluate(x, weight, bias, mean, var, dy, eps)
    exact = reference.batch_norm_eval(x, mean, var, weight, bias, eps, dy)
    allowed = magnitudes("batch_norm", **given_, eps=eps, mean=mean, var=var)
    for k, out in (("y", y), ("dx", dx)):
        assert_within(out.double() - exact[k], bound(out, allowed[k]), k)
    first, _ = evaluate(x[:1], weight, bias, mean, var, dy[:1], eps)
    assert torch.equal(first, y[:1])


# ------------------------------------------------------------------------------------------------------- the bits


@each_norm
@laws
@given(case=cases, eps=epsilons, factor=powers_of_two)
def test_a_power_of_two_and_its_square_on_eps_change_no_bit(norm, case, eps, factor, device):
    given_ = case.tensors(norm, device)
    plain, scaled = run(norm, **given_, eps=eps), run(norm, **scaled_input(given_, factor), eps=eps * factor**2)
    assert_same_bits(scaled, plain, ("y", "dw", "db"))
    assert_scaled(scaled["dx"], plain["dx"], 1 / factor, "dx")


def scaled_input(tensors, factor):
    scaled = tensors["x"] * factor
    assert torch.equal(scaled.double(), tensors["x"].double() * factor)
    return {**tensors, "x": scaled}


@each_row_norm
@laws
@given(case=cases)
def test_rows_may_be_permuted_to_the_bit(norm, case, device):
    given_ = case.tensors(norm, device)
    order = case.order(case.rows[0], device)
    plain = run(norm, **given_)
    moved = run(norm, **given_ | {k: given_[k][order] for k in ("x", "dy")})
    assert_same_bits(moved, {k: plain[k][order] for k in ("y", "dx")}, ("y", "dx"))
    assert_agree(moved, plain, magnitudes(norm, **given_), ("dw", "db"))


@laws
@given(case=cases)
def test_channels_may_be_permuted_to_the_bit(case, device):
    given_ = case.tensors("batch_norm", device)
    order = case.order(case.batch[1], device)
    plain = run("batch_norm", **given_)
    permuted = {k: t.movedim(1, 0)[order].movedim(0, 1) if t.dim() > 1 else t[order] for k, t in given_.items()}
    moved = run("batch_norm", **{k: like_layout(t, given_[k]) for k, t in permuted.items()})
    expected = {k: t[:, order] if t.dim() > 1 else t[order] for k, t in plain.items()}
    assert_same_bits(moved, expected)


def like_layout(tensor, layout):
    return torch.empty_like(layout).copy_(tensor)


def draw_statistics(case, device):
    draw = case.generator()
    dtype = statistics_dtype(case.dtype)
    mean, var = torch.randn(case.batch[1], generator=draw), torch.rand(case.batch[1], generator=draw) + 0.1
    return mean.to(device, dtype), var.to(device, dtype)


@each_norm
@laws
@given(case=cases, factor=powers_of_two)
def test_gradients_are_scaled_with_dy_to_the_bit(norm, case, factor, device):
    given_ = case.tensors(norm, device)
    dy = given_.pop("dy")
    plain, scaled = run_backward(norm, dys=(dy, dy * factor), **given_)
    for k in ("dx", "dw", "db"):
        assert_scaled(scaled[k], plain[k], factor, k)


# --------------------------------------------------------------------------------------------------------- merging


@triton.jit
def _moments_of_parts_kernel(
    out_ptr,  # (4,): count, mean, low, M2
    x_ptr,  # (n,)
    ends_ptr,  # (PARTS + 1,): where parts begin and end; some may be empty
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ACC: tl.constexpr = accumulator(x_ptr.dtype)
    i = tl.arange(0, BLOCK)[None, :]
    count = tl.zeros([1, 1], ACC)
    mean = tl.zeros([1, 1], ACC)
    low = tl.zeros([1, 1], ACC)
    m2 = tl.zeros([1, 1], ACC)
    for part in range(PARTS):
        first, last = tl.load(ends_ptr + part), tl.load(ends_ptr + part + 1)
        mask = (i >= first) & (i < last)
        here = tl.zeros([1, 1], ACC) + (last - first)
        part_mean, part_low, part_m2 = tile_moments(load(x_ptr + i, mask, ACC), mask, tl.maximum(here, 1.0), 1)
        count, mean, low, m2 = merge_moments(count, mean, low, m2, here, part_mean, part_low, part_m2)
    one = tl.arange(0, 1)[None, :]
    tl.store(out_ptr + one, count)
    tl.store(out_ptr + 1 + one, mean)
    tl.store(out_ptr + 2 + one, low)
    tl.store(out_ptr + 3 + one, m2)


@laws
@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    steps=st.lists(st.integers(-LIMIT, LIMIT), min_size=1, max_size=64),
    shift=st.integers(-(2**20), 2**20),
    cuts=st.lists(st.integers(0, 64), min_size=3, max_size=3),
)
def test_moments_of_parts_merge_to_those_of_the_whole(dtype, steps, shift, cuts, device):
    """Within what the sums round, each a rounding a level: 6 levels of 64 elements twice, and a few in each merge."""
    values = [Fraction(k + shift) for k in steps]
    ends = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    out = torch.empty(4, dtype=dtype, device=device)
    x = torch.tensor([float(v) for v in values], dtype=dtype, device=device)
    _moments_of_parts_kernel[(1,)](out, x, torch.tensor(ends, device=device), PARTS=len(ends) - 1, BLOCK=64)
    count, mean, low, m2 = (Fraction(v) for v in out.tolist())
    exact_mean = sum(values) / len(values)
    spread = sum(abs(v - exact_mean) for v in values) / len(values)
    exact_m2 = sum((v - exact_mean) ** 2 for v in values)
    unit = Fraction(torch.finfo(dtype).eps) / 2
    # tile_moments: the subtractions of mean and low, the square, the sum; merge_moments: each of its operations.
    roundings = 16 + 8 * (len(ends) - 1)
    assert count == len(values)
    assert abs(mean + low - exact_mean) <= roundings * (unit * spread + 2 * unit**2 * abs(exact_mean))
    assert abs(m2 - exact_m2) <= roundings * unit * (exact_m2 + len(values) * unit**2 * exact_mean**2)


# A sample is a tile here: 9 tiles and more are dealt to 4 programs, or on the larger device to one each.
many_tiles = st.builds(
    Case,
    dtype=st.sampled_from(DTYPES),
    rows=st.just((1, 1)),
    batch=st.tuples(st.integers(9, 12), st.integers(1, 4), st.integers(2, 9)),
    channels_last=st.just(False),
    wide_parameters=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


@laws
@given(case=many_tiles, shift=st.integers(-(2**20), 2**20))
def test_batch_statistics_do_not_depend_on_how_a_channel_is_split(case, shift, device):
    given_ = case.tensors("batch_norm", device)
    wide = statistics_dtype(case.dtype)
    x = given_["x"].to(wide) + shift * STEP
    weight, bias = (given_[k].to(wide) for k in ("weight", "bias"))
    few, many = Device(1), Device(3)
    splits = [batch_norm_plan.batch_norm(case.batch, False, x.element_size(), d).splits for d in (few, many)]
    assert splits == [4, case.batch[0]]
    found = []
    for d in (few, many):
        y, mean, rstd = batch_norm_kernels.batch_norm_forward(x, weight, bias, None, None, 0.0, EPS, d)
        found.append({"y": y, "mean": mean.double().sum(0) - shift * STEP, "rstd": rstd.double()})
    unshifted = {**given_, "x": x - shift * STEP, "weight": weight, "bias": bias}
    exact = truth("batch_norm", **unshifted)
    average = unshifted["x"].double().abs().mean((0, 2))
    unit = torch.finfo(wide).eps / 2
    assert_agree(*found, magnitudes("batch_norm", **unshifted), ("y",))
    assert_within(found[0]["mean"] - found[1]["mean"], 2 * ROUNDINGS * unit * average, "mean")
    assert_within(found[0]["rstd"] - found[1]["rstd"], 2 * ROUNDINGS * unit * exact["rstd"], "rstd")
