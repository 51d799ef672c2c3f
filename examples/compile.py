"""torch.compile takes the layers in one graph, and one compilation serves every batch size."""

import sys

import torch
from torch import nn

import normlib


def main(backend: str = "inductor") -> None:
    """Compiles a model, and compares it with itself."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(nn.Linear(16, 32), normlib.RMSNorm(32), nn.SiLU(), nn.Linear(32, 16), normlib.LayerNorm(16))
    model.to(device)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for batch in (4, 7):
        x = torch.randn(batch, 16, device=device)
        torch.testing.assert_close(compiled(x), model(x))
        print(f"batch of {batch}: the same results")


if __name__ == "__main__":
    main(*sys.argv[1:])
