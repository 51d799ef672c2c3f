"""A training loop with normlib's layers: a small residual network on random images."""

import torch
from torch import Tensor, nn

import normlib


class Block(nn.Module):
    """relu(norm(conv(x)) + x); the sum and the ReLU are computed in the kernel of the norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = normlib.BatchNorm2d(channels, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x), residual=x)


def main(steps: int = 5) -> list[float]:
    """Returns the loss of each step."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Block(8), nn.Flatten(), normlib.LayerNorm(8 * 4 * 4), nn.Linear(128, 2))
    model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images, labels = torch.randn(8, 3, 4, 4, device=device), torch.randint(2, (8,), device=device)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step}: loss {losses[-1]:.4f}, norms by {normlib.backend_for(images)}")
    return losses


if __name__ == "__main__":
    main()
