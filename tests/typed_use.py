"""Uses of normlib that a type checker accepts, and mistakes that it finds: one that it misses is an unused ignore."""

from typing import assert_type

import torch
from torch import Tensor

import normlib
from normlib import functional as N

x = torch.zeros(2, 4, 3, 3)

batch_norm = normlib.BatchNorm2d(4, eps=1e-5, momentum=None, activation="relu", device="cpu", dtype=torch.float32)
assert_type(batch_norm(x), Tensor)
assert_type(batch_norm(x, residual=x), Tensor)
assert_type(batch_norm.num_features, int)
layer_norm = normlib.LayerNorm([3, 3])
assert_type(layer_norm(x), Tensor)
assert_type(layer_norm(x, x), tuple[Tensor, Tensor])
y, z = normlib.RMSNorm(3, bias=True, zero_centred=True)(x, residual=x)
assert_type(y, Tensor)
assert_type(normlib.PartialRMSNorm(3, partial=0.5)(x), Tensor)
assert_type(normlib.GroupNorm(2, 4)(x), Tensor)
assert_type(normlib.InstanceNorm2d(4)(x), Tensor)
assert_type(normlib.SyncBatchNorm(4)(x), Tensor)
assert_type(normlib.NoisyBatchNorm2d(4, per="unit")(x, seed=1), Tensor)
assert_type(normlib.LpNorm2d(4, p=1)(x), Tensor)
assert_type(normlib.BatchRenorm2d(4)(x), Tensor)
assert_type(normlib.SequenceBatchNorm(3)(x[0], lengths=[3, 3, 3]), Tensor)
assert_type(normlib.parametrize_weight_norm(torch.nn.Linear(3, 3)), torch.nn.Linear)
assert_type(N.rms_norm(x, (3,)), Tensor)
assert_type(N.layer_norm(x, (3,), residual=x), tuple[Tensor, Tensor])
summary = normlib.convert(torch.nn.Sequential(layer_norm), ops=("layer_norm",), dry_run=True)
assert_type(summary.counts, dict[str, int])
assert_type(normlib.revert(layer_norm), tuple[str, ...])
assert_type(normlib.backend_for(x), str)

normlib.BatchNorm2d("4")  # type: ignore[arg-type]
normlib.BatchNorm2d(4, activation=True)  # type: ignore[arg-type]
normlib.BatchNorm2d()  # type: ignore[call-arg]
normlib.RMSNorm(3, centred=True)  # type: ignore[call-arg]
batch_norm("x")  # type: ignore[arg-type]
layer_norm(x, residual=1)  # type: ignore[call-overload]
normlib.GroupNorm(2, 4)(x, x)  # type: ignore[call-arg]
normlib.NoisyBatchNorm2d(4)(x, seed="1")  # type: ignore[arg-type]
N.layer_norm(x, 3)  # type: ignore[call-overload]
N.batch_norm(x)  # type: ignore[call-arg]
normlib.convert(layer_norm, ops=1)  # type: ignore[arg-type]
number: int = normlib.LayerNorm(3)(x)  # type: ignore[assignment]
