"""The functional forms, with torch.nn.functional's signatures."""

from normlib.batch_norm import batch_norm
from normlib.layer_norm import layer_norm
from normlib.lp_norm import lp_norm
from normlib.rms_norm import rms_norm

__all__ = ["batch_norm", "layer_norm", "lp_norm", "rms_norm"]
