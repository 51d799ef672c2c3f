"""The passes of each operator: the call of its launcher, and what the plan of that call declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil, inf, prod

import torch
from torch import Tensor

from bench.operators.group_norm import usual_groups
from normlib.kernels import (
    batch_norm,
    batch_norm_traffic,
    batch_renorm,
    batch_renorm_traffic,
    group_norm,
    group_norm_traffic,
    lp_norm,
    lp_norm_traffic,
    noisy_batch_norm,
    noisy_batch_norm_traffic,
    row_norm,
    row_norm_traffic,
    weight_norm,
    weight_norm_traffic,
)
from normlib.kernels import plan as plans
from normlib.kernels.layouts import is_channels_last
from normlib.kernels.plan import (
    BatchNormPlan,
    Device,
    GroupNormPlan,
    MergePlan,
    OncePlan,
    RowBackwardPlan,
    RowPlan,
)
from normlib.kernels.traffic import Traffic
from normlib.partial_rms_norm import PARTIAL

# By name; what is not in it is not there, or not wanted. Outputs stand for their dtype.
Tensors = dict[str, Tensor]
Plan = RowPlan | RowBackwardPlan | BatchNormPlan | GroupNormPlan
Shaped = tuple[tuple[int, ...], torch.dtype]
PLAIN = ("x", "y", "dy", "dx")
EPS, MOMENTUM = 1e-5, 0.1  # no plan depends on them


@dataclass(frozen=True)
class Declared:
    """What a pass says that it will do: its plan, the kind of that in a word or two, and its launches in order."""

    kind: str
    plan: Plan
    launches: tuple[Traffic, ...]
    once: OncePlan | None = None  # batch norm's plan for one launch


@dataclass(frozen=True)
class Pass:
    """One direction of an operator: the launcher's call, what it declares, and the tensors that it needs."""

    run: Callable[[Tensors, Device], object]
    declare: Callable[[Tensors, Device], Declared]
    needs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Passes:
    """Of one operator: the tensors of its calls, and its passes by mode.

    `activations` are shaped as x; `vectors`, from x's shape and dtype, says which others have what shape and dtype.
    Modes are named as bench/case.py names them; `eval_bwd` is backward in evaluation. Statistics are kept in float32,
    or float64 for float64.
    """

    activations: tuple[str, ...]
    vectors: Callable[[tuple[int, ...], torch.dtype], Mapping[str, Shaped]]
    modes: Mapping[str, Pass]
    of: Callable[..., Passes] | None = None  # the same with other options (bench/case.py) than the first


def _sizes(t: Tensors) -> dict[str, int]:
    return {name: tensor.element_size() for name, tensor in t.items()}


def _statistics(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _kind(plan: RowPlan) -> str:
    return "rows in registers" if plan.chunks else "loop over a row"


def _row_norm(centred: bool, add: bool = False, partial: float = 1.0) -> Passes:
    def vectors(shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, Shaped]:
        m, n = shape
        found: dict[str, Shaped] = {"weight": ((n,), dtype), "dw": ((n,), dtype), "rstd": ((m,), _statistics(dtype))}
        if centred:
            found |= {"bias": ((n,), dtype), "db": ((n,), dtype), "mean": ((2, m), _statistics(dtype))}
        return found

    def partial_n(t: Tensors) -> int:
        return ceil(partial * t["x"].shape[1])

    def forward(t: Tensors, device: Device) -> object:
        parameters, stream = (t.get("weight"), t.get("bias")), (t.get("residual"), t.get("z"))
        return row_norm.forward(
            t["x"], *parameters, EPS, centred, t["x"].shape[1], device, *stream, partial_n=partial_n(t)
        )

    def declare_forward(t: Tensors, device: Device) -> Declared:
        m, n = t["x"].shape
        plan = plans.row_forward(n, t["x"].element_size(), device, tensors=4 if "residual" in t else 2)
        return Declared(_kind(plan), plan, row_norm_traffic.forward(plan, m, n, _sizes(t), partial_n(t)))

    def backward(t: Tensors, device: Device) -> object:
        x, mean = t["x"], t.get("mean", t["rstd"])
        dw, db = (t[name].dtype if name in t else None for name in ("dw", "db"))
        given = (t["dy"], x, mean, t["rstd"], t.get("weight"), centred, x.shape[1], dw, db, "dx" in t, device)
        return row_norm.backward(*given, t.get("dz"), partial_n=partial_n(t))

    def declare_backward(t: Tensors, device: Device) -> Declared:
        m, n = t["x"].shape
        whole = "dx" in t and ("dw" in t or "db" in t)
        plan = plans.row_backward(m, n, t["x"].element_size(), device, whole)
        merge = plans.merge(plan.programs, n, device)
        return Declared(
            "slices, barrier" if plan.slices else _kind(plan.rows),
            plan,
            row_norm_traffic.backward(plan, merge, m, n, _sizes(t)),
        )

    activations = (*PLAIN, *(("residual", "z", "dz") if add else ()))
    return Passes(
        activations, vectors, {"fwd": Pass(forward, declare_forward), "bwd": Pass(backward, declare_backward)}
    )


def _batch_plan(t: Tensors, device: Device) -> BatchNormPlan:
    x = t["x"]
    return plans.batch_norm(tuple(x.shape), is_channels_last(x), x.element_size(), device)


def _once_kind(once: OncePlan) -> str:
    return "one launch, barrier" if once.splits > 1 else "one launch"


def _weight_norm() -> Passes:
    def vectors(shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, Shaped]:
        m = shape[0]
        return {"weight": ((m,), dtype), "dw": ((m,), dtype), "norm": ((2, m), _statistics(dtype))}

    def forward(t: Tensors, device: Device) -> object:
        return weight_norm.forward(t["x"], t["weight"], device)

    def declare_forward(t: Tensors, device: Device) -> Declared:
        m, n = t["x"].shape
        plan = plans.row_forward(n, t["x"].element_size(), device)
        return Declared(_kind(plan), plan, weight_norm_traffic.forward(plan, m, n, _sizes(t)))

    def backward(t: Tensors, device: Device) -> object:
        return weight_norm.backward(t["dy"], t["x"], t["norm"], t["weight"], "dx" in t, "dw" in t, device)

    def declare_backward(t: Tensors, device: Device) -> Declared:
        m, n = t["x"].shape
        plan = plans.row_backward(m, n, t["x"].element_size(), device, whole=False).rows
        return Declared(_kind(plan), plan, weight_norm_traffic.backward(plan, m, n, _sizes(t)))

    return Passes(PLAIN, vectors, {"fwd": Pass(forward, declare_forward), "bwd": Pass(backward, declare_backward)})


def _batch_norm(relu: bool = False, add: bool = False) -> Passes:
    """`relu`: one behind the norm; `add`: of the norm and a residual, whose gradient is dz."""
    running = ("running_mean", "running_var")
    per_channel = ("weight", "bias", *running, "rstd", "dw", "db")

    def vectors(shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, Shaped]:
        c, statistics = shape[1], _statistics(dtype)
        return {"mean": ((2, c), statistics), **dict.fromkeys(per_channel, ((c,), statistics))}

    def signs(t: Tensors, device: Device) -> Tensor | None:
        return batch_norm.empty_signs(t["x"], device) if add else None

    def sizes(t: Tensors) -> dict[str, int]:
        return {**_sizes(t), **({"signs": 1} if add else {})}

    def forward(t: Tensors, device: Device) -> object:
        mean, var = (t.get(name) for name in running)
        given = (t["x"], t.get("weight"), t.get("bias"), mean, var, MOMENTUM, EPS, device)
        return batch_norm.batch_norm_forward(*given, t.get("residual"), signs(t, device), relu=relu)

    def declare_forward(t: Tensors, device: Device) -> Declared:
        plan = _batch_plan(t, device)
        once = plans.batch_norm_once(plan, t["x"].element_size(), 1, device, relu)
        if once is not None:
            return Declared(_once_kind(once), plan, batch_norm_traffic.forward_once(plan, once, sizes(t)), once)
        merge = plans.merge(plan.splits, plan.channels, device)
        return Declared("streaming", plan, batch_norm_traffic.forward(plan, merge, sizes(t)))

    def evaluate(t: Tensors, device: Device) -> object:
        mean, var = (t[name] for name in running)
        # With a residual its signs are kept for backward, in evaluation too.
        given = (t["x"], t.get("weight"), t.get("bias"), mean, var, EPS, device)
        return batch_norm.batch_norm_eval_forward(*given, t.get("residual"), signs(t, device), relu=relu)

    def declare_evaluate(t: Tensors, device: Device) -> Declared:
        plan = _batch_plan(t, device)
        return Declared("one sweep", plan, batch_norm_traffic.eval_forward(plan, sizes(t)))

    def backward(evaluating: bool) -> Pass:
        names = running if evaluating else ("mean", "rstd")

        def run(t: Tensors, device: Device) -> object:
            mean, rstd = (t[name] for name in names)
            needs = ("dx" in t, "dw" in t)
            given = (t["dy"], t["x"], mean, rstd, t.get("weight"), EPS, evaluating, *needs, device, t.get("bias"))
            return batch_norm.batch_norm_backward(*given, signs(t, device), t.get("dz"), relu=relu)

        def declare(t: Tensors, device: Device) -> Declared:
            plan = _batch_plan(t, device)
            if "dx" in t and not evaluating:
                once = plans.batch_norm_once(plan, t["x"].element_size(), 2, device, relu)
                if once is not None:
                    launches = batch_norm_traffic.backward_once(plan, once, sizes(t), relu)
                    return Declared(_once_kind(once), plan, launches, once)
            merge = plans.merge(plan.splits, plan.channels, device)
            launches = batch_norm_traffic.backward(plan, merge, sizes(t), evaluating, relu)
            return Declared("one sweep" if evaluating else "streaming", plan, launches)

        return Pass(run, declare, frozenset(names))

    return Passes(
        (*PLAIN, *(("residual", "dz") if add else ())),
        vectors,
        {
            "fwd": Pass(forward, declare_forward),
            "bwd": backward(evaluating=False),
            "eval": Pass(evaluate, declare_evaluate, frozenset(running)),
            "eval_bwd": backward(evaluating=True),
        },
    )


def _batch_renorm() -> Passes:
    running = ("running_mean", "running_std")
    per_channel = ("weight", "bias", *running, "rstd", "dw", "db")

    def vectors(shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, Shaped]:
        c, statistics = shape[1], _statistics(dtype)
        wide: dict[str, Shaped] = {"mean": ((2, c), statistics), "renorm": ((4, c), statistics)}
        return {**wide, **dict.fromkeys(per_channel, ((c,), statistics))}

    def forward(t: Tensors, device: Device) -> object:
        buffers = (t["running_mean"], t["running_std"])
        given = (t["x"], t.get("weight"), t.get("bias"), *buffers, MOMENTUM, EPS)
        return batch_renorm.batch_renorm_forward(*given, rmax=3.0, dmax=5.0, device=device)

    def declare_forward(t: Tensors, device: Device) -> Declared:
        plan = _batch_plan(t, device)
        merge = plans.merge(plan.splits, plan.channels, device)
        return Declared("streaming", plan, batch_renorm_traffic.forward(plan, merge, _sizes(t)))

    def backward(t: Tensors, device: Device) -> object:
        given = (t["dy"], t["x"], t["mean"], t["rstd"], t["renorm"], "dx" in t, "dw" in t)
        return batch_renorm.batch_renorm_backward(*given, device)

    def declare_backward(t: Tensors, device: Device) -> Declared:
        plan = _batch_plan(t, device)
        once = plans.batch_norm_once(plan, t["x"].element_size(), 2, device) if "dx" in t else None
        merge, columns = (plans.merge(parts, plan.channels, device) for parts in (plan.splits, 1))
        launches = batch_renorm_traffic.backward(plan, once, merge, columns, _sizes(t))
        return Declared("streaming" if once is None else _once_kind(once), plan, launches, once)

    def evaluate(t: Tensors, device: Device) -> object:
        buffers = (t["running_mean"], t["running_std"])
        given = (t["x"], t.get("weight"), t.get("bias"), *buffers, EPS, device)
        return batch_norm.batch_norm_eval_forward(*given, std=True)

    def evaluate_backward(t: Tensors, device: Device) -> object:
        buffers = (t["running_mean"], t["running_std"])
        given = (t["dy"], t["x"], *buffers, t.get("weight"), EPS, True, "dx" in t, "dw" in t, device)
        return batch_norm.batch_norm_backward(*given, std=True)

    def declare_evaluation(backward: bool) -> Callable[[Tensors, Device], Declared]:
        def declare(t: Tensors, device: Device) -> Declared:
            plan = _batch_plan(t, device)
            merge = plans.merge(plan.splits, plan.channels, device)
            return Declared("one sweep", plan, batch_renorm_traffic.evaluation(plan, merge, _sizes(t), backward))

        return declare

    return Passes(
        PLAIN,
        vectors,
        {
            "fwd": Pass(forward, declare_forward, frozenset(running)),
            "bwd": Pass(backward, declare_backward),
            "eval": Pass(evaluate, declare_evaluation(backward=False), frozenset(running)),
            "eval_bwd": Pass(evaluate_backward, declare_evaluation(backward=True), frozenset(running)),
        },
    )


def _noisy_batch_norm() -> Passes:
    plain = _batch_norm()

    def vectors(shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, Shaped]:
        noise = {"noise": ((4, shape[1]), _statistics(dtype)), "seed": ((), torch.int64)}
        return {**plain.vectors(shape, dtype), **noise}

    def forward(t: Tensors, device: Device) -> object:
        vectors = (t.get("weight"), t.get("bias"), t.get("running_mean"), t.get("running_var"))
        drawn = (t["seed"], True, [0.5, 1.25, 0.1, 0.1], device)
        return noisy_batch_norm.noisy_batch_norm_forward(t["x"], *vectors, MOMENTUM, EPS, *drawn)

    def backward(t: Tensors, device: Device) -> object:
        given = (t["dy"], t["x"], t["mean"], t["rstd"], t.get("weight"), EPS, False, "dx" in t, "dw" in t, device)
        return batch_norm.batch_norm_backward(*given, noise=t["noise"], seed=t["seed"])

    def declare(traffic: Callable[..., tuple[Traffic, ...]]) -> Callable[[Tensors, Device], Declared]:
        def declared(t: Tensors, device: Device) -> Declared:
            plan = _batch_plan(t, device)
            merge = plans.merge(plan.splits, plan.channels, device)
            return Declared("streaming", plan, traffic(plan, merge, _sizes(t)))

        return declared

    return Passes(
        PLAIN,
        vectors,
        {
            **plain.modes,
            "fwd": Pass(forward, declare(noisy_batch_norm_traffic.forward)),
            "bwd": Pass(backward, declare(noisy_batch_norm_traffic.backward)),
        },
    )


def _group_norm(groups: int | str | None = None, instances: bool = False) -> Passes:
    """`instances`: with a channel a group, float32 parameters and running statistics; groups None: the usual."""
    running = ("running_mean", "running_var")

    def groups_of(x: Tensor) -> int:
        return x.shape[1] if instances else int(groups or usual_groups(x.shape[1]))

    def vectors(shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, Shaped]:
        (n, c), statistics = shape[:2], _statistics(dtype)
        each = n * (c if instances else int(groups or usual_groups(c)))
        parameters = dict.fromkeys(("weight", "bias", "dw", "db"), ((c,), statistics if instances else dtype))
        saved: dict[str, Shaped] = {"mean": ((2, each), statistics), "rstd": ((each,), statistics)}
        return {**parameters, **saved, **(dict.fromkeys(running, ((c,), statistics)) if instances else {})}

    def plan_of(t: Tensors, device: Device) -> GroupNormPlan:
        x = t["x"]
        last = is_channels_last(x)
        return plans.group_norm(tuple(x.shape), groups_of(x), last, x.element_size(), device)

    def kind(plan: GroupNormPlan) -> str:
        return "one launch" if plan.rows else "streaming"

    def forward(t: Tensors, device: Device) -> object:
        x, parameters = t["x"], (t.get("weight"), t.get("bias"))
        if instances:
            mean, var = (t.get(name) for name in running)
            return group_norm.instance_norm_forward(x, *parameters, mean, var, MOMENTUM, EPS, device)
        return group_norm.group_norm_forward(x, groups_of(x), *parameters, EPS, device)

    def declare_forward(t: Tensors, device: Device) -> Declared:
        plan, sizes = plan_of(t, device), _sizes(t)
        if running[0] not in t:
            return Declared(kind(plan), plan, group_norm_traffic.forward(plan, sizes))
        sizes["var"] = sizes["rstd"]
        moved = group_norm_traffic.running(
            plans.merge(plan.batch, plan.channels, device), plan.batch, plan.channels, sizes
        )
        return Declared(kind(plan), plan, (*group_norm_traffic.forward(plan, sizes), moved))

    def backward(t: Tensors, device: Device) -> object:
        x, (dw, db) = t["x"], (t[name].dtype if name in t else None for name in ("dw", "db"))
        given = (t["dy"], x, groups_of(x), t["mean"], t["rstd"], t.get("weight"))
        return group_norm.group_norm_backward(*given, dw, db, "dx" in t, device)

    def declare_backward(t: Tensors, device: Device) -> Declared:
        plan = plan_of(t, device)
        merge = plans.merge(plan.parts, plan.channels, device)
        return Declared(kind(plan), plan, group_norm_traffic.backward(plan, merge, _sizes(t)))

    modes = {"fwd": Pass(forward, declare_forward), "bwd": Pass(backward, declare_backward)}
    if instances:  # evaluation is batch norm's
        evaluation = _batch_norm().modes
        return Passes(PLAIN, vectors, {**modes, "eval": evaluation["eval"], "eval_bwd": evaluation["eval_bwd"]})
    return Passes(PLAIN, vectors, modes, _group_norm)


def _lp_norm(p: str = "2") -> Passes:
    order, running = float(p), ("running_mean", "running_norm")
    per_channel = ("weight", "bias", *running, "rstd", "dw", "db")

    def vectors(shape: tuple[int, ...], dtype: torch.dtype) -> Mapping[str, Shaped]:
        c, statistics = shape[1], _statistics(dtype)
        pairs = ("mean", "peak") if order == inf else ("mean",)
        return {**dict.fromkeys(pairs, ((2, c), statistics)), **dict.fromkeys(per_channel, ((c,), statistics))}

    def plan_of(t: Tensors, device: Device) -> tuple[BatchNormPlan, MergePlan]:
        x = t["x"]
        plan = plans.batch_norm(tuple(x.shape), is_channels_last(x), x.element_size(), device)
        return plan, plans.merge(plan.splits, plan.channels, device)

    def forward(t: Tensors, device: Device) -> object:
        weight, bias, mean, norm = (t.get(name) for name in ("weight", "bias", *running))
        return lp_norm.lp_norm_forward(t["x"], weight, bias, mean, norm, order, MOMENTUM, EPS, device)

    def declare_forward(t: Tensors, device: Device) -> Declared:
        plan, merge = plan_of(t, device)
        return Declared("streaming", plan, lp_norm_traffic.forward(plan, merge, _sizes(t)))

    def evaluate(t: Tensors, device: Device) -> object:
        mean, norm = (t[name] for name in running)
        return lp_norm.lp_norm_eval_forward(t["x"], t.get("weight"), t.get("bias"), mean, norm, order, EPS, device)

    def declare_evaluate(t: Tensors, device: Device) -> Declared:
        plan, _ = plan_of(t, device)
        return Declared("one sweep", plan, lp_norm_traffic.eval_forward(plan, _sizes(t)))

    def backward(evaluating: bool) -> Pass:
        names = running if evaluating else ("mean", "rstd")

        def run(t: Tensors, device: Device) -> object:
            mean, rstd = (t[name] for name in names)
            peak = None if evaluating else t.get("peak")
            given = (t["dy"], t["x"], mean, rstd, peak, t.get("weight"))
            return lp_norm.lp_norm_backward(*given, order, EPS, evaluating, "dx" in t, "dw" in t, device)

        def declare(t: Tensors, device: Device) -> Declared:
            plan, merge = plan_of(t, device)
            kind = "one sweep" if evaluating else "streaming"
            return Declared(kind, plan, lp_norm_traffic.backward(plan, merge, _sizes(t), evaluating))

        return Pass(run, declare, frozenset(names))

    modes = {
        "fwd": Pass(forward, declare_forward),
        "bwd": backward(evaluating=False),
        "eval": Pass(evaluate, declare_evaluate, frozenset(running)),
        "eval_bwd": backward(evaluating=True),
    }
    return Passes(PLAIN, vectors, modes, of=_lp_norm)


def _of_steps(norm: Passes) -> Passes:
    """A norm of (steps, features) on (time, batch, features)."""

    def flat(t: Tensors) -> Tensors:
        return {name: each.flatten(0, -2) if name in norm.activations else each for name, each in t.items()}

    def flattened(each: Pass) -> Pass:
        return replace(
            each,
            run=lambda t, device: each.run(flat(t), device),
            declare=lambda t, device: each.declare(flat(t), device),
        )

    return replace(
        norm,
        vectors=lambda shape, dtype: norm.vectors((prod(shape[:-1]), shape[-1]), dtype),
        modes={mode: flattened(each) for mode, each in norm.modes.items()},
    )


PASSES: Mapping[str, Passes] = {
    "batch_norm": _batch_norm(),
    "batch_norm_add_relu": _batch_norm(relu=True, add=True),
    "batch_norm_relu": _batch_norm(relu=True),
    "batch_renorm": _batch_renorm(),
    "group_norm": _group_norm(),
    "instance_norm": _group_norm(instances=True),
    "layer_norm": _row_norm(centred=True),
    "layer_norm_add": _row_norm(centred=True, add=True),
    "noisy_batch_norm": _noisy_batch_norm(),
    "lp_norm": _lp_norm(),
    "partial_rms_norm": _row_norm(centred=False, partial=PARTIAL),
    "rms_norm": _row_norm(centred=False),
    "rms_norm_add": _row_norm(centred=False, add=True),
    "sequence_batch_norm": _of_steps(_batch_norm()),
    "weight_norm": _weight_norm(),
}
