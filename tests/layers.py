"""Layers to test, and each beside PyTorch's with the same parameters."""

import inspect

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
    ("GroupNorm", (3, 6), {}, (2, 6, 5)),
    ("GroupNorm", (2, 6), {"affine": False, "eps": 1e-3}, (4, 6)),
    ("GroupNorm", (6, 6), {}, (2, 6, 3, 4)),
    ("InstanceNorm1d", (5,), {}, (2, 5, 7)),
    ("InstanceNorm1d", (5,), {"affine": True}, (5, 7)),  # an image without a batch
    ("InstanceNorm2d", (5,), {"affine": True, "track_running_stats": True}, (2, 5, 3, 4)),
    ("InstanceNorm2d", (5,), {"track_running_stats": True, "momentum": None}, (2, 5, 3, 4)),
    ("InstanceNorm3d", (3,), {"track_running_stats": True, "momentum": 0.5}, (2, 3, 2, 3, 4)),
]
if "bias" in inspect.signature(nn.GroupNorm).parameters:  # torch 2.11 has no such option
    LAYERS.append(("GroupNorm", (6, 6), {"bias": False}, (2, 6, 3, 4)))


def pair(name, args, options, dtype=torch.float32):
    """Returns torch's layer and ours, with the same random parameters."""
    theirs = getattr(nn, name)(*args, **options)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours = getattr(normlib, name)(*args, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs.to(dtype), ours.to(dtype)
