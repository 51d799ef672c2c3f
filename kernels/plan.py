"""From shape and device to launch plan: tiles, warps, splits. Pure Python; imports neither torch nor triton.

A plan holds every choice that changes how a kernel is compiled or launched, so that tests can compile a plan ahead of
time for a device that is not there, and run any plan in the interpreter. What is chosen and does not follow from shape
and device has a name and a default; `make tune` measures other values on a GPU and keeps them in tuned/. The plans are
in plan_*.py, a family each, and are reached by this name.
"""

from normlib.kernels.plan_batch_norm import TILE as TILE
from normlib.kernels.plan_batch_norm import BatchNormPlan as BatchNormPlan
from normlib.kernels.plan_batch_norm import batch_norm as batch_norm
from normlib.kernels.plan_batch_norm import batch_norm_drawing as batch_norm_drawing
from normlib.kernels.plan_batch_norm import batch_norm_plans as batch_norm_plans
from normlib.kernels.plan_batch_norm import batch_norm_sign_bytes as batch_norm_sign_bytes
from normlib.kernels.plan_batch_norm_once import KEPT_TILE as KEPT_TILE
from normlib.kernels.plan_batch_norm_once import OncePlan as OncePlan
from normlib.kernels.plan_batch_norm_once import batch_norm_once as batch_norm_once
from normlib.kernels.plan_device import INTERPRETER as INTERPRETER
from normlib.kernels.plan_device import UNTUNED as UNTUNED
from normlib.kernels.plan_device import Device as Device
from normlib.kernels.plan_device import Tuning as Tuning
from normlib.kernels.plan_device import alignment as alignment
from normlib.kernels.plan_device import cdiv as cdiv
from normlib.kernels.plan_device import next_power_of_2 as next_power_of_2
from normlib.kernels.plan_device import tuning_file as tuning_file
from normlib.kernels.plan_device import tuning_of as tuning_of
from normlib.kernels.plan_group_norm import MERGED_GROUPS as MERGED_GROUPS
from normlib.kernels.plan_group_norm import MERGED_PARTS as MERGED_PARTS
from normlib.kernels.plan_group_norm import GroupNormPlan as GroupNormPlan
from normlib.kernels.plan_group_norm import group_norm as group_norm
from normlib.kernels.plan_merge import MergePlan as MergePlan
from normlib.kernels.plan_merge import merge as merge
from normlib.kernels.plan_merge import merge_ranks as merge_ranks
from normlib.kernels.plan_rows import MAX_CHUNKS as MAX_CHUNKS
from normlib.kernels.plan_rows import RowBackwardPlan as RowBackwardPlan
from normlib.kernels.plan_rows import RowPlan as RowPlan
from normlib.kernels.plan_rows import row_backward as row_backward
from normlib.kernels.plan_rows import row_chunks as row_chunks
from normlib.kernels.plan_rows import row_forward as row_forward
from normlib.kernels.plan_rows import row_plans as row_plans
