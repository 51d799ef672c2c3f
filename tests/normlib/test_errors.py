"""Mistakes raise the errors of PyTorch, in its words, before any buffer changes."""

import pytest
import torch
from torch import nn

import normlib

X = torch.randn(2, 3)
EMPTY = torch.empty(0)
GROUPED = torch.randn(2, 6, 4)


def vector(n=3, fill=1.0):
    return torch.full((n,), fill)


# The layers, by the library that has them.
LAYERS = {
    "4D input to a 1D layer": lambda m: (m.BatchNorm1d(3), torch.randn(2, 3, 4, 4)),
    "1D input to a 1D layer": lambda m: (m.BatchNorm1d(3), torch.randn(3)),
    "3D input to a 2D layer": lambda m: (m.BatchNorm2d(3), torch.randn(2, 3, 4)),
    "4D input to a 3D layer": lambda m: (m.BatchNorm3d(3), torch.randn(2, 3, 4, 4)),
    "one value a channel": lambda m: (m.BatchNorm1d(3), torch.randn(1, 3)),
    "one value a channel, images": lambda m: (m.BatchNorm2d(3), torch.randn(1, 3, 1, 1)),
    "one value a channel, evaluation without buffers": lambda m: (
        m.BatchNorm1d(3, track_running_stats=False).eval(),
        torch.randn(1, 3),
    ),
    "eps zero in training": lambda m: (m.BatchNorm1d(3, eps=0.0), X),
    "eps negative in training": lambda m: (m.BatchNorm1d(3, eps=-1.0), X),
    "eps negative in evaluation": lambda m: (m.BatchNorm1d(3, eps=-1.0).eval(), X),
    "too few channels": lambda m: (m.BatchNorm1d(4), X),
    "too few channels, evaluation": lambda m: (m.BatchNorm1d(4).eval(), X),
    "too few channels, no buffers": lambda m: (m.BatchNorm1d(4, track_running_stats=False), X),
    "integers to batch norm": lambda m: (m.BatchNorm1d(3), torch.ones(2, 3, dtype=torch.int64)),
    "integers to batch norm, evaluation": lambda m: (m.BatchNorm1d(3).eval(), torch.ones(2, 3, dtype=torch.int64)),
    "float64 input to a float32 batch norm": lambda m: (m.BatchNorm1d(3), X.double()),
    "normalized_shape of no dimension": lambda m: (m.LayerNorm(()), torch.randn(2, 4)),
    "too few columns": lambda m: (m.LayerNorm(5), torch.randn(2, 4)),
    "too few dimensions": lambda m: (m.LayerNorm((2, 4)), torch.randn(4)),
    "integers to layer norm": lambda m: (m.LayerNorm(4), torch.ones(2, 4, dtype=torch.int64)),
    "float32 input to a bfloat16 layer norm": lambda m: (m.LayerNorm(4, dtype=torch.bfloat16), torch.randn(2, 4)),
    "float64 input to a float32 layer norm": lambda m: (m.LayerNorm(4), torch.randn(2, 4).double()),
    "normalized_shape of no dimension, rms": lambda m: (m.RMSNorm(()), torch.randn(2, 4)),
    "too few columns, rms": lambda m: (m.RMSNorm(5), torch.randn(2, 4)),
    "too few dimensions, rms": lambda m: (m.RMSNorm((2, 4)), torch.randn(4)),
    "integers to rms norm": lambda m: (m.RMSNorm(4), torch.ones(2, 4, dtype=torch.int64)),
}

# The functional forms; both buffers are given wherever their values could change.
FUNCTIONS = {
    "running_mean alone": lambda f, mean, var: f.batch_norm(X, mean, None, training=True),
    "running_var alone": lambda f, mean, var: f.batch_norm(X, None, var, training=True),
    "running_mean alone, evaluation": lambda f, mean, var: f.batch_norm(X, mean, None),
    "no buffers in evaluation": lambda f, mean, var: f.batch_norm(X, None, None),
    "running_mean too long": lambda f, mean, var: f.batch_norm(X, vector(4), var, training=True),
    "running_var too long": lambda f, mean, var: f.batch_norm(X, mean, vector(4), training=True),
    "weight too long": lambda f, mean, var: f.batch_norm(X, mean, var, vector(4), training=True),
    "bias too long": lambda f, mean, var: f.batch_norm(X, mean, var, vector(), vector(4), training=True),
    "weight too long, evaluation": lambda f, mean, var: f.batch_norm(X, mean, var, vector(4)),
    "eps zero": lambda f, mean, var: f.batch_norm(X, mean, var, training=True, eps=0.0),
    "eps a string": lambda f, mean, var: f.batch_norm(X, mean, var, training=True, eps="1e-5"),
    "momentum a string": lambda f, mean, var: f.batch_norm(X, mean, var, training=True, momentum="0.1"),
    "eps negative, evaluation": lambda f, mean, var: f.batch_norm(X, mean, var, eps=-1.0),
    "one value a channel": lambda f, mean, var: f.batch_norm(X[:1], mean, var, training=True),
    "1D input": lambda f, mean, var: f.batch_norm(X[0], mean, var, training=True),
    "integers": lambda f, mean, var: f.batch_norm(X.long(), mean, var, training=True),
    "normalized_shape of no dimension": lambda f, mean, var: f.layer_norm(X, ()),
    "weight of another shape": lambda f, mean, var: f.layer_norm(X, (3,), vector(4)),
    "bias of another shape": lambda f, mean, var: f.layer_norm(X, (3,), vector(), vector(4)),
    "input of another shape": lambda f, mean, var: f.layer_norm(X, (5,)),
    "weight of another shape, rms": lambda f, mean, var: f.rms_norm(X, (3,), vector(4)),
    "input of another shape, rms": lambda f, mean, var: f.rms_norm(X, (5,)),
    "normalized_shape of no dimension, rms": lambda f, mean, var: f.rms_norm(X, ()),
    "normalized_shape a number": lambda f, mean, var: f.layer_norm(X, 3),
    "normalized_shape a number, rms": lambda f, mean, var: f.rms_norm(X, 3),
    "eps a string, layer norm": lambda f, mean, var: f.layer_norm(X, (3,), eps="1e-5"),
    "eps a string, rms": lambda f, mean, var: f.rms_norm(X, (3,), eps="1e-5"),
    "weight a number": lambda f, mean, var: f.layer_norm(X, (3,), 1.0),
    "weight a number, rms": lambda f, mean, var: f.rms_norm(X, (3,), 1.0),
    "weight a number, batch norm": lambda f, mean, var: f.batch_norm(X, mean, var, 1.0),
    "not a tensor": lambda f, mean, var: f.layer_norm([[1.0, 2.0]], (2,)),
    "not a tensor, rms": lambda f, mean, var: f.rms_norm([[1.0, 2.0]], (2,)),
    "not a tensor, batch norm": lambda f, mean, var: f.batch_norm([[1.0, 2.0]], mean, var),
    "groups that do not divide": lambda f, *_: f.group_norm(GROUPED, 4),
    "no groups": lambda f, *_: f.group_norm(GROUPED, 0),
    "fewer groups than none": lambda f, *_: f.group_norm(GROUPED, -2),
    "a weight of another size": lambda f, *_: f.group_norm(GROUPED, 3, torch.ones(5)),
    "one dimension to group norm": lambda f, *_: f.group_norm(GROUPED[0, 0], 1),
    "one element a group": lambda f, *_: f.group_norm(torch.randn(1, 6), 6),
    "whole numbers to group norm": lambda f, *_: f.group_norm(GROUPED.long(), 3),
    "one position": lambda f, *_: f.instance_norm(torch.randn(2, 6, 1)),
    "no positions": lambda f, *_: f.instance_norm(torch.randn(2, 6)),
    "buffers of another size": lambda f, *_: f.instance_norm(GROUPED, torch.zeros(5), torch.ones(5)),
    "one buffer of instance norm": lambda f, *_: f.instance_norm(GROUPED, torch.zeros(6)),
    "statistics of nothing": lambda f, *_: f.instance_norm(GROUPED, use_input_stats=False),
    "an instance's weight of another size": lambda f, *_: f.instance_norm(GROUPED, weight=torch.ones(5)),
}


def raised(call):
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("case", LAYERS)
def test_layers_refuse_in_torchs_words(case, device):
    found = []
    for library in (nn, normlib):
        layer, x = LAYERS[case](library)
        layer.to(device)
        before = {k: t.clone() for k, t in layer.state_dict().items()}
        error = raised(lambda: layer(x.to(device)))  # noqa: B023
        found.append((type(error), str(error)))
        counted = layer.state_dict()
        for key in before.keys() - {"num_batches_tracked"}:
            assert torch.equal(counted[key], before[key]), key
        found.append(counted.get("num_batches_tracked"))  # torch has counted by the time it refuses some of these
    assert found[:2] == found[2:]


@pytest.mark.parametrize("case", FUNCTIONS)
def test_functions_refuse_in_torchs_words(case):
    found = []
    for library in (nn.functional, normlib.functional):
        buffers = vector(fill=0.25), vector(fill=0.75)
        error = raised(lambda: FUNCTIONS[case](library, *buffers))  # noqa: B023
        found.append((type(error), str(error)))
        assert bool((buffers[0] == 0.25).all() and (buffers[1] == 0.75).all())
    assert found[0] == found[1]


# What some of the messages must carry, as PyTorch 2.13 has them: a guard against both libraries' being called wrongly
# here, in which case they would agree on some other error.
@pytest.mark.parametrize(
    ("case", "kind", "message"),
    [
        ("4D input to a 1D layer", ValueError, "expected 2D or 3D input (got 4D input)"),
        ("one value a channel", ValueError, "Expected more than 1 value per channel when training"),
        ("eps zero in training", ValueError, "eps must be positive"),
        ("too few channels", RuntimeError, "running_mean should contain 3 elements not 4"),
        ("integers to batch norm", NotImplementedError, ""),
        ("too few columns", RuntimeError, "expected input with shape [*, 5]"),
        ("too few columns, rms", RuntimeError, "expected input with shape [*5]"),
        ("too few dimensions, rms", ValueError, "Input tensor must have at least 2 dimensions, but got 1"),
        ("float32 input to a bfloat16 layer norm", RuntimeError, "mixed dtype"),
    ],
)
def test_the_refusals_are_the_ones_meant(case, kind, message):
    layer, x = LAYERS[case](normlib)
    error = raised(lambda: layer(x))
    assert type(error) is kind and message in str(error)


def test_a_refused_batch_is_counted_as_torch_counts_it():
    layer = normlib.BatchNorm1d(3)
    raised(lambda: layer(X[:1]))
    assert layer.num_batches_tracked == 1 and not layer.running_mean.any() and bool((layer.running_var == 1).all())
