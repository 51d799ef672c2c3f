"""A call on a CPU without the interpreter costs as many Python calls as PyTorch's, but for a few."""

import sys

import pytest
import torch
from layers import pair

LAYERS = [
    ("LayerNorm", (6,), (4, 6)),
    ("RMSNorm", (6,), (4, 6)),
    ("BatchNorm2d", (6,), (2, 6, 3, 3)),
    ("GroupNorm", (2, 6), (2, 6, 3, 3)),
]
# The functional form, whether the kernels serve, and what batch norm asks beside.
MORE = 4


def calls(layer, x):
    """Returns how many Python functions a call of the layer enters."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event == "call"

    layer(x)
    sys.setprofile(profile)
    try:
        layer(x)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "arguments", "shape"), LAYERS)
def test_few_more_functions_are_called_than_by_pytorch(name, arguments, shape, training, monkeypatch):
    monkeypatch.setattr("normlib.dispatch.CPU_RUNS_KERNELS", False)
    theirs, ours = (layer.train(training) for layer in pair(name, arguments, {}))
    x = torch.randn(shape)
    assert calls(ours, x) <= calls(theirs, x) + MORE
