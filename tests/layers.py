"""Layers to test, and each beside PyTorch's with the same parameters."""

import torch
from torch import nn

import normlib

# Class, arguments, keywords, input shape.
LAYERS = [
    ("BatchNorm1d", (5,), {}, (4, 5)),
    ("BatchNorm1d", (5,), {"momentum": None}, (4, 5, 6)),
    ("BatchNorm2d", (5,), {}, (4, 5, 6, 6)),
    ("BatchNorm2d", (5,), {"affine": False}, (4, 5, 6, 6)),
    ("BatchNorm2d", (5,), {"track_running_stats": False}, (4, 5, 6, 6)),
    ("BatchNorm3d", (3,), {"eps": 1e-3, "momentum": 0.5}, (2, 3, 4, 5, 6)),
    ("LayerNorm", (6,), {}, (4, 5, 6)),
    ("LayerNorm", ((5, 6),), {"bias": False}, (4, 5, 6)),
    ("LayerNorm", ((3, 5, 6),), {"elementwise_affine": False}, (2, 3, 5, 6)),
    ("RMSNorm", (6,), {}, (4, 5, 6)),
    ("RMSNorm", ((5, 6),), {"eps": 1e-3}, (4, 5, 6)),
    ("RMSNorm", (6,), {"elementwise_affine": False}, (7, 6)),
]


def pair(name, args, options, dtype=torch.float32):
    """Returns torch's layer and ours, with the same random parameters."""
    theirs = getattr(nn, name)(*args, **options)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours = getattr(normlib, name)(*args, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs.to(dtype), ours.to(dtype)
