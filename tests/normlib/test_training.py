"""A network learns the same with these layers as with PyTorch's."""

import pytest
import torch
from torch import nn

import normlib

NETWORKS = {
    "batch norm": lambda lib: (nn.Linear(8, 16), lib.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)),
    "batch norm, images": lambda lib: (
        nn.Unflatten(1, (2, 2, 2)),
        nn.Conv2d(2, 6, 2, padding=1),
        lib.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, 4),
    ),
    "layer norm": lambda lib: (nn.Linear(8, 16), lib.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4)),
    "rms norm": lambda lib: (nn.Linear(8, 16), lib.RMSNorm(16), nn.ReLU(), nn.Linear(16, 4)),
}


def losses(make, library, device):
    torch.manual_seed(1)
    net = nn.Sequential(*make(library)).to(device)
    x, target = torch.randn(24, 8, device=device), torch.randint(4, (24,), device=device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    found = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_twenty_steps_give_the_same_losses(name, device):
    theirs, ours = (losses(NETWORKS[name], library, device) for library in (nn, normlib))
    assert theirs[-1] < 0.7 * theirs[0]  # it learns, so the comparison says something
    # float32 rounds at 6e-8; twenty steps of training grow that, to some 1e-6 here.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
