"""The checks that each of two processes makes of every layer under DistributedDataParallel and FSDP2."""

import torch
import torch.distributed as dist
from every_layer import FORMS, results
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel


def data_parallel(layer, group):
    module = DistributedDataParallel(layer, process_group=group)
    return module, lambda tensor: tensor


def sharded(layer, group):
    mesh = DeviceMesh.from_group(group, "cpu")
    return fully_shard(layer, mesh=mesh), lambda tensor: tensor.full_tensor()


WRAPPERS = {"DDP": data_parallel, "FSDP2": sharded}


def averages_gradients(rank, group, name, way):
    """The results are those of the layer by itself, and the gradients of its parameters the processes' mean."""
    form = FORMS[name]
    scale = 1.0 + rank  # each process has inputs of its own
    layer, alone = form.layer(), form.layer()
    if name == "SyncBatchNorm":
        alone.process_group = group
        layer.process_group = group
    wrapped, whole = WRAPPERS[way](layer, group)
    truth = results(form, alone, lambda *a: alone(*(scale * t if torch.is_tensor(t) else t for t in a)))
    found = results(form, layer, lambda *a: wrapped(*(scale * t if torch.is_tensor(t) else t for t in a)))
    for key, tensor in truth.items():
        if key.startswith(("y", "dx")):
            torch.testing.assert_close(found[key], tensor)
            continue
        dist.all_reduce(tensor, group=group)
        torch.testing.assert_close(whole(found[key]), tensor / 2)


def begins_on_meta(rank, group, name):
    """A layer that is sharded on the meta device comes alive with all that it has."""
    form = FORMS[name]
    layer, _ = sharded(form.make(device="meta"), group)
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            tensor.fill_(9)
    layer.reset_parameters()
    fresh = form.make().state_dict()
    for key, tensor in layer.state_dict().items():
        torch.testing.assert_close(tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor, fresh[key])
