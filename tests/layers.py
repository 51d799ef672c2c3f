"""A layer beside PyTorch's with the same parameters."""

import torch
from torch import nn

import normlib


def pair(name, args, options, dtype=torch.float32):
    """Returns torch's layer and ours, with the same random parameters."""
    theirs = getattr(nn, name)(*args, **options)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours = getattr(normlib, name)(*args, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs.to(dtype), ours.to(dtype)
