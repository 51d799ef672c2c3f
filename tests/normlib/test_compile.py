"""torch.compile takes the layers whole."""

import copy

import pytest
import torch
from torch import nn

import normlib


class Net(nn.Module):
    """Layers by themselves, and with ReLUs and residuals."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.bn = normlib.BatchNorm2d(4)
        self.relu = normlib.BatchNorm2d(4, activation="relu", pre_activation="relu")
        self.ln = normlib.LayerNorm(6)
        self.rms = normlib.RMSNorm((6, 6), eps=1e-6, zero_centred=True)

    def forward(self, x):
        x = self.bn(self.first(x))
        y, stream = self.ln(self.relu(x * 0.5 - 0.1, x), x)
        return self.rms(self.ln(self.rms(y, stream)[0]))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("training", [True, False])
def test_a_model_compiles_without_graph_breaks(backend, training, device):
    torch._dynamo.reset()
    eager = Net().to(device).train(training)
    compiled = Net().to(device).train(training)
    compiled.load_state_dict(eager.state_dict())
    x = torch.randn(2, 3, 8, 8, device=device)
    run = torch.compile(compiled, fullgraph=True, backend=backend)
    expected, found = eager(x), run(x)
    torch.testing.assert_close(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad)
    for a, b in zip(eager.buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(b, a)


@pytest.mark.parametrize("training", [True, False])
def test_export_takes_the_layers_at_any_batch_size(training, device):
    net = Net().to(device).train(training)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(net, (torch.randn(2, 3, 8, 8, device=device),), dynamic_shapes=({0: batch},))
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    ops = torch.ops.normlib
    assert {op.default for op in (ops.layer_norm, ops.layer_norm_add, ops.rms_norm, ops.rms_norm_add)} <= targets
    x = torch.randn(5, 3, 8, 8, device=device)
    exported = program.module()
    torch.testing.assert_close(exported(x), net(x))
    for a, b in zip(net.buffers(), exported.buffers(), strict=True):
        torch.testing.assert_close(b, a)
    assert program.run_decompositions()


@pytest.mark.parametrize(("dynamic", "free"), [(None, 2), (True, 1)])
@pytest.mark.parametrize("training", [True, False])
def test_batch_sizes_share_one_compilation(training, dynamic, free, device):
    torch._dynamo.reset()
    # No convolution: PyTorch's own looks at the batch size.
    net = nn.Sequential(normlib.BatchNorm2d(3), normlib.LayerNorm(8), normlib.RMSNorm((8, 8))).to(device)
    run = torch.compile(net.train(training), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    # By default the first size is taken for fixed and the second opens the shape; from then on no size is new.
    for i, batch in enumerate((2, 3, 5, 8, 16, 17, 64)):
        with torch._dynamo.config.patch(error_on_recompile=i >= free):
            run(torch.randn(batch, 3, 8, 8, device=device)).sum().backward()


class Newer(nn.Module):
    """A layer of each that PyTorch compiles no formula of its own for."""

    def __init__(self):
        super().__init__()
        self.images = nn.Sequential(
            normlib.GroupNorm(2, 4),
            normlib.InstanceNorm2d(4, affine=True, track_running_stats=True),
            normlib.BatchRenorm2d(4),
            normlib.NoisyBatchNorm2d(4),
            normlib.LpNorm2d(4, p=1),
        )
        self.rows = nn.Sequential(normlib.parametrize_weight_norm(nn.Linear(8, 8)), normlib.PartialRMSNorm(8))
        self.steps = normlib.SequenceBatchNorm(8, batch_first=True)

    def forward(self, x):
        return self.steps(self.rows(self.images(x)).flatten(1, 2))


@pytest.mark.parametrize(("training", "batches"), [(True, (2, 3, 5)), (False, (2,))])
def test_the_newer_layers_compile_whole_and_once_for_all_batch_sizes(training, batches, device):
    torch._dynamo.reset()
    eager = Newer().to(device).train(training)
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for i, batch in enumerate(batches):
        x = torch.randn(batch, 4, 3, 8, device=device)
        found = []
        with torch._dynamo.config.patch(error_on_recompile=i >= 2):
            for net in (eager, run):
                torch.manual_seed(i)  # the noise
                found.append(net(x))
                found[-1].pow(3).sum().backward()
        torch.testing.assert_close(*found)
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad)
    for a, b in zip(eager.buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(b, a)


def test_export_takes_the_newer_layers_at_any_batch_size(device):
    net = Newer().to(device)
    x = torch.randn(2, 4, 8, 8, device=device)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    targets = {node.target.name() for node in program.graph.nodes if hasattr(node.target, "name")}
    assert {f"normlib::{name}" for name in ("group_norm", "instance_norm", "weight_norm")} <= targets
    x, exported, found = torch.randn(5, 4, 8, 8, device=device), program.module(), []
    for module in (exported, net):
        torch.manual_seed(0)
        found.append(module(x))
    torch.testing.assert_close(*found)


@pytest.mark.gpu
@pytest.mark.chance
@pytest.mark.parametrize("training", [True, False])
def test_compiled_cuda_graphs_replay_right(training):
    eager, compiled = Net().cuda().train(training), Net().cuda().train(training)
    compiled.load_state_dict(eager.state_dict())
    run = torch.compile(compiled, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):
        x = torch.randn(2, 3, 8, 8, device="cuda")
        torch.compiler.cudagraph_mark_step_begin()
        torch.testing.assert_close(run(x), eager(x))


class Seeded(normlib.NoisyBatchNorm2d):
    """With the same noise in every step."""

    def forward(self, x):
        return super().forward(x, seed=self.num_batches_tracked * 0)


class Steps(normlib.SequenceBatchNorm):
    """Sequence batch norm of the rows of an image."""

    def forward(self, x):
        return super().forward(x.flatten(0, 1)).view_as(x)


class Scaled(nn.Module):
    """Multiplies by its weight, element by element: a product of matrices may have other bits inside a CUDA graph."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, 9))

    def forward(self, x):
        return x * self.weight


CAPTURED = {
    "BatchNorm2d": lambda: normlib.BatchNorm2d(9),
    "LayerNorm": lambda: normlib.LayerNorm(9),
    "RMSNorm": lambda: normlib.RMSNorm(9),
    "GroupNorm": lambda: normlib.GroupNorm(3, 9),
    "InstanceNorm2d": lambda: normlib.InstanceNorm2d(9, affine=True, track_running_stats=True),
    "BatchRenorm2d": lambda: normlib.BatchRenorm2d(9),
    "NoisyBatchNorm2d": lambda: Seeded(9),
    "LpNorm2d": lambda: normlib.LpNorm2d(9, p=1),
    "PartialRMSNorm": lambda: normlib.PartialRMSNorm(9),
    "SequenceBatchNorm": lambda: Steps(9),
    "weight norm": lambda: normlib.parametrize_weight_norm(Scaled()),
}


@pytest.mark.gpu
@pytest.mark.chance
@pytest.mark.parametrize("name", CAPTURED)
def test_a_cuda_graph_captures_forward_and_backward(name):
    layer = CAPTURED[name]().cuda()
    x = torch.randn(4, 9, 9, 9, device="cuda", requires_grad=True)
    dy = torch.randn_like(x)

    def step():
        return torch.autograd.grad(layer(x), (x, *layer.parameters()), dy)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)
