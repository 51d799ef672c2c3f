"""A denoiser as diffusion models have it: residual blocks and attention, before them group norm (Ho et al. 2020)."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

GROUPS = 4


class Block(nn.Module):
    """Two convolutions, with the embedding of a condition added between them."""

    def __init__(self, channels, out):
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(GROUPS, c, eps=1e-6) for c in (channels, out))
        self.conv1, self.conv2 = nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.condition, self.shortcut = nn.Linear(out, out), nn.Conv2d(channels, out, 1)

    def forward(self, x, embedding):
        y = self.conv1(F.silu(self.norm1(x))) + self.condition(embedding)[..., None, None]
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class Attention(nn.Module):
    """Of one head, among all positions."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.qkv, self.out = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x).flatten(2)).mT.chunk(3, -1)
        return x + self.out(F.scaled_dot_product_attention(q, k, v).mT).view_as(x)


class UNet(nn.Module):
    """Half the resolution and back; called as a classifier of transformers is, the labels being the condition."""

    def __init__(self, config):
        super().__init__()
        channels = config.channels
        self.embedding = nn.Embedding(config.labels, channels)
        self.stem, self.down = nn.Conv2d(3, channels, 3, padding=1), Block(channels, channels)
        self.attention, self.up = Attention(channels), Block(2 * channels, channels)
        self.norm, self.head = nn.GroupNorm(GROUPS, channels, eps=1e-6), nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, pixel_values, labels):
        embedding = self.embedding(labels)
        high = self.down(self.stem(pixel_values), embedding)
        low = self.attention(F.avg_pool2d(high, 2))
        y = self.up(torch.cat([high, F.interpolate(low, scale_factor=2)], 1), embedding)
        noise = self.head(F.silu(self.norm(y)))
        return SimpleNamespace(logits=noise, loss=F.mse_loss(noise, pixel_values))
