"""Every layer and fused form of normlib, small, and what training does to layers.

Each way takes a `Form` and returns tensors by name, to be compared with those that the plain layer gives, or raises.
"""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from threading import Barrier, Thread

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import normlib

IMAGES, ROWS = (3, 4, 3, 2), (3, 6)


@dataclass(frozen=True)
class Form:
    """A layer, the shapes of its inputs, and what is given beside them."""

    make: Callable[..., nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    constants: tuple[object, ...] = ()

    def layer(self, **where):
        """Returns the layer with random parameters and buffers, the same in every call."""
        layer = self.make(**where)
        random = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for t in (*layer.parameters(), *layer.buffers()):
                if t.is_floating_point() and not t.is_meta:
                    t.copy_(torch.rand(t.shape, generator=random) + 0.5)
        return layer

    def inputs(self):
        random = torch.Generator().manual_seed(7)
        return [torch.randn(shape, generator=random).requires_grad_() for shape in self.shapes]


class Llamas(nn.Module):
    """RMS norm as Llama's class computes it."""

    def __init__(self, device=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, device=device))
        self.variance_epsilon = 1e-6

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)).to(
            x.dtype
        )


def converted(**where):
    layer = Llamas(**where)
    assert normlib.convert(layer).converted
    return layer


LENGTHS = ((2, 4, 3),)
FORMS = {
    "BatchNorm1d": Form(lambda **w: normlib.BatchNorm1d(6, **w), (ROWS,)),
    "BatchNorm2d": Form(lambda **w: normlib.BatchNorm2d(4, **w), (IMAGES,)),
    "BatchNorm2d, cumulative": Form(lambda **w: normlib.BatchNorm2d(4, momentum=None, **w), (IMAGES,)),
    "BatchNorm3d": Form(lambda **w: normlib.BatchNorm3d(4, **w), ((*IMAGES, 2),)),
    "BatchNorm2d, relu": Form(lambda **w: normlib.BatchNorm2d(4, activation="relu", **w), (IMAGES,)),
    "BatchNorm2d, relu of sum": Form(lambda **w: normlib.BatchNorm2d(4, activation="relu", **w), (IMAGES, IMAGES)),
    "BatchNorm2d, of relu": Form(lambda **w: normlib.BatchNorm2d(4, pre_activation="relu", **w), (IMAGES,)),
    "BatchRenorm2d": Form(lambda **w: normlib.BatchRenorm2d(4, **w), (IMAGES,)),
    "LpNorm2d, 1": Form(lambda **w: normlib.LpNorm2d(4, p=1, **w), (IMAGES,)),
    "LpNorm2d, inf": Form(lambda **w: normlib.LpNorm2d(4, p=float("inf"), **w), (IMAGES,)),
    "NoisyBatchNorm2d": Form(lambda **w: normlib.NoisyBatchNorm2d(4, **w), (IMAGES,)),
    "SequenceBatchNorm": Form(lambda **w: normlib.SequenceBatchNorm(6, **w), ((4, *ROWS),)),
    "SequenceBatchNorm, lengths": Form(lambda **w: normlib.SequenceBatchNorm(6, **w), ((4, *ROWS),), LENGTHS),
    "SyncBatchNorm": Form(lambda **w: normlib.SyncBatchNorm(4, **w), (IMAGES,)),
    "GroupNorm": Form(lambda **w: normlib.GroupNorm(2, 4, **w), (IMAGES,)),
    "InstanceNorm2d": Form(lambda **w: normlib.InstanceNorm2d(4, **w), (IMAGES,)),
    "InstanceNorm2d, tracking": Form(
        lambda **w: normlib.InstanceNorm2d(4, affine=True, track_running_stats=True, **w), (IMAGES,)
    ),
    "LayerNorm": Form(lambda **w: normlib.LayerNorm(6, **w), (ROWS,)),
    "LayerNorm of sum": Form(lambda **w: normlib.LayerNorm(6, **w), (ROWS, ROWS)),
    "RMSNorm": Form(lambda **w: normlib.RMSNorm(6, **w), (ROWS,)),
    "RMSNorm of sum": Form(lambda **w: normlib.RMSNorm(6, **w), (ROWS, ROWS)),
    "RMSNorm, 1 + weight, bias": Form(lambda **w: normlib.RMSNorm(6, bias=True, zero_centred=True, **w), (ROWS,)),
    "PartialRMSNorm": Form(lambda **w: normlib.PartialRMSNorm(6, partial=0.5, **w), (ROWS,)),
    "a converted RMS norm": Form(converted, (ROWS,)),
    "weight norm": Form(lambda **w: normlib.parametrize_weight_norm(nn.Linear(6, 4, **w)), (ROWS,)),
}


def results(form, layer, call=None):
    """Returns the outputs and all gradients of a step."""
    inputs = form.inputs()
    torch.manual_seed(1)  # of noise
    y = (layer if call is None else call)(*inputs, *form.constants)
    outputs = y if isinstance(y, tuple) else (y,)
    sum(((i + 1) * t).square().sum() for i, t in enumerate(outputs)).backward()
    named = {f"y{i}": t.detach() for i, t in enumerate(outputs)}
    named |= {f"dx{i}": t.grad for i, t in enumerate(inputs)}
    return named | {f"d{name}": p.grad for name, p in layer.named_parameters()}


def evaluated(form, layer, call=None):
    """Returns the outputs in evaluation."""
    layer.eval()
    with torch.no_grad():
        y = (layer if call is None else call)(*form.inputs(), *form.constants)
    return {f"y{i}": t for i, t in enumerate(y if isinstance(y, tuple) else (y,))}


def state(layer):
    return {name: t.clone() for name, t in layer.state_dict().items()}


def plain(form):
    layer = form.layer()
    return results(form, layer) | state(layer)


def in_evaluation(form):
    return evaluated(form, form.layer())


def checkpointed(early_stop=True, **options):
    def way(form):
        layer = form.layer()
        with set_checkpoint_early_stop(early_stop):
            return results(form, layer, lambda *a: checkpoint(layer, *a, **options))

    return way


class Once:
    """Saved tensors that are kept elsewhere until backward, and unpacked once."""

    def __init__(self):
        self.kept = []

    def pack(self, tensor):
        self.kept.append(tensor.clone())
        return len(self.kept) - 1

    def unpack(self, index):
        tensor, self.kept[index] = self.kept[index], None
        assert tensor is not None, "a saved tensor is unpacked twice"
        return tensor


def unpacked_once(form):
    hooks, layer = Once(), form.layer()
    with torch.autograd.graph.saved_tensors_hooks(hooks.pack, hooks.unpack):
        found = results(form, layer)
    assert hooks.kept and all(tensor is None for tensor in hooks.kept)
    return found


def saved_on_cpu(form):
    with torch.autograd.graph.save_on_cpu():
        return results(form, form.layer())


def carried(carry):
    def way(form):
        layer = carry(form.layer())
        return results(form, layer) | state(layer)

    return way


def through_a_file(layer):
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def loaded(form):
    layer = form.make()
    layer.load_state_dict(through_a_file(form.layer()))
    return results(form, layer) | state(layer)


def assigned(form):
    layer = form.make(device="meta")
    layer.load_state_dict(through_a_file(form.layer()), assign=True)
    return results(form, layer) | state(layer)


def compiled(form):
    torch.compiler.reset()
    layer = form.layer()
    call = torch.compile(layer, fullgraph=True, backend="aot_eager")
    return results(form, layer, call) | state(layer)


def exported(form):
    layer = form.layer().eval()
    program = torch.export.export(layer, (*(x.detach() for x in form.inputs()), *form.constants))
    return evaluated(form, layer, program.module())


def called(form):
    layer = form.layer()
    own = {name: t.detach().clone() for name, t in layer.state_dict().items()}
    for name, _ in layer.named_parameters():
        own[name].requires_grad_()
    empty = form.make(device="meta")
    found = results(form, layer, lambda *a: functional_call(empty, own, a))
    return found | {f"d{name}": own[name].grad for name, _ in layer.named_parameters()}


def ensemble(form):
    layers = [form.layer().eval(), form.layer().eval()]
    with torch.no_grad():
        for t in layers[1].parameters():
            t.mul_(3)
    parameters, buffers = stack_module_state(layers)
    empty = form.make(device="meta").eval()
    inputs = [torch.stack([x.detach()] * 2) for x in form.inputs()]
    y = vmap(lambda p, b, *a: functional_call(empty, (p, b), (*a, *form.constants)))(parameters, buffers, *inputs)
    outputs = y if isinstance(y, tuple) else (y,)
    for i, t in enumerate(evaluated(form, layers[1]).values()):
        torch.testing.assert_close(outputs[i][1], t)
    return {f"y{i}": t[0].detach() for i, t in enumerate(outputs)}


class Pair(nn.Module):
    """The layer, called with what the form gives it beside one input."""

    def __init__(self, form):
        super().__init__()
        self.layer, self.more, self.constants = form.layer(), len(form.shapes) - 1, form.constants

    def forward(self, x):
        return self.layer(x, *[x] * self.more, *self.constants)


def averaged(form):
    """The statistics are those of the batches, and the parameters the average's."""
    model = Pair(form)
    mean = AveragedModel(model)
    mean.update_parameters(model)
    batches = [x.detach() + 5 for x in form.inputs()[:1]] * 2
    update_bn(batches, mean)
    layer = mean.module.layer
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), model.layer.parameters(), strict=True))
    return {name: t.clone() for name, t in layer.named_buffers()}


def of_the_batches(form):
    """Returns the buffers that `averaged` is to find: they begin anew, and average over all batches."""
    layer = Pair(form).layer
    # PyTorch's update_bn takes no instance norm, and without a batch norm it runs nothing.
    moves = bool(dict(layer.named_buffers())) and not isinstance(layer, nn.modules.instancenorm._InstanceNorm)
    if moves:
        layer.reset_running_stats()
        layer.momentum = None
    x = form.inputs()[0].detach() + 5
    for _ in range(2 * moves):
        layer(x, *[x] * (len(form.shapes) - 1), *form.constants)
    return {name: t.clone() for name, t in layer.named_buffers()}


def threads(form):
    """Two threads call one layer in evaluation; returns what is found unless a result differs."""
    layer, gate, found = form.layer().eval(), Barrier(2), []

    def work():
        gate.wait()
        for _ in range(2):
            found.append(evaluated(form, layer))

    workers = [Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    for one in found:
        assert all(torch.equal(one[name], found[0][name]) for name in one)
    return found[0]


# What each way is to give is given by another one.
WAYS = {
    "checkpoint": (checkpointed(use_reentrant=False), plain),
    "checkpoint, to its end": (checkpointed(False, use_reentrant=False), plain),
    "checkpoint, reentrant": (checkpointed(use_reentrant=True), plain),
    "saved-tensor hooks": (unpacked_once, plain),
    "save_on_cpu": (saved_on_cpu, plain),
    "deepcopy": (carried(copy.deepcopy), plain),
    "pickle": (carried(lambda layer: pickle.loads(pickle.dumps(layer))), plain),
    "weights_only file": (loaded, plain),
    "meta, assigned": (assigned, plain),
    "compile": (compiled, plain),
    "export": (exported, in_evaluation),
    "functional_call": (called, plain),
    "vmap ensemble": (ensemble, in_evaluation),
    "AveragedModel, update_bn": (averaged, of_the_batches),
    "threads": (threads, in_evaluation),
}
# What PyTorch refuses, and how it says so.
REFUSALS = {
    ("BatchNorm2d, cumulative", "compile"): "data-dependent|item",  # in one graph; otherwise it breaks the graph there
    ("weight norm", "pickle"): "parametrized modules is only supported through state_dict",
    ("weight norm", "vmap ensemble"): "to be of the same class",  # a parametrized layer has a class of its own
}
