"""The functional forms, with torch.nn.functional's signatures."""

from normlib.batch_norm import batch_norm
from normlib.batch_renorm import batch_renorm
from normlib.group_norm import group_norm
from normlib.instance_norm import instance_norm
from normlib.layer_norm import layer_norm
from normlib.lp_norm import lp_norm
from normlib.noisy_batch_norm import noisy_batch_norm
from normlib.rms_norm import partial_rms_norm, rms_norm
from normlib.sequence_batch_norm import sequence_batch_norm
from normlib.weight_norm import weight_norm

__all__ = [
    "batch_norm",
    "batch_renorm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "lp_norm",
    "noisy_batch_norm",
    "partial_rms_norm",
    "rms_norm",
    "sequence_batch_norm",
    "weight_norm",
]
