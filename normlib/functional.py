"""The functional forms, with torch.nn.functional's signatures."""

from normlib.batch_norm import batch_norm as batch_norm
from normlib.batch_renorm import batch_renorm as batch_renorm
from normlib.group_norm import group_norm as group_norm
from normlib.instance_norm import instance_norm as instance_norm
from normlib.layer_norm import layer_norm as layer_norm
from normlib.lp_norm import lp_norm as lp_norm
from normlib.noisy_batch_norm import noisy_batch_norm as noisy_batch_norm
from normlib.rms_norm import partial_rms_norm as partial_rms_norm
from normlib.rms_norm import rms_norm as rms_norm
from normlib.sequence_batch_norm import sequence_batch_norm as sequence_batch_norm
from normlib.weight_norm import weight_norm as weight_norm
