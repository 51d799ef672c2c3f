"""References: each operator in float64, by its defining formula, forward and backward.

Accuracy is measured against these. They are written for clarity, from the inputs as given (already rounded to
their dtype), and share no code with the kernels.
"""

from normlib.reference.batch_norm import batch_norm as batch_norm
from normlib.reference.batch_norm import batch_norm_eval as batch_norm_eval
from normlib.reference.batch_renorm import batch_renorm as batch_renorm
from normlib.reference.batch_renorm import batch_renorm_eval as batch_renorm_eval
from normlib.reference.group_norm import group_norm as group_norm
from normlib.reference.group_norm import instance_norm as instance_norm
from normlib.reference.lp_norm import lp_norm as lp_norm
from normlib.reference.lp_norm import lp_norm_eval as lp_norm_eval
from normlib.reference.noisy_batch_norm import noisy_batch_norm as noisy_batch_norm
from normlib.reference.row_norm import layer_norm as layer_norm
from normlib.reference.row_norm import partial_rms_norm as partial_rms_norm
from normlib.reference.row_norm import rms_norm as rms_norm
from normlib.reference.sequence_batch_norm import sequence_batch_norm as sequence_batch_norm
from normlib.reference.weight_norm import weight_norm as weight_norm
