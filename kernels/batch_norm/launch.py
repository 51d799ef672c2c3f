"""Batch normalization of (N, C, *), contiguous or channels-last, each in its own layout.

Forward in training (Ioffe and Szegedy 2015, algorithm 1), over the n = N * prod(*) elements of a channel:

    mean  = sum(x) / n                        running_mean <- (1 - momentum) running_mean + momentum mean
    var   = sum((x - mean)^2) / n             running_var  <- (1 - momentum) running_var  + momentum var n / (n - 1)
    rstd  = 1 / sqrt(var + eps)
    x_hat = (x - mean) rstd
    y     = x_hat weight + bias

Backward in training, and in evaluation, where mean and rstd are constants:

    db = sum(dy)       dw = sum(dy x_hat)
    dx = weight rstd (dy - db / n - x_hat dw / n)            dx = weight rstd dy

Fused with what stands around it in a net, a residual r and ReLUs:

    y = relu(x_hat weight + bias [+ r])       dz = dy where y > 0, else 0: r's gradient, and dy in the formulas above
    y of relu(x) in place of x                dx as above where x > 0, else 0

No activation is kept for that: without a residual backward computes the sign again from x, with one forward keeps a bit
an element.

Of short contiguous channels each is a program's, which holds it in registers (resident.py): one launch each way, and
2 and 3 units. All others are split over programs, and training takes two launches each way. In the first, each program
sweeps its split and stores its partial moments (or sums), and the last program of a channel group to finish merges them
in a fixed order. The second sweeps again and applies the result. Units of one activation moved: forward 3, backward 5.
The second sweep goes backwards, to meet in cache what was read last: of a tensor that fits it reads nothing from device
memory, and 2 and 3 units are left. Where a tensor outgrows its share of the cache (plan.evict), what the second sweep
moves leaves first, so as to push out nothing that is still to be read.

Evaluation is one sweep: forward 2, backward 3. ReLUs move nothing; a residual is one unit more each way, and its signs
1/16 in 16 bits. Saved for backward: x, the mean as a pair of floats, rstd, those signs.

This file has the launchers. The kernels are in resident.py and streaming.py; what the latter are made of is in
statistics.py, output.py and gradients.py, over tiles.py.
"""

from typing import Any

import torch
from torch import Tensor

from normlib.kernels.batch_norm import plan as batch_norm_plan
from normlib.kernels.batch_norm.plan import BatchNormPlan, ResidentPlan
from normlib.kernels.batch_norm.resident import (
    _batch_norm_backward_resident_kernel,
    _batch_norm_forward_resident_kernel,
)
from normlib.kernels.batch_norm.streaming import (
    _batch_norm_input_gradient_kernel,
    _batch_norm_reduce_kernel,
)
from normlib.kernels.batch_norm.sweeps import (
    INPUT_GRADIENT,
    SUMS,
    SUMS_WITHOUT_X,
    empty_statistics,
    launch_sweep,
    normalize,
    partial_moments,
    planned,
)
from normlib.kernels.host import counters, device_of, float_pair, is_channels_last, like, on, statistics_dtype
from normlib.kernels.plan import Device
from normlib.kernels.traffic import Moves, launch


def empty_signs(x: Tensor, device: Device | None = None) -> Tensor:
    """Returns memory for the signs of forward with a residual, a bit an element of x (N, C, *), for backward."""
    device = device or device_of(x)
    size = batch_norm_plan.batch_norm_sign_bytes(tuple(x.shape), is_channels_last(x), x.element_size(), device)
    return x.new_empty(size, dtype=torch.uint8)


def _kept(signs: Tensor | None, plan: BatchNormPlan) -> Tensor | None:
    """Returns the signs; raises ValueError if they are fewer than the elements of the plan's tiles."""
    if signs is not None and signs.numel() < plan.sign_bytes:
        raise ValueError(
            f"signs are {signs.numel()} bytes of {plan.sign_bytes}: backward wants them from a forward that kept them"
        )
    return signs


def batch_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    device: Device | None = None,
    residual: Tensor | None = None,
    signs: Tensor | None = None,
    relu: bool = False,
    pre_relu: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (y, mean (2, C), rstd (C,)) of x (N, C, *); running buffers, if given, are updated in place.

    A residual like x is added before the ReLU; `signs`, from `empty_signs`, keeps what backward then has to know.
    """
    x, device, plan = planned(x, device)
    residual = None if residual is None else like(x, residual)
    y = torch.empty_like(x)
    mean, rstd = empty_statistics(x)
    if x.numel() == 0:
        return y, mean.zero_(), rstd.zero_()
    resident = batch_norm_plan.batch_norm_resident(plan, x.element_size(), device)
    with on(x):
        if resident and residual is None and not (relu or pre_relu):
            _launch_resident(
                *(_batch_norm_forward_resident_kernel, plan, resident),
                *(y, mean, rstd, running_mean, running_var, x, weight, bias),
                loads=("running_mean", "running_var", "x", "weight", "bias"),
                stores=("y", "mean", "rstd", "running_mean", "running_var"),
                scalars=(eps, momentum),
            )
            return y, mean, rstd
        partial_moments(x, plan, pre_relu, (mean, rstd, running_mean, running_var), (eps, momentum))
        around = (_kept(signs, plan), residual, eps)
        normalize(y, x, mean, rstd, weight, bias, plan, *around, relu=relu, pre_relu=pre_relu)
    return y, mean, rstd


def batch_norm_eval_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    device: Device | None = None,
    residual: Tensor | None = None,
    signs: Tensor | None = None,
    relu: bool = False,
    pre_relu: bool = False,
    std: bool = False,
) -> Tensor:
    """Returns y of x (N, C, *) with given statistics, in one sweep; residual and signs as in `batch_norm_forward`.

    With `std` running_var is a standard deviation instead, and eps unused.
    """
    x, _, plan = planned(x, device)
    residual = None if residual is None else like(x, residual)
    y = torch.empty_like(x)
    if x.numel():
        around = (_kept(signs, plan), residual, eps, True, relu, pre_relu)
        with on(x):
            normalize(y, x, running_mean, running_var, weight, bias, plan, *around, STD=std)
    return y


def batch_norm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    eps: float,
    evaluating: bool,
    need_dx: bool,
    need_sums: bool,
    device: Device | None = None,
    bias: Tensor | None = None,
    signs: Tensor | None = None,
    dz: Tensor | None = None,
    relu: bool = False,
    pre_relu: bool = False,
    std: bool = False,
    noise: Tensor | None = None,
    seed: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Returns (dx, dw, db) of x (N, C, *); dw and db (C,) in the statistics' dtype; None where not needed.

    mean and rstd are as saved by the forward pass; in evaluation running_mean and running_var, or with `std` a standard
    deviation. The gradient of a residual goes to dz, if given, which lies as x does. A ReLU wants the signs of forward,
    or without them the bias. With noise and its seed, see noisy.py, dy is what came back through it.
    """
    x, device, plan = planned(x, device)
    dy = like(x, dy)
    stats = statistics_dtype(x)
    dx = torch.empty_like(x) if need_dx else None
    partials = dw = db = None
    if need_sums or (need_dx and not evaluating):
        dw, db = (torch.empty(plan.channels, dtype=stats, device=x.device) for _ in range(2))
    if x.numel() == 0:
        return dx, None if dw is None else dw.zero_(), None if db is None else db.zero_()
    resident = batch_norm_plan.batch_norm_resident(plan, x.element_size(), device)
    if resident and dx is not None and not evaluating and noise is None and not (relu or pre_relu or signs is not None):
        with on(x):
            _launch_resident(
                *(_batch_norm_backward_resident_kernel, plan, resident),
                *(dx, dw, db, dy, x, mean, rstd, weight),
                loads=("dy", "x", "mean", "rstd", "weight"),
                stores=("dx", "dw", "db"),
            )
        return dx, dw, db
    relus: dict[str, Any] = {"RELU": relu, "PRE_RELU": pre_relu}
    tensors = (dy, _kept(signs, plan), x, mean, rstd, weight, bias if relu and signs is None else None)
    arrived = None
    if dw is not None:
        partials = torch.empty((2, plan.splits, plan.channels), dtype=stats, device=x.device)
        arrived = counters(plan.groups, x.device)
    drawn: dict[str, Any] = {"noise_ptr": noise, "seed_ptr": seed}
    tiled = plan if noise is None else batch_norm_plan.batch_norm_drawing(plan, device)
    with on(x):
        # In training dx wants a second sweep, which then writes dz too.
        dx_here, dz_here = (dx, dz) if evaluating or dx is None else (None, None)
        found = (dw, db, partials, arrived, dx_here, dz_here)
        if any(t is not None for t in found):
            constants = {"EVAL": evaluating, "STD": std, "BLOCK_P": plan.sum_block_p, **drawn, **relus}
            loads_x = partials is not None or (relu and signs is None) or (pre_relu and dx_here is not None)
            way = SUMS if loads_x else SUMS_WITHOUT_X
            launch_sweep(_batch_norm_reduce_kernel, tiled, *found, *tensors, sweep=way, scalars=(eps,), **constants)
        if need_dx and not evaluating:
            constants = {"EVICT": plan.evict, **drawn, **relus}
            given = (dx, dz, *tensors, dw, db, None)
            launch_sweep(_batch_norm_input_gradient_kernel, tiled, *given, sweep=INPUT_GRADIENT, **constants)
    return dx, dw, db


def _launch_resident(
    kernel: Any,
    plan: BatchNormPlan,
    resident: ResidentPlan,
    *tensors: Tensor | None,
    loads: tuple[str, ...],
    stores: tuple[str, ...],
    scalars: tuple[float, ...] = (),
) -> None:
    """Launches a program for each channel. Each of the scalars reaches the kernel as a pair of floats."""
    launch(
        *(kernel, (plan.channels,)),
        *tensors,
        *(plan.batch, plan.channels, plan.positions),
        *(part for scalar in scalars for part in float_pair(scalar)),
        ALIGN=plan.align,
        IMAGES=resident.images,
        BLOCK_S=resident.block_s,
        **resident.options,
        moves=lambda: Moves(resident, dict.fromkeys(loads, 1), stores),
    )
