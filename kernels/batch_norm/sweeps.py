"""Launches of batch norm's kernels: the arguments that follow from the plan, and what they move."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from normlib.kernels import plan as plans
from normlib.kernels.batch_norm import plan as batch_norm_plan
from normlib.kernels.batch_norm.plan import BatchNormPlan
from normlib.kernels.batch_norm.streaming import _batch_norm_normalize_kernel, _batch_norm_stats_kernel
from normlib.kernels.host import counters, dense, device_of, float_pair, statistics_dtype
from normlib.kernels.plan import Device
from normlib.kernels.traffic import Moves, TileSweep, launch

# The sweeps of a pass. Those that go backwards leave no partial results.
STATISTICS = TileSweep(("x",))
OUTPUT = TileSweep(("x", "residual"), ("y",), backwards=True)
SUMS = TileSweep(("dy", "x"), ("dx", "dz"))
SUMS_WITHOUT_X = TileSweep(("dy",), ("dx", "dz"))
INPUT_GRADIENT = TileSweep(("dy", "x"), ("dx", "dz"), backwards=True)
# What each program of a sweep loads of its own channels.
_OF_CHANNELS = ("mean", "rstd", "weight", "bias", "dw", "db", "peak", "noise")
_UPDATED = ("running_mean", "running_var", "running_std", "running_norm")


def planned(x: Tensor, device: Device | None) -> tuple[Tensor, Device, BatchNormPlan]:
    """Returns (x (N, C, *) in one of the two layouts, its device unless one is given, batch norm's plan of it)."""
    x, last = dense(x)
    device = device or device_of(x)
    return x, device, batch_norm_plan.batch_norm(tuple(x.shape), last, x.element_size(), device)


def empty_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns where a forward pass of x (N, C, *) stores its (mean (2, C): mean, low; rstd (C,))."""
    channels, stats = x.shape[1], statistics_dtype(x)
    return x.new_empty((2, channels), dtype=stats), x.new_empty(channels, dtype=stats)


def launch_sweep(
    kernel: Any,
    plan: BatchNormPlan,
    *tensors: Tensor | None,
    sweep: TileSweep,
    scalars: tuple[float, ...] = (),
    **constants: Any,
) -> None:
    """Launches a sweep over all tiles: one program for each split of each channel group.

    Each of the scalars reaches the kernel as a pair of floats, here and below. Of a kernel that may merge its partials
    the outputs of that come before them.
    """
    partials = dict(zip(kernel.arg_names, tensors, strict=False)).get("partials_ptr")
    splits = plan.output_splits if sweep.backwards else plan.splits if partials is None else partials.shape[1]

    def moves() -> Moves:
        forward, programs = "y" in sweep.stores, plan.groups * splits
        merged, _ = _outputs_and_inputs(kernel, len(tensors))
        loads: dict[str, int | Fraction] = dict.fromkeys(sweep.loads, 1)
        loads |= {name: int(name in _UPDATED) for name in merged}
        loads["partials"] = _merged_loads(tensors[len(merged)]) if merged and tensors[0] is not None else 0
        loads |= {name: splits for name in _OF_CHANNELS if name not in merged}
        loads |= {"signs": int(not forward), "seed": programs, "count": programs}
        stores = (*sweep.stores, *merged, "partials", *(("signs",) if forward else ()))
        # Backward takes two of the four values that a channel's noise has.
        parts = {"signs": plan.sign_bytes, "noise": (4 if forward else 2) * plan.channels}
        return Moves(plan, loads, stores, parts, (replace(sweep, evicts=bool(constants.get("EVICT"))),))

    launch(
        *(kernel, (plan.groups, splits)),
        *tensors,
        *(plan.channels, plan.positions, plan.tiles, splits),
        *_pairs(scalars),
        LAST=plan.channels_last,
        ALIGN=plan.align,
        BLOCK_C=plan.block_c,
        BLOCK_S=plan.block_s,
        STAGES=1 if sweep.backwards else plan.stages if sweep is STATISTICS else plan.sum_stages,
        **_options(plan, sweep, bool(constants.get("EVAL"))),
        **constants,
        moves=moves,
    )


def _options(plan: BatchNormPlan, sweep: TileSweep, evaluating: bool) -> dict[str, int]:
    if sweep.backwards or evaluating:
        return plan.options
    return plan.moment_options if sweep is STATISTICS else plan.partial_options


def partial_moments(
    x: Tensor,
    plan: BatchNormPlan,
    pre_relu: bool = False,
    merged: tuple[Tensor | None, ...] = (None,) * 4,
    scalars: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """Returns each split's moments of x, (3, splits, C), by a sweep over x.

    `merged`, mean, rstd and the running buffers, is stored on the way, with eps and momentum as scalars.
    """
    partials = x.new_empty((3, plan.moment_splits, plan.channels), dtype=statistics_dtype(x))
    arrived = None if merged[0] is None else counters(plan.groups, x.device)
    constants = {"BLOCK_P": plan.moment_block_p, "PRE_RELU": pre_relu}
    tensors = (*merged, partials, arrived, x)
    launch_sweep(_batch_norm_stats_kernel, plan, *tensors, sweep=STATISTICS, scalars=scalars, **constants)
    return partials


def normalize(
    y: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    plan: BatchNormPlan,
    signs: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 0.0,
    evaluating: bool = False,
    relu: bool = False,
    pre_relu: bool = False,
    **constants: Any,
) -> None:
    """Stores y of x by a sweep over x; in evaluation mean and rstd are the running statistics."""
    if not evaluating:
        constants["EVICT"] = plan.evict
    tensors = (y, signs, x, residual, mean, rstd, weight, bias)
    constants |= {"EVAL": evaluating, "RELU": relu, "PRE_RELU": pre_relu}
    launch_sweep(_batch_norm_normalize_kernel, plan, *tensors, sweep=OUTPUT, scalars=(eps,), **constants)


def launch_merge(
    kernel: Any,
    plan: BatchNormPlan,
    device: Device,
    *tensors: Tensor | None,
    scalars: tuple[float, ...],
    **constants: Any,
) -> None:
    """Launches what comes between two sweeps: the partial results of all splits, merged a few channels a program.

    The kernel's outputs come before its partials, its other inputs after them.
    """
    outputs, inputs = _outputs_and_inputs(kernel, len(tensors))
    partials = tensors[len(outputs)]
    assert partials is not None
    splits = partials.shape[1]
    merge = plans.merge(splits, plan.channels, device)
    programs = plans.cdiv(plan.channels, merge.block_n)

    def moves() -> Moves:
        loads: dict[str, int | Fraction] = dict.fromkeys((*inputs, *_UPDATED), 1)
        loads |= {"seed": programs, "limits": programs}
        loads["partials"] = _merged_loads(partials)
        return Moves(merge, loads, outputs)

    launch(
        *(kernel, (programs,)),
        *tensors,
        *(plan.channels, plan.positions, plan.tiles, splits),
        *_pairs(scalars),
        plan.block_s,
        BLOCK_P=merge.block_p,
        BLOCK_N=merge.block_n,
        **merge.options,
        **constants,
        moves=moves,
    )


def _merged_loads(partials: Tensor | None) -> Fraction:
    """Returns how often partials are loaded: once, and the first split's mean again, which others are taken about."""
    assert partials is not None
    planes, splits, _ = partials.shape
    return 1 + Fraction(int(planes > 2), planes * splits)  # of two planes both are sums


def _outputs_and_inputs(kernel: Any, count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of a kernel's first `count` arguments, before its partials and after them."""
    names = tuple(name.removesuffix("_ptr") for name in kernel.arg_names[:count])
    at = names.index("partials") if "partials" in names else 0
    return names[:at], names[at + 1 :]


def _pairs(scalars: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(part for scalar in scalars for part in float_pair(scalar))
