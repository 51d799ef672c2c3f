"""What the passes of norms of channels share: batch norm's plan, and the merge of its splits."""

from __future__ import annotations

from bench.audit.passes import Tensors
from normlib.kernels import plan as plans
from normlib.kernels.batch_norm import plan as batch_norm_plan
from normlib.kernels.batch_norm.one_launch_plan import OncePlan
from normlib.kernels.batch_norm.plan import BatchNormPlan
from normlib.kernels.host import is_channels_last
from normlib.kernels.plan import Device, MergePlan


def planned(t: Tensors, device: Device) -> tuple[BatchNormPlan, MergePlan]:
    """Of x (N, C, *)."""
    x = t["x"]
    plan = batch_norm_plan.batch_norm(tuple(x.shape), is_channels_last(x), x.element_size(), device)
    return plan, plans.merge(plan.splits, plan.channels, device)


def once_kind(once: OncePlan) -> str:
    """Of a plan that is one launch."""
    return ("on chip" if once.kept else "one launch") + (", barrier" if once.splits > 1 else "")
