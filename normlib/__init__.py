"""BatchNorm, GroupNorm, InstanceNorm, LayerNorm and RMSNorm as Triton kernels, behind PyTorch's own signatures."""

from normlib import eager_quantization, functional
from normlib.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normlib.batch_renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from normlib.convert import SWAPS, convert
from normlib.dispatch import backend_for
from normlib.group_norm import GroupNorm
from normlib.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from normlib.layer_norm import LayerNorm
from normlib.lp_norm import LpNorm1d, LpNorm2d, LpNorm3d
from normlib.noisy_batch_norm import NoisyBatchNorm1d, NoisyBatchNorm2d, NoisyBatchNorm3d
from normlib.rms_norm import PartialRMSNorm, RMSNorm
from normlib.sequence_batch_norm import SequenceBatchNorm
from normlib.swap import revert
from normlib.sync_batch_norm import SyncBatchNorm, convert_sync_batchnorm
from normlib.weight_norm import WeightNorm, initialize_weight_norm, parametrize_weight_norm

__version__ = "0.1.0"

eager_quantization.register({theirs: ours for swaps in SWAPS.values() for theirs, ours in swaps.items()})

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LpNorm1d",
    "LpNorm2d",
    "LpNorm3d",
    "NoisyBatchNorm1d",
    "NoisyBatchNorm2d",
    "NoisyBatchNorm3d",
    "PartialRMSNorm",
    "RMSNorm",
    "SequenceBatchNorm",
    "SyncBatchNorm",
    "WeightNorm",
    "backend_for",
    "convert",
    "convert_sync_batchnorm",
    "functional",
    "initialize_weight_norm",
    "parametrize_weight_norm",
    "revert",
]
