"""Modules that compute RMS norm are recognized by trying them; others are not converted, with the reason."""

import pytest
import torch
from errors import assert_right
from torch import nn
from torch.nn import functional as F

from normlib import reference, row_norm
from normlib.convert import convert
from normlib.lookalike import DTYPE_PAIRS, RESULT_DTYPES, ConvertedRMSNorm

transformers = pytest.importorskip("transformers")

WIDTH = 12
EPS = 1e-5


class Scale(nn.Module):
    """A leaf with one 1-D weight and an eps, as the RMS norms of many models have."""

    def __init__(self, width=WIDTH, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width, dtype=dtype) + 0.5)
        self.eps = EPS


def variant(run, **attributes):
    """A class whose forward(x) is run(self, x), with more attributes."""

    class Variant(Scale):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            vars(self).update(attributes)

        def forward(self, x):
            return run(self, x)

    return Variant


def x_hat(x, eps, dim=-1):
    return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + eps)


def llama(m, x):
    return m.weight * x_hat(x.float(), m.eps).to(x.dtype)


def t5(m, x):
    y = x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + m.eps)
    return m.weight * (y.to(m.weight.dtype) if m.weight.dtype in (torch.float16, torch.bfloat16) else y)


def by_norm(m, x):
    size = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True)
    return (x / (size.square() / x.shape[-1] + m.eps).sqrt() * m.weight).to(x.dtype)


def gemma(m, x):
    return (x_hat(x.float(), m.eps) * (1.0 + m.weight.float())).type_as(x)


RIGHT = {
    "Llama's": (llama, "promoted"),
    "T5's": (t5, "weight"),
    "PyTorch's": (lambda m, x: F.rms_norm(x, m.weight.shape, m.weight, m.eps), "input"),
    "by vector_norm": (by_norm, "input"),
    "by a custom eps": (lambda m, x: F.rms_norm(x, m.weight.shape, m.weight, m.epsilon), "input"),
    "in 16 bits throughout": (lambda m, x: m.weight * x_hat(x, m.eps), "promoted"),
    "Gemma's": (gemma, "input"),
    "around zero in 16 bits": (lambda m, x: (1 + m.weight) * x_hat(x, m.eps), "promoted"),
}
AROUND_ZERO = {"Gemma's", "around zero in 16 bits"}


@pytest.mark.parametrize("name", RIGHT)
def test_a_class_that_computes_rms_norm_is_converted(name, device):
    run, rule = RIGHT[name]
    # Floats that are no eps: one that changes nothing, and one called eps although epsilon is used.
    attributes = {"eps": 0.5, "epsilon": EPS} if name == "by a custom eps" else {"p": 0.3}
    module = variant(run, **attributes)().to(device)
    x = torch.randn(5, WIDTH, device=device) * EPS**0.5
    expected = module(x)
    assert convert(module).counts == {"Variant": 1}
    assert type(module) is ConvertedRMSNorm and module.eps == EPS and module.result_dtype == rule
    assert module.zero_centred is (name in AROUND_ZERO)
    truth = reference.rms_norm(x, (WIDTH,), module.weight.detach(), None, EPS, zero_centred=name in AROUND_ZERO)
    assert_right(module(x).detach(), truth["y"])
    torch.testing.assert_close(module(x), expected)


NAMES = ["Llama's", "T5's", "PyTorch's", *sorted(AROUND_ZERO)]


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=lambda pair: "-".join(str(d)[6:] for d in pair))
@pytest.mark.parametrize("name", NAMES)
def test_every_pair_of_dtypes_gives_the_original_dtype_and_one_rounding(name, dtypes, device, monkeypatch):
    forward, calls = row_norm.kernels.forward, []
    monkeypatch.setattr(row_norm.kernels, "forward", lambda *a, **k: calls.append("forward") or forward(*a, **k))
    module = variant(RIGHT[name][0])(64, dtypes[1]).to(device)
    x = torch.randn(4, 64, dtype=dtypes[0], device=device, requires_grad=True)
    original = module(x).dtype
    convert(module)
    y = module(x)
    # The kernels ran, where normlib.functional.rms_norm itself leaves a weight narrower than x to PyTorch.
    assert calls or RIGHT[name][1] == "input"
    assert y.dtype == original == RESULT_DTYPES[RIGHT[name][1]](*dtypes)
    dy = torch.randn(4, 64, device=device).to(y.dtype)
    y.backward(dy)
    assert module.weight.grad.dtype == dtypes[1] and x.grad.dtype == dtypes[0]
    around = name in AROUND_ZERO
    truth = reference.rms_norm(x.detach(), (64,), module.weight.detach(), None, EPS, dy, zero_centred=around)
    for key, found in (("y", y), ("dx", x.grad), ("dw", module.weight.grad)):
        assert_right(found.detach(), truth[key], key)


def half_width(m, x):
    half = x.shape[-1] // 2
    return m.weight * torch.cat([x_hat(x[..., :half], m.eps), x[..., half:]], -1)


def counting(m, x):
    m.calls = m.calls + 1
    return llama(m, x)


def keeping(m, x):
    m.last = x
    return llama(m, x)


def different_in_16_bits(m, x):
    return llama(m, x) if x.dtype.itemsize > 2 else m.weight * x


def detached_rstd(m, x):
    return m.weight * x * torch.rsqrt(x.detach().square().mean(-1, keepdim=True) + m.eps)


def without_grad(m, x):
    with torch.no_grad():
        return llama(m, x)


def failing(m, x):
    raise ValueError("only on Mondays\nand more")


OUTPUT, GRADIENTS = "its output is not RMS norm's: relative error", "but its gradients are not: relative error"
NO_TENSOR = "raised TypeError: the result is no tensor of the input's shape"
WRONG = {
    "another eps": (lambda m, x: m.weight * x_hat(x, 1e-3), OUTPUT),
    "an eps 0.1% off": (lambda m, x: m.weight * x_hat(x, 1.001 * m.eps), OUTPUT),
    "eps beside the root": (lambda m, x: m.weight * x / (x.square().mean(-1, keepdim=True).sqrt() + m.eps), OUTPUT),
    "eps as a lower bound": (lambda m, x: m.weight * x / x.square().mean(-1, True).clamp(m.eps).sqrt(), OUTPUT),
    "a divisor of n - 1": (lambda m, x: m.weight * x_hat(x, m.eps) * (1 - 1 / WIDTH) ** 0.5, OUTPUT),
    "layer norm of half": (lambda m, x: half_width(m, x - x.mean(-1, keepdim=True)), OUTPUT),
    "no weight used": (lambda m, x: F.rms_norm(x, m.weight.shape, None, m.eps), OUTPUT),
    "half of the width": (half_width, OUTPUT),
    "another axis of images": (lambda m, x: m.weight * x_hat(x, m.eps, 1 if x.dim() == 4 else -1), OUTPUT),
    "all of the last two axes": (lambda m, x: m.weight * x_hat(x, m.eps, (-2, -1)), OUTPUT),
    "large inputs cut": (lambda m, x: llama(m, x.clamp(-100, 100)), OUTPUT),
    "dropout": (lambda m, x: F.dropout(llama(m, x), 0.5, m.training), OUTPUT),
    "twice in training": (lambda m, x: llama(m, x) * (2 if m.training else 1), OUTPUT),
    "twice in evaluation": (lambda m, x: llama(m, x) * (1 if m.training else 2), OUTPUT),
    "NaN": (lambda m, x: llama(m, x) * float("nan"), OUTPUT),
    "weight around one half": (lambda m, x: (0.5 + m.weight) * x_hat(x, m.eps), OUTPUT),
    "weight around minus one": (lambda m, x: (m.weight - 1) * x_hat(x, m.eps), OUTPUT),
    "a detached weight around zero": (lambda m, x: (1 + m.weight.detach()) * x_hat(x, m.eps), GRADIENTS),
    "a detached rstd": (detached_rstd, GRADIENTS),
    "a detached weight": (lambda m, x: m.weight.detach() * x_hat(x, m.eps), GRADIENTS),
    "no gradient": (without_grad, GRADIENTS),
    "a straight-through gradient": (lambda m, x: x + (llama(m, x) - x).detach(), OUTPUT),
    "another function of 16 bits": (different_in_16_bits, "its output is not RMS norm's for bfloat16 beside"),
    "float32 always": (lambda m, x: llama(m, x).float(), "its result's dtype is neither"),
    "a count of its calls": (counting, "its forward changes its own attributes"),
    "its input kept": (keeping, "its forward changes its own attributes"),
    "a tuple": (lambda m, x: (llama(m, x), x), NO_TENSOR),
    "another shape": (lambda m, x: llama(m, x).flatten(), NO_TENSOR),
    "an exception": (failing, "raised ValueError: only on Mondays"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_class_that_differs_is_left_alone_with_the_reason(name):
    run, reason = WRONG[name]
    module = variant(run, calls=0)()
    before = dict(vars(module))
    (found,) = convert(module).left_alone
    assert reason in found.reason and "\n" not in found.reason
    assert vars(module) == before and type(module) is found.kind


class WithMethod(Scale):
    def forward(self, x):
        return llama(self, x)

    def scaled_by(self, factor):
        return factor * self.weight


class WithCall(Scale):
    def __call__(self, x):
        return 2 * llama(self, x)

    def forward(self, x):
        return llama(self, x)


class WithResidual(Scale):
    def forward(self, x, residual=None):
        return llama(self, x if residual is None else x + residual)


class WithAnything(Scale):
    def forward(self, *args):
        return llama(self, args[0])


class WithSlot(Scale):
    __slots__ = ("slot",)

    def forward(self, x):
        return llama(self, x)


def replaced():
    module = variant(llama)()
    module.forward = lambda x: x
    return module


MORE = {
    "a public method": (WithMethod, "its class defines scaled_by beside forward"),
    "a call of its own": (WithCall, "its class defines __call__ beside forward"),
    "a slot": (WithSlot, "its class defines slot beside forward"),
    "a residual": (WithResidual, "its forward takes more than one argument"),
    "any arguments": (WithAnything, "its forward takes more than one argument"),
    "a replaced forward": (replaced, "something replaced its forward"),
    "a list": (lambda: variant(llama, seen=[])(), "its attribute seen is an object"),
    "a tensor": (lambda: variant(llama, scale=torch.ones(1))(), "its attribute scale is an object"),
    "a bias": (lambda: variant(llama, bias=0.5)(), "it has an attribute bias"),
    "an 8-bit weight": (lambda: variant(llama)(dtype=torch.float32).to(torch.float8_e5m2), "its weight is float8_e5m2"),
}


@pytest.mark.parametrize("name", MORE)
def test_a_class_that_does_more_than_the_trial_shows_is_left_alone(name):
    make, reason = MORE[name]
    (found,) = convert(make()).left_alone
    assert reason in found.reason


class WeightAndBiasNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
        self.eps = EPS


class FrozenNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(4)), EPS
        self.register_buffer("running_mean", torch.zeros(4))


class MatrixNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(4, 4)), EPS


class WeightlessNORM(nn.Module):
    def __init__(self):
        super().__init__()
        self.eps = EPS


class NormOfNoEps(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(4)), None


class NormWithDropout(Scale):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout()


class LazyNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.UninitializedParameter(), EPS


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (WeightAndBiasNorm, "its parameters are weight and bias"),
        (FrozenNorm, "it has buffers"),
        (MatrixNorm, "its weight has 2 dimensions"),
        (WeightlessNORM, "it has no weight"),
        (NormOfNoEps, "it has no positive float attribute"),
        (NormWithDropout, "it has modules inside"),
        (LazyNorm, "it is lazy"),
    ],
)
def test_what_is_called_norm_is_mentioned_and_another_module_is_not(kind, reason):
    (found,) = convert(kind()).left_alone
    assert found.reason.startswith(reason)
    renamed = type("Layer", (kind,), {})
    assert not convert(renamed()).left_alone


def by_matmul(m, x):
    """A matrix product, which autocast would round, with a tensor on the default device."""
    ones = torch.ones(x.shape[-1], 1, dtype=torch.float32)
    return m.weight * (x * torch.rsqrt(x.float().square() @ ones / x.shape[-1] + m.eps)).to(x.dtype)


@pytest.mark.parametrize("no_gradients", [torch.no_grad, torch.inference_mode])
def test_the_trial_disturbs_neither_random_numbers_nor_modes_and_does_not_depend_on_them(no_gradients):
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with no_gradients(), torch.autocast("cpu"), torch.device("meta"):
            right, wrong = (variant(run)(dtype=torch.float32) for run in (by_matmul, WRONG["dropout"][0]))
            assert convert(right).converted and convert(wrong).left_alone[0].reason.startswith(OUTPUT)
            assert torch.is_inference_mode_enabled() == (no_gradients is torch.inference_mode)
            assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu") and torch.empty(1).is_meta
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_trial_runs_no_hook_and_touches_no_tensor_of_the_module():
    module = variant(llama)()
    calls = []
    module.register_forward_hook(lambda *_: calls.append("hook"))
    version, values = module.weight._version, module.weight.detach().clone()
    assert convert(module, dry_run=True).converted
    assert not calls and module.weight.grad is None
    assert module.weight._version == version and torch.equal(module.weight, values)


def test_a_hundred_norms_of_a_kind_are_tried_once():
    calls = []

    def run(m, x):
        calls.append(x.shape)
        return llama(m, x)

    kind = variant(run)
    convert(kind())
    once = len(calls)
    summary = convert(nn.Sequential(*(kind() for _ in range(100))))
    assert len(summary.converted) == 100 and len(calls) == 2 * once
    convert(nn.Sequential(kind(WIDTH), kind(2 * WIDTH)))  # another width may be computed in another way
    assert len(calls) == 4 * once


def test_a_compiled_forward_is_tried_without_compiling():
    torch._dynamo.reset()
    compiled = torch.compile(llama, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    assert convert(variant(lambda m, x: compiled(m, x))()).converted
    assert not torch._dynamo.utils.counters["frames"]


def test_llama_is_called_by_its_own_keyword(device):
    module = transformers.models.llama.modeling_llama.LlamaRMSNorm(WIDTH).to(device)
    x = torch.randn(3, WIDTH, device=device)
    convert(module)
    assert torch.equal(module(hidden_states=x), module(x))
