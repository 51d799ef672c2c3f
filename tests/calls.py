"""Calls a norm and collects what comes back: results, gradients, and the operators that ran."""

import torch
from errors import assert_right
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = ("y", "dx", "dw", "db")


def draw(shape, dtype=torch.float32, device="cpu", *, tensors=2, vectors=2, offset=0.0, channel=1, wide=True):
    """Returns x, moved by offset, dy and more tensors of the shape; weight, bias, a mean and a positive spread.

    The vectors are of the channels, in float32 beside 16 bits if `wide`.
    """
    x, *more = (torch.randn(shape) for _ in range(tensors))
    of_channels = [*torch.randn(3, shape[channel]), torch.rand(shape[channel]) + 0.5]
    own = torch.promote_types(dtype, torch.float32) if wide else dtype
    return *(t.to(device, dtype) for t in (x + offset, *more)), *(v.to(device, own) for v in of_channels[:vectors])


def leaves(*tensors):
    """Returns copies that require gradients."""
    return [t.detach().clone().requires_grad_() for t in tensors]


def results(function, dy, *inputs):
    """Returns y and the gradients of function(x, weight, bias), or of fewer of these, by name."""
    given = leaves(*inputs)
    y = function(*given)
    return dict(zip(NAMES, (y.detach(), *torch.autograd.grad(y, given, dy)), strict=False))


def assert_results(found, truth):
    """Asserts that each result is as near to float64's as its dtype allows."""
    for name, out in found.items():
        assert_right(out, truth[name], name)


class Ran(TorchDispatchMode):
    """Records the names of the operators that are called, in order, except those called by other operators."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))

    @property
    def ours(self):
        """Returns the names of normlib's operators."""
        return [name.removeprefix("normlib::") for name in self.names if name.startswith("normlib::")]
