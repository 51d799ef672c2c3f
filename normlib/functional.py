"""The functional forms, with torch.nn.functional's signatures."""

from normlib.batch_norm import batch_norm
from normlib.batch_renorm import batch_renorm
from normlib.layer_norm import layer_norm
from normlib.noisy_batch_norm import noisy_batch_norm
from normlib.rms_norm import rms_norm

__all__ = ["batch_norm", "batch_renorm", "layer_norm", "noisy_batch_norm", "rms_norm"]
