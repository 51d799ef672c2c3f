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


def test_export_takes_the_layers(device):
    net = Net(normlib).to(device).eval()
    x = torch.randn(2, 3, 8, 8, device=device)
    program = torch.export.export(net, (x,))
    torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.gpu
def test_a_cuda_graph_captures_a_training_step():
    layer, x = normlib.BatchNorm2d(8).cuda(), torch.randn(4, 8, 9, 9, device="cuda", requires_grad=True)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        layer(x).sum().backward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    graph.replay()
    torch.testing.assert_close(y, torch.nn.functional.batch_norm(x, None, None, layer.weight, layer.bias, True))
