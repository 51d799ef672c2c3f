"""All layouts of an input and its gradient, in every dtype, against float64."""

import pytest
import torch
import torch.nn.functional as F
from term_bounds import assert_one_rounding_away, buffer_terms, terms

from normlib import functional as N
from normlib import reference

# Small, because a tile costs the interpreter some milliseconds; no two lengths are equal, so that none is mistaken.
SHAPE = (3, 6, 4, 5)
EPS, MOMENTUM = 1e-5, 0.3
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def rows_apart(t):
    """Returns t as every second row of a wider tensor, one element into its memory: not aligned to 16 bytes."""
    n, c, h, w = t.shape
    return t.new_zeros((n, c, 2 * h, w + 1))[:, :, ::2, 1:].copy_(t)


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels-last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": rows_apart,
    "expanded": lambda t: t[:1].expand(t.shape),
    "zero-stride": lambda t: t[0, 0, 0, 0].expand(t.shape),
    "broadcast": lambda t: t[:1, :, :1, :1].expand(t.shape),
}
STRIDES = {
    "contiguous": (120, 20, 5, 1),
    "channels-last": (120, 1, 30, 6),
    "transposed": (120, 20, 1, 4),
    "sliced": (288, 48, 12, 1),
    "expanded": (0, 20, 5, 1),
    "zero-stride": (0, 0, 0, 0),
    "broadcast": (0, 20, 0, 0),
}


def sixteenths(*shape):
    """Multiples of 1/16 below 8: exact in every dtype, as are their sums, so that a constant's mean is exact."""
    return torch.randn(shape, dtype=torch.float64).mul(16).round().clamp(-127, 127).div(16)


def vectors(count, shape, dtype, device):
    return [torch.randn(shape, dtype=torch.float64).to(device, dtype) for _ in range(count)]


class BatchNorm:
    """Batch norm with running buffers, which training moves and evaluation uses."""

    def __init__(self, training):
        self.training = training
        self.name, self.shape, self.depth = "batch_norm", SHAPE[1:2], 0

    def run(self, x, weight, bias):
        """Returns y, and {name: (found, truth, sum of the terms' sizes)} of the buffers."""
        mean, var = vectors(2, self.shape, weight.dtype, x.device)
        self.buffers = mean.clone(), var.abs_().add_(0.5).clone()
        y = N.batch_norm(x, mean, var, weight, bias, self.training, MOMENTUM, EPS)
        before = dict(zip(("running_mean", "running_var"), self.buffers, strict=True))
        moved = {name: old.double() for name, old in before.items()}
        if self.training:
            batch = reference.batch_norm(x)
            for name, new in zip(moved, (batch["mean"], batch["var_unbiased"]), strict=True):
                moved[name] = moved[name] * (1 - MOMENTUM) + new * MOMENTUM
        sizes = buffer_terms(x, before, moved)
        return y, {name: (t, moved[name], sizes[name]) for name, t in zip(moved, (mean, var), strict=True)}

    def truth(self, x, weight, bias, dy):
        if self.training:
            return reference.batch_norm(x, weight, bias, EPS, dy)
        mean, var = self.buffers
        return reference.batch_norm_eval(x, mean, var, weight, bias, EPS, dy)

    def theirs(self, x, weight, bias):
        return F.batch_norm(x, *(b.clone() for b in self.buffers), weight, bias, self.training, MOMENTUM, EPS)


class RowNorm:
    """Layer or RMS norm over the last `depth` dimensions."""

    def __init__(self, name, depth):
        self.name, self.shape, self.depth, self.buffers = name, SHAPE[-depth:], depth, (None, None)
        self.training = True

    def run(self, x, weight, bias):
        return getattr(N, self.name)(x, self.shape, weight, bias=bias, eps=EPS), {}

    def truth(self, x, weight, bias, dy):
        return getattr(reference, self.name)(x, self.shape, weight, bias, EPS, dy)

    def theirs(self, x, weight, bias):
        return F.layer_norm(x, self.shape, weight, bias, EPS)


OPERATORS = {
    "batch_norm, training": lambda: BatchNorm(True),
    "batch_norm, evaluation": lambda: BatchNorm(False),
    "layer_norm, one dimension": lambda: RowNorm("layer_norm", 1),
    "layer_norm, three dimensions": lambda: RowNorm("layer_norm", 3),
    "rms_norm, one dimension": lambda: RowNorm("rms_norm", 1),
    "rms_norm, three dimensions": lambda: RowNorm("rms_norm", 3),
}


def kernels_ran(y):
    return "normlib" in y.grad_fn.name() or "_Train" in y.grad_fn.name()


def check(operator, x, weight, bias, gradients):
    """Returns the errors in y, the buffers and the derivatives for each of the gradients, a line each."""
    inputs = [t.detach().requires_grad_() for t in (x, weight, bias)]
    y, buffers = operator.run(*inputs)
    assert kernels_ran(y)
    named = {"input": x, "weight": weight, "bias": bias}
    named |= dict(zip(("running_mean", "running_var"), operator.buffers, strict=True))
    findings = []
    for name, dy in gradients.items():
        truth = operator.truth(x, weight, bias, dy)
        sizes = terms(operator.name, named, dy, operator.depth, EPS, not operator.training)
        found = y.detach(), *torch.autograd.grad(y, inputs, dy, retain_graph=True)
        names = ("y", "dx", "dw", "db")
        checks = {k: (out, truth[k], size) for k, out, size in zip(names, found, sizes.values(), strict=True)} | buffers
        for key, (out, right, size) in checks.items():
            try:
                assert out.shape == right.shape, f"{key}: shape {tuple(out.shape)}"
                assert_one_rounding_away(out, right, size, key)
            except AssertionError as error:
                findings.append(f"gradient {name}: {error}")
    return findings


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_every_layout_is_right_with_every_gradients_layout(name, dtype, layout, device, record_property):
    operator = OPERATORS[name]()
    x = LAYOUTS[layout](sixteenths(*SHAPE).to(device, dtype))
    weight, bias = vectors(2, operator.shape, dtype, device)
    gradients = {key: lay(torch.randn(SHAPE, dtype=torch.float64).to(device, dtype)) for key, lay in LAYOUTS.items()}
    findings = check(operator, x, weight, bias, gradients)
    assert findings == []
    record_property("layout matrix samples, input layout by gradient layout", len(gradients))


def test_the_layouts_are_what_they_say(device):
    for name, lay in LAYOUTS.items():
        assert lay(torch.zeros(SHAPE, device=device)).stride() == STRIDES[name]
    for dtype in DTYPES:
        assert rows_apart(torch.zeros(SHAPE, dtype=dtype, device=device)).data_ptr() % 16


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("name", [name for name in OPERATORS if "three" not in name])
def test_float32_parameters_stand_beside_16_bit_input_in_every_layout(name, dtype, layout, device):
    operator = OPERATORS[name]()
    x = LAYOUTS[layout](sixteenths(*SHAPE).to(device, dtype))
    dy = LAYOUTS[layout](torch.randn(SHAPE, dtype=torch.float64).to(device, dtype))
    assert check(operator, x, *vectors(2, operator.shape, torch.float32, device), {layout: dy}) == []


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_a_tensor_may_start_anywhere_in_its_memory(name, dtype, memory_format, device):
    def one_element_in(t):
        dense = t.to(device, dtype).contiguous(memory_format=memory_format)
        return torch.empty(t.numel() + 1, dtype=dtype, device=device)[1:].as_strided_(SHAPE, dense.stride()).copy_(t)

    operator = OPERATORS[name]()
    x, dy = (one_element_in(t.to(device)) for t in (sixteenths(*SHAPE), torch.randn(SHAPE, dtype=torch.float64)))
    assert x.data_ptr() % 16
    assert check(operator, x, *vectors(2, operator.shape, dtype, device), {"one element in": dy}) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("batch_norm, training", "zero-stride"),
        ("batch_norm, training", "broadcast"),
        ("layer_norm, one dimension", "zero-stride"),
        ("layer_norm, one dimension", "broadcast"),
        ("layer_norm, three dimensions", "zero-stride"),
    ],
)
def test_of_a_constant_nothing_but_the_bias_is_left_and_no_gradient_of_the_weight(name, layout, dtype, device):
    operator = OPERATORS[name]()
    x = LAYOUTS[layout](sixteenths(*SHAPE).to(device, dtype))
    weight, bias = vectors(2, operator.shape, dtype, device)
    y, _ = operator.run(x, weight.requires_grad_(), bias)
    of_each = bias.double().view(-1, 1, 1) if operator.name == "batch_norm" else bias.double()
    assert torch.equal(y.double(), of_each.expand(SHAPE))
    assert not torch.autograd.grad(y, weight, torch.randn_like(y))[0].any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_the_result_has_torchs_strides(name, layout, device):
    operator = OPERATORS[name]()
    x = LAYOUTS[layout](sixteenths(*SHAPE).to(device, torch.float32)).requires_grad_()
    weight, bias = vectors(2, operator.shape, torch.float32, device)
    y, _ = operator.run(x, weight, bias)
    # torch's RMS norm keeps channels-last memory on a CPU; ours is contiguous, as it says.
    theirs = torch.empty(SHAPE) if "rms" in name else operator.theirs(x, weight, bias)
    assert y.stride() == theirs.stride()
    dy = torch.randn_like(x)
    assert torch.autograd.grad(y, x, dy)[0].stride() == theirs.stride()


PARAMETER_LAYOUTS = {
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "expanded": lambda t: t.flatten()[0].expand(t.shape),
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
}


@pytest.mark.parametrize("layout", PARAMETER_LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_parameters_of_any_strides_give_the_same_bits(name, layout, device):
    operator = OPERATORS[name]()
    x, dy = (torch.randn(SHAPE, device=device) for _ in range(2))
    strided = [PARAMETER_LAYOUTS[layout](v) for v in vectors(2, operator.shape, torch.float32, device)]

    def run(*parameters):
        torch.manual_seed(1)  # running buffers are drawn
        inputs = [t.detach().requires_grad_() for t in (x, *parameters)]
        y, buffers = operator.run(*inputs)
        assert kernels_ran(y)
        return [y, *torch.autograd.grad(y, inputs, dy), *(found for found, *_ in buffers.values())]

    for found, expected in zip(run(*strided), run(*(v.contiguous() for v in strided)), strict=True):
        assert torch.equal(found, expected)


# ------------------------------------------------------------------------------------------- the smallest shapes

# fmt: off
BATCHES = [
    (0, 5), (0, 5, 4, 4), (4, 5, 0, 3), (4, 5, 0), (4, 0, 3), (4, 0), (0, 0),
    (1, 5), (1, 5, 1), (1, 5, 3, 4), (4, 1), (4, 1, 3, 4), (2, 5, 1, 1), (1, 1, 2), (1, 1), (5,),
]
ROWS = [  # and how many of the dimensions are normalized
    ((0, 5), 1), ((3, 0), 1), ((0, 0), 1), ((2, 0, 5), 1), ((2, 0, 5), 2), ((0, 2, 5), 2), ((0,), 1),
    ((1, 5), 1), ((5, 1), 1), ((1, 1), 1), ((5,), 1), ((1,), 1), ((3, 1, 1), 2), ((2, 5), 2),
]
# fmt: on


def outcome(function, shapes, buffers, device):
    """y, every derivative and the buffers afterwards; or the error, in words."""
    inputs = [torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in shapes]
    buffers = [torch.rand(s, dtype=torch.float64, device=device) for s in buffers]
    try:
        y = function(*inputs, *buffers)
        derivatives = torch.autograd.grad(y, inputs, torch.randn_like(y), allow_unused=True)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return [y, *derivatives, *buffers]


def compare(ours, theirs, shapes, device, buffers=()):
    found = []
    for function in (ours, theirs):
        torch.manual_seed(1)
        found.append(outcome(function, shapes, buffers, device))
    if isinstance(found[1], str):
        assert found[0] == found[1]
        return
    # Both compute in float64, of a few numbers that an rstd of up to 316 = 1 / sqrt(eps) magnifies.
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", BATCHES, ids=str)
def test_batch_norm_of_the_smallest_shapes_is_torchs(shape, training, device):
    channels = (shape[1:] or shape)[0]

    def call(library):
        return lambda x, w, b, mean, var: library.batch_norm(x, mean, var, w, b, training, MOMENTUM, EPS)

    compare(call(N), call(F), (shape, channels, channels), device, buffers=(channels, channels))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize(("shape", "depth"), ROWS, ids=str)
def test_row_norms_of_the_smallest_shapes_are_torchs(shape, depth, name, affine, device):
    normalized = shape[len(shape) - depth :]
    parameters = (2 if name == "layer_norm" else 1) * affine  # torch's RMS norm has no bias

    def call(library):
        return lambda x, *p: getattr(library, name)(x, normalized, *p, eps=EPS)

    compare(call(N), call(F), (shape, *[normalized] * parameters), device)
