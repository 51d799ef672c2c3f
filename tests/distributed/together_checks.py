"""A cell of sync_bn as every rank measures it."""

import torch

from bench.cases import sweep
from bench.cases.operators import operators
from bench.ranks import sync_batch_norm as together
from bench.ranks.collectives import recording


def measured(rank, group, dtype, layout):
    operator = operators()["batch_norm"]
    axes = {"batch": (2,), "channels": (5,), "spatial": ("3x3",)}
    (case,) = sweep.cases(
        sweep.Sweep(("batch_norm",), "smoke", axes, ("fwd_bwd",), (dtype,), (layout,)), {"batch_norm": operator}
    )
    here = together._Group(group, rank, group.size(), torch.device("cpu"))
    return [together._measured(case, layer, operator, here, 0) for layer in together.LAYERS.values()]


def wrong(rank, group):
    """A layer whose statistics are of its own share alone."""
    layer = together.Layer("normlib", lambda channels, *_: torch.nn.BatchNorm2d(channels), lambda device: None)
    operator = operators()["batch_norm"]
    axes = {"batch": (2,), "channels": (5,), "spatial": ("3x3",)}
    (case,) = sweep.cases(
        sweep.Sweep(("batch_norm",), "smoke", axes, ("fwd_bwd",), ("fp32",), ("nchw",)), {"batch_norm": operator}
    )
    here = together._Group(group, rank, group.size(), torch.device("cpu"))
    return together._measured(case, layer, operator, here, 0)


def repeated(rank, group):
    """Every kind of collective is recorded once, and can be repeated alone."""
    mine, parts = torch.ones(3), [torch.empty(3) for _ in range(group.size())]
    with recording() as sent:
        torch.distributed.all_reduce(mine, group=group)
        torch.distributed.all_gather(parts, mine, group=group)
        gather = getattr(torch.distributed, "all_gather_single", torch.distributed.all_gather_into_tensor)
        gather(torch.empty(3 * group.size()), mine, group=group)
    for one in sent:
        one.again(group, torch.device("cpu"))()
    return [one.bytes for one in sent]
