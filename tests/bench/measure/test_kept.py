"""The judge names each part of the instrument that a provider has replaced, and restores it."""

import statistics

import pytest
import torch

from bench.measure import accuracy
from bench.measure.kept import KeptReferences

CODE, BOUNDS = accuracy.verdict.__code__, dict(accuracy.SCALE_BOUND)
REPLACED = {
    "bench.measure.accuracy.verdict": lambda: setattr(accuracy.verdict, "__code__", (lambda errors: "ok").__code__),
    "bench.measure.accuracy.SCALE_BOUND": lambda: accuracy.SCALE_BOUND.update(fp32=1.0),
    "bench.measure.accuracy.ROUNDINGS": lambda: setattr(accuracy, "ROUNDINGS", 400),
    "statistics.median": lambda: setattr(statistics, "median", min),
    "torch.Tensor.double": lambda: setattr(torch.Tensor, "double", torch.Tensor.float),  # which it inherits
}


@pytest.mark.parametrize("name", REPLACED)
def test_what_is_replaced_is_named_once_and_put_right(name):
    kept = KeptReferences()
    assert kept.replaced() == []
    REPLACED[name]()
    assert kept.replaced() == [name]
    assert kept.replaced() == []
    assert accuracy.verdict.__code__ is CODE and accuracy.SCALE_BOUND == BOUNDS and accuracy.ROUNDINGS < 400
    assert statistics.median([1, 2, 9]) == 2 and torch.ones(1).double().dtype is torch.float64
