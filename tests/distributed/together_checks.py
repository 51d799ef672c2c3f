"""A cell of sync_bn as every rank measures it."""

import torch

from bench.cases import sweep
from bench.cases.operators import operators
from bench.ranks import sync_batch_norm as together

AXES = {"batch": (2,), "channels": (5,), "spatial": ("3x3",)}
# Its statistics are of its own share alone.
WRONG = together.SyncLayer("normlib", lambda channels, *_: torch.nn.BatchNorm2d(channels))


def measured(rank, group, dtype="fp32", layout="nchw", wrong=False):
    """The records of every layer, or of one that is wrong."""
    chosen = {"batch_norm": operators()["batch_norm"]}
    (case,) = sweep.cases(sweep.Sweep(("batch_norm",), "smoke", AXES, ("fwd_bwd",), (dtype,), (layout,)), chosen)
    here = together.RankGroup(group, rank, group.size(), torch.device("cpu"))
    layers = [WRONG] if wrong else together.LAYERS.values()
    return [together.measure_cell(case, layer, chosen["batch_norm"], here, 0) for layer in layers]


def repeated(rank, group):
    """Every kind of collective is recorded once, and can be repeated alone."""
    mine, parts = torch.ones(3), [torch.empty(3) for _ in range(group.size())]
    with together.recorded_collectives() as sent:
        torch.distributed.all_reduce(mine, group=group)
        torch.distributed.all_gather(parts, mine, group=group)
        gather = getattr(torch.distributed, "all_gather_single", torch.distributed.all_gather_into_tensor)
        gather(torch.empty(3 * group.size()), mine, group=group)
    for one in sent:
        one.again(group, torch.device("cpu"))()
    return [one.bytes for one in sent]
