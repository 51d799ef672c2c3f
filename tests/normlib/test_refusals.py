"""normlib refuses bad values of its own arguments in one line that says what is allowed."""

from functools import partial
from math import inf, nan

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import normlib
from normlib import composed
from normlib import functional as N

X = torch.randn(4, 3)


def given(function, spread="running_var", **arguments):
    """Returns a call in training with running statistics, of which `arguments` changes some."""

    def call(mean, var):
        return function(**{"input": X, "running_mean": mean, spread: var, "training": True} | arguments)

    return call


def renorm(**arguments):
    return given(N.batch_renorm, "running_std", **arguments)


def noisy(**arguments):
    return given(N.noisy_batch_norm, **arguments)


def lp(**arguments):
    return given(N.lp_norm, "running_norm", **arguments)


def steps(function, shape, lengths):
    return given(function, input=torch.randn(shape), lengths=lengths)


def fused(**arguments):
    return given(N.batch_norm, **arguments)


def of_rows(function, **arguments):
    return lambda *_: function(X, (3,), **arguments)


def weight(shape, dim):
    return lambda *_: N.weight_norm(torch.randn(4, 3), torch.ones(shape), dim)


UNLIKE = r"residual must have input's shape, dtype and device, \(4, 3\).*got "
REFUSED = [
    (renorm(rmax=0.5), "rmax must be at least 1, not 0.5"),
    (renorm(dmax=-1.0), "dmax must be at least 0, not -1.0"),
    (renorm(dmax=torch.zeros(2)), "dmax must be a number or a tensor of one element"),
    (renorm(running_std=None), "batch_renorm needs running_std"),
    (renorm(weight=torch.ones(4)), r"weight should have shape \(3,\), not \(4,\)"),
    (renorm(input=X[0]), "expected at least 2D input"),
    (renorm(input=X[:1]), "Expected more than 1 value per channel when training"),
    (renorm(eps=0.0), "eps must be positive"),
    (noisy(per="channel"), "per must be 'layer' or 'unit', not 'channel'"),
    (noisy(std_limit=0.5), "std_limit must be at least 1, not 0.5"),
    (noisy(mean_spread=-0.1), "mean_spread must be at least 0"),
    (noisy(seed=torch.ones(2)), "seed must be a number or a tensor of one integer"),
    (noisy(input=X[:1]), "Expected more than 1 value per channel"),
    (lp(p=3), "p must be 1, 2 or inf, not 3"),
    (lambda *_: normlib.LpNorm1d(3, p=0.5), "p must be 1, 2 or inf, not 0.5"),
    (lambda *_: N.lp_norm(X, None, None), "must be defined in evaluation mode"),
    (lp(running_norm=None), "must either both be None or neither"),
    (lp(weight=torch.ones(4)), r"weight must have shape \(3,\), not \(4,\)"),
    (lp(eps=0.0), "eps must be positive in training"),
    (lp(input=X[:1]), "more than 1 value per channel"),
    (lp(input=X[0]), r"input must be \(N, C, \*\)"),
    (lambda *_: normlib.LpNorm1d(3)(torch.randn(2, 3, 4, 4)), "expected 2D or 3D input"),
    *((of_rows(N.partial_rms_norm, partial=part), "above 0 and at most 1") for part in (0.0, inf)),
    *((lambda *_, part=part: normlib.PartialRMSNorm(3, partial=part), "above 0 and at most 1") for part in (-0.5, nan)),
    *(
        (steps(function, shape, lengths), says)
        for function in (N.sequence_batch_norm, composed.sequence_batch_norm)
        for shape, lengths, says in (
            ((7, 3), None, r"expected 3D input \(time, batch, features\) \(got 2D input\)"),
            ((7, 4, 3), (7, 2), "one value for each of 4 sequences, not 2"),
            ((7, 4, 3), (8, 2, 0, 5), "from 0 to 7, the steps of the input"),
            ((7, 4, 3), (-1, 2, 0, 5), "from 0 to 7, the steps of the input"),
            ((7, 4, 3), torch.ones(4), "whole numbers, one a sequence; got torch.float32"),
        )
    ),
    (steps(N.sequence_batch_norm, (7, 2, 3), (1, 0)), "more than 1 value per channel"),
    (
        given(N.sequence_batch_norm, input=pack_padded_sequence(torch.randn(7, 2, 3), (7, 3)), lengths=(7, 3)),
        "lengths of its own",
    ),
    (weight((4,), 0), r"g must have the shape \(4, 1\) for a v of \(4, 3\) and dim=0, not \(4,\)"),
    (weight((4, 1), 1), r"g must have the shape \(1, 3\)"),
    (weight((4, 1), None), r"g must have the shape \(\)"),
    (weight((4, 1), 2), "dim must be None or from 0 to 1 for a v of 2 dimensions, not 2"),
    (weight((4, 1), -2), "dim must be None or from 0 to 1 for a v of 2 dimensions, not -2"),
    (fused(activation="gelu"), "activation must be None or 'relu', not 'gelu'"),
    (fused(pre_activation="tanh"), "pre_activation must be None or 'relu', not 'tanh'"),
    (fused(residual=X), "needs activation='relu'"),
    (lambda *_: normlib.BatchNorm1d(3)(X, X), "needs activation='relu'"),
    (lambda *_: normlib.BatchNorm1d(3, activation="silu"), "not 'silu'"),
    *(
        (call(residual=residual), UNLIKE + found)
        for call in (partial(fused, activation="relu"), partial(of_rows, N.layer_norm), partial(of_rows, N.rms_norm))
        for residual, found in (
            (torch.zeros(3), r"\(3,\) torch.float32"),
            (torch.zeros(1, 3), r"\(1, 3\) torch.float32"),
            (torch.zeros(4, 3).bfloat16(), r"\(4, 3\) torch.bfloat16"),
            (torch.zeros(4, 3, device="meta"), r"\(4, 3\) torch.float32 on meta"),
        )
    ),
]


@pytest.mark.parametrize(("call", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_what_cannot_be_right_is_refused_in_one_line_before_a_buffer_changes(call, says):
    mean, spread = torch.zeros(3), torch.ones(3)
    with pytest.raises(ValueError, match=says) as refused:
        call(mean, spread)
    assert "\n" not in str(refused.value) and not mean.any() and spread.eq(1).all()


def test_integers_are_refused():
    with pytest.raises(NotImplementedError, match="lp_norm is not implemented for"):
        N.lp_norm(X.long(), None, None, training=True)
