"""Modules that compute layer norm, group norm or a norm over channels are converted; others are not, with the reason.

The classes are small, and compute what classes of transformers and timm do, which are named.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normlib
from normlib.layer_norm_lookalike import ConvertedChannelNorm, ConvertedChannelRMSNorm

IMAGES, ROWS = (2, 6, 3, 4), (3, 5, 6)


class ChannelsFirst(nn.LayerNorm):
    """ConvNeXt's, SAM's and timm's LayerNorm2d."""

    def __init__(self, width, eps=1e-6, first=True):
        super().__init__(width, eps=eps)
        self.first = first

    def forward(self, features):
        if not self.first:
            return super().forward(features)
        y = F.layer_norm(features.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


class InFloat32(nn.LayerNorm):
    """timm's LayerNormFp32."""

    def forward(self, x):
        weight, bias = (p.float() for p in (self.weight, self.bias))
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class OneGroup(nn.GroupNorm):
    """timm's GroupNorm1."""

    def __init__(self, channels):
        super().__init__(1, channels)

    def forward(self, x):
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class Weighted(nn.Module):
    """A leaf with one weight, an eps and PyTorch's attributes."""

    def __init__(self, width=6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = 1e-5
        self.normalized_shape = (width,)


class WithoutBias(Weighted):
    """Cohere's layer norm."""

    def forward(self, x):
        wide = x.float()
        centred = wide - wide.mean(-1, keepdim=True)
        y = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight.float() * y).to(x.dtype)


class OfChannels(Weighted):
    """timm's RmsNorm2d."""

    def forward(self, x):
        y = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + self.variance_epsilon)
        return y * self.weight.reshape(1, -1, 1, 1)


RIGHT = {
    "channels first": (lambda: ChannelsFirst(6), IMAGES, ConvertedChannelNorm),
    "channels last": (lambda: ChannelsFirst(6, first=False), ROWS, normlib.LayerNorm),
    "in float32": (lambda: InFloat32(6), ROWS, normlib.LayerNorm),
    "one group": (lambda: OneGroup(6), IMAGES, normlib.GroupNorm),
    "without bias": (WithoutBias, ROWS, normlib.LayerNorm),
    "RMS of channels": (OfChannels, IMAGES, ConvertedChannelRMSNorm),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_class_that_computes_such_a_norm_is_converted(name, device):
    make, shape, kind = RIGHT[name]
    module = make().to(device)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    before, original = {k: v.clone() for k, v in module.state_dict().items()}, type(module)
    x = torch.randn(shape, device=device, requires_grad=True)

    def step():
        y = module(x)
        found = torch.autograd.grad(y.square().sum(), (x, *module.parameters()))
        return (
            y,
            *found,
            *(copy.deepcopy(module).to(d)(x.to(d)) for d in (torch.bfloat16, torch.float64, torch.float32)),
        )

    expected = step()
    assert normlib.convert(module).counts == {original.__name__: 1} and type(module) is kind
    for ours, theirs in zip(step(), expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        # Some of these classes compute in float32 whatever x is.
        torch.testing.assert_close(*(t.float() if t.dtype == torch.float64 else t for t in (ours, theirs)))
    assert module.state_dict().keys() == before.keys()
    assert normlib.revert(module) == ("",) and type(module) is original
    torch.testing.assert_close(step(), expected)


class AroundOne(nn.LayerNorm):
    """Nemotron's layer norm, whose weight is stored less one."""

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class Unbiased(nn.LayerNorm):
    """Divides the variance by n - 1."""

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(x.var(-1, keepdim=True) + self.eps) * self.weight + self.bias


class WithoutGradient(nn.LayerNorm):
    """Takes the mean as a constant."""

    def forward(self, x):
        y = F.layer_norm(x, self.normalized_shape, None, None, self.eps)
        return y.detach() * self.weight + self.bias


class Promoted(nn.LayerNorm):
    """Returns float32 where the weight is."""

    def forward(self, x):
        return (
            F.layer_norm(x.float(), self.normalized_shape, None, None, self.eps).to(x.dtype) * self.weight + self.bias
        )


class Gated(Weighted):
    """Mamba's RMS norm."""

    def forward(self, x, gate=None):
        x = x if gate is None else x * F.silu(gate)
        return F.rms_norm(x, self.normalized_shape, self.weight, self.variance_epsilon)


class NoNorm(nn.Module):
    """MobileBERT's, which normalizes nothing."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = 1e-5

    def forward(self, x):
        return x * self.weight + self.bias


WRONG = {
    AroundOne: "subclass of torch's LayerNorm, and its output or its gradients are neither",
    Unbiased: "neither layer norm's nor group norm's",
    WithoutGradient: "neither layer norm's nor group norm's",
    Promoted: "its result follows the promoted dtype",
    Gated: "its forward takes more than one argument",
    NoNorm: "its parameters are",
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_class_that_computes_something_else_is_left_alone(kind):
    module = nn.Sequential(kind(6))
    if kind is Gated:
        module[0].__class__ = type("GatedRMSNorm", (Gated,), {})
    (left,) = normlib.convert(module).left_alone
    assert WRONG[kind] in left.reason and isinstance(module[0], kind)


def test_only_the_wanted_norms_are_tried():
    model = nn.Sequential(ChannelsFirst(6), OneGroup(6), OfChannels())
    assert normlib.convert(model, ops=("group_norm",)).counts == {"OneGroup": 1}
    assert normlib.convert(model, ops=("rms_norm",)).counts == {"OfChannels": 1}
    assert normlib.convert(model, ops=("layer_norm",)).counts == {"ChannelsFirst": 1}


def test_the_global_random_numbers_stay():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    normlib.convert(ChannelsFirst(6))
    assert torch.equal(torch.get_rng_state(), before)
