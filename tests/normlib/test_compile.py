"""torch.compile takes the layers whole."""

import pytest
import torch
from torch import nn

import normlib


class Net(nn.Module):
    def __init__(self, library):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.bn = library.BatchNorm2d(4)
        self.ln = library.LayerNorm(6)
        self.rms = library.RMSNorm((6, 6), eps=1e-6)

    def forward(self, x):
        return self.rms(self.ln(self.bn(self.first(x)).relu()))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("training", [True, False])
def test_a_model_compiles_without_graph_breaks(backend, training, device):
    torch._dynamo.reset()
    eager = Net(normlib).to(device).train(training)
    compiled = Net(normlib).to(device).train(training)
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
    net = Net(normlib).to(device).train(training)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(net, (torch.randn(2, 3, 8, 8, device=device),), dynamic_shapes=({0: batch},))
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert {torch.ops.normlib.layer_norm.default, torch.ops.normlib.rms_norm.default} <= targets
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


@pytest.mark.gpu
@pytest.mark.parametrize("training", [True, False])
def test_compiled_cuda_graphs_replay_right(training):
    eager, compiled = Net(normlib).cuda().train(training), Net(normlib).cuda().train(training)
    compiled.load_state_dict(eager.state_dict())
    run = torch.compile(compiled, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):
        x = torch.randn(2, 3, 8, 8, device="cuda")
        torch.compiler.cudagraph_mark_step_begin()
        torch.testing.assert_close(run(x), eager(x))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["BatchNorm2d", "LayerNorm", "RMSNorm"])
def test_a_cuda_graph_captures_forward_and_backward(name):
    layer = getattr(normlib, name)(9).cuda()
    x = torch.randn(4, 9, 9, 9, device="cuda", requires_grad=True)
    dy = torch.randn_like(x)

    def step():
        return torch.autograd.grad(layer(x), (x, layer.weight), dy)

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
