"""Every kernel over ragged tails: calls of the launchers, forward and backward, for the sanitizers to watch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from math import inf

import torch
from every_kernel import KERNELS as EVERY_KERNEL
from torch import Tensor

from bench.audit.small_calls import OFF_CHIP
from normlib.kernels import weight_norm
from normlib.kernels.batch_norm import launch as batch_norm
from normlib.kernels.batch_norm import lp as lp_norm
from normlib.kernels.batch_norm import noisy as noisy_batch_norm
from normlib.kernels.batch_norm import renorm as batch_renorm
from normlib.kernels.batch_norm import sync as sync_batch_norm
from normlib.kernels.group_norm import instance as instance_norm
from normlib.kernels.group_norm import launch as group_norm
from normlib.kernels.plan import UNTUNED, Device
from normlib.kernels.row_norm import launch as row_norm

# Its programs wait for each other and cannot run one after another; tests/bench/audit/test_audit_counting.py
# sees every address of it all the same.
WAITING = {"_row_norm_backward_sliced_kernel"}
KERNELS = EVERY_KERNEL - WAITING
EVERYTHING = ("dx", "dw", "db")
FULL, BARE = True, False


@dataclass(frozen=True)
class Call:
    """Forward of one operator, and backward if there are gradients that it `needs`; `affine`: with parameters."""

    operator: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    multiprocessors: int = 1
    layout: str = "contiguous"
    affine: bool = FULL
    needs: tuple[str, ...] = EVERYTHING
    cache: int = 0  # bytes that the plan counts on
    on_chip: bool = False  # whether registers may hold what they can

    @property
    def device(self) -> Device:
        return Device(self.multiprocessors, l2=self.cache, tuning=UNTUNED if self.on_chip else OFF_CHIP)

    def __str__(self) -> str:
        parts = [self.operator, "x".join(map(str, self.shape)), str(self.dtype).removeprefix("torch.")]
        parts += [f"{self.multiprocessors}mp", self.layout.replace(" ", "-"), *([] if self.affine else ["bare"])]
        parts += ["on-chip" if self.on_chip else "cached"] if self.cache else []
        return "-".join(parts + ([] if self.needs == EVERYTHING else ["+".join(self.needs) or "none"]))

    def run(self, device: torch.device) -> dict[str, Tensor]:
        """All that comes back, by name."""
        return _OPERATORS[self.operator](self, device)


# How a tensor of a call lies in memory.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels-last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
    "rows apart": lambda t: torch.stack([t, t], 1)[:, 0],
    "expanded": lambda t: t[:1].expand(t.shape),
}


def _draw(call: Call, device: torch.device) -> tuple[Tensor, Tensor]:
    return tuple(LAYOUTS[call.layout](torch.randn(call.shape).to(device, call.dtype)) for _ in range(2))


def _vectors(length: int, dtype: torch.dtype, device: torch.device, count: int) -> tuple[Tensor, ...]:
    """Positive, so that they serve as variances too; each in memory of its own."""
    return tuple((torch.rand(length) + 0.5).to(device, dtype) for _ in range(count))


def _present(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: t for name, t in tensors.items() if t is not None}


def _rows(centred: bool, add: bool = False, partial: bool = False) -> Callable[[Call, torch.device], dict[str, Tensor]]:
    def run(call: Call, device: torch.device) -> dict[str, Tensor]:
        n, plan = call.shape[-1], call.device
        partial_n = n // 3 + 1 if partial else n
        x, dy = _draw(call, device)
        residual, dz = _draw(call, device) if add else (None, None)
        z = torch.empty(call.shape, dtype=call.dtype, device=device) if add else None
        weight, bias = _vectors(n, call.dtype, device, 2) if call.affine else (None, None)
        y, mean, rstd = row_norm.forward(x, weight, bias, 1e-5, centred, n, plan, residual, z, partial_n=partial_n)
        if not call.needs:
            return _present(y=y, z=z, mean=mean, rstd=rstd)
        x = x if z is None else z
        dw_dtype, db_dtype = (call.dtype if name in call.needs else None for name in ("dw", "db"))
        needs_dx = "dx" in call.needs
        given = (dy, x, mean, rstd, weight, centred, n, dw_dtype, db_dtype, needs_dx, plan, dz)
        found = row_norm.backward(*given, partial_n=partial_n)
        return _present(y=y, z=z, mean=mean, rstd=rstd, dx=found[0], dw=found[1], db=found[2])

    return run


def _batch(evaluating: bool, **relus: bool) -> Callable[[Call, torch.device], dict[str, Tensor]]:
    """With ReLUs there is a residual too, unless the call is bare."""

    def run(call: Call, device: torch.device) -> dict[str, Tensor]:
        channels, plan = call.shape[1], call.device
        x, dy = _draw(call, device)
        wide = torch.promote_types(call.dtype, torch.float32)
        weight, bias, mean, var = _vectors(channels, wide, device, 4) if call.affine else (None,) * 4
        residual = signs = dz = None
        if relus and call.affine:
            residual, dz = _draw(call, device)
            signs = batch_norm.empty_signs(x, plan)
        around = {**relus, "signs": signs}
        if evaluating:
            if mean is None:
                mean, var = _vectors(channels, wide, device, 2)
            given = (mean, var, 1e-5, plan, residual)
            results = {"y": batch_norm.batch_norm_eval_forward(x, weight, bias, *given, **around)}
            saved = mean, var
        else:
            given = (mean, var, 0.1, 1e-5, plan, residual)
            y, *saved = batch_norm.batch_norm_forward(x, weight, bias, *given, **around)
            results = _present(y=y, mean=saved[0], rstd=saved[1], running_mean=mean, running_var=var)
        if not call.needs:
            return results
        needs_dx, needs_sums = "dx" in call.needs, "dw" in call.needs
        arguments = (dy, x, *saved, weight, 1e-5, evaluating, needs_dx, needs_sums, plan, bias)
        dx, dw, db = batch_norm.batch_norm_backward(*arguments, **around, dz=dz)
        return {**results, **_present(dx=dx, dw=dw, db=db, dz=dz, signs=signs)}

    return run


def _batch_renorm(call: Call, device: torch.device) -> dict[str, Tensor]:
    """Training, and evaluation, whose sweeps are batch norm's."""
    channels, plan = call.shape[1], call.device
    x, dy = _draw(call, device)
    wide = torch.promote_types(call.dtype, torch.float32)
    mean, std, *given = _vectors(channels, wide, device, 4)
    weight, bias = given if call.affine else (None, None)
    scalars = (0.1, 1e-5, 3.0, 5.0, None if call.affine else torch.tensor([2.0, 1.0], device=device), plan)
    y, *saved = batch_renorm.batch_renorm_forward(x, weight, bias, mean, std, *scalars)
    needs = ("dx" in call.needs, "dw" in call.needs)
    dx, dw, db = batch_renorm.batch_renorm_backward(dy, x, *saved, *needs, plan)
    evaluated = batch_norm.batch_norm_eval_forward(x, weight, bias, mean, std, 0.0, plan, std=True)
    gradients = batch_norm.batch_norm_backward(dy, x, mean, std, weight, 0.0, True, *needs, plan, std=True)
    results = dict(zip(("eval_dx", "eval_dw", "eval_db"), gradients, strict=True))
    found = {"y": y, **dict(zip(("mean", "rstd", "renorm"), saved, strict=True)), "dx": dx, "dw": dw, "db": db}
    return _present(**found, **results, y_eval=evaluated, running_mean=mean, running_std=std)


def _noisy_batch(call: Call, device: torch.device) -> dict[str, Tensor]:
    x, dy = _draw(call, device)
    wide, seed = torch.promote_types(call.dtype, torch.float32), torch.tensor(7, device=device)
    vectors = _vectors(x.shape[1], wide, device, 4) if call.affine else (None,) * 4
    drawn = (0.1, 1e-5, seed, call.affine, [0.5, 1.25, 0.1, 0.1], call.device)
    y, mean, rstd, noise = noisy_batch_norm.noisy_batch_norm_forward(x, *vectors, *drawn)
    needs = ("dx" in call.needs, "dw" in call.needs, call.device)
    gradients = batch_norm.batch_norm_backward(
        dy, x, mean, rstd, vectors[0], 0.0, False, *needs, noise=noise, seed=seed
    )
    named = dict(zip(EVERYTHING, gradients, strict=True))
    return _present(y=y, mean=mean, rstd=rstd, noise=noise, running_mean=vectors[2], running_var=vectors[3], **named)


def _grouped(per_group: int) -> Callable[[Call, torch.device], dict[str, Tensor]]:
    """Groups of so many channels; of one, with running statistics unless the call is bare."""

    def run(call: Call, device: torch.device) -> dict[str, Tensor]:
        channels, plan = call.shape[1], call.device
        groups = channels // per_group
        x, dy = _draw(call, device)
        wide = torch.promote_types(call.dtype, torch.float32)
        weight, bias, running_mean, running_var = _vectors(channels, wide, device, 4) if call.affine else (None,) * 4
        if per_group == 1:
            given = (weight, bias, running_mean, running_var, 0.1, 1e-5, plan)
            y, mean, rstd = instance_norm.instance_norm_forward(x, *given)
            results = _present(running_mean=running_mean, running_var=running_var)
        else:
            y, mean, rstd = group_norm.group_norm_forward(x, groups, weight, bias, 1e-5, plan)
            results = {}
        dw_dtype, db_dtype = (wide if name in call.needs else None for name in ("dw", "db"))
        given = (groups, mean, rstd, weight, dw_dtype, db_dtype, "dx" in call.needs, plan)
        dx, dw, db = group_norm.group_norm_backward(dy, x, *given)
        return {**results, **_present(y=y, mean=mean, rstd=rstd, dx=dx, dw=dw, db=db)}

    return run


def _lp(p: float, evaluating: bool = False) -> Callable[[Call, torch.device], dict[str, Tensor]]:
    def run(call: Call, device: torch.device) -> dict[str, Tensor]:
        channels, plan = call.shape[1], call.device
        x, dy = _draw(call, device)
        wide = torch.promote_types(call.dtype, torch.float32)
        weight, bias = _vectors(channels, wide, device, 2) if call.affine else (None, None)
        running = _vectors(channels, wide, device, 2) if call.affine or evaluating else (None, None)
        if evaluating:
            saved = (*running, None)
            y = lp_norm.lp_norm_eval_forward(x, weight, bias, *running, p, 1e-5, plan)
        else:
            y, *saved = lp_norm.lp_norm_forward(x, weight, bias, *running, p, 0.1, 1e-5, plan)
        needs = ("dx" in call.needs, "dw" in call.needs)
        dx, dw, db = lp_norm.lp_norm_backward(dy, x, *saved, weight, p, 1e-5, evaluating, *needs, plan)
        names = ("mean", "rstd", "peak", "running_mean", "running_norm")
        return _present(y=y, dx=dx, dw=dw, db=db, **dict(zip(names, (*saved, *running), strict=True)))

    return run


def _sync_batch(call: Call, device: torch.device) -> dict[str, Tensor]:
    """Two processes' shares of the batch, one after the other, and a third that is empty."""
    x, dy = _draw(call, device)
    shares = (1, x.shape[0] - 1, 0)
    wide = torch.promote_types(call.dtype, torch.float32)
    weight, bias, running_mean, running_var = _vectors(x.shape[1], wide, device, 4) if call.affine else (None,) * 4
    parts, gradients = x.split(shares), dy.split(shares)
    messages = torch.stack([sync_batch_norm.moments(part, call.device) for part in parts])
    mean, rstd, count = sync_batch_norm.merge_messages(messages, running_mean, running_var, 0.1, 1e-5)
    y = [sync_batch_norm.normalize(part, mean, rstd, weight, bias, call.device) for part in parts]
    pairs = list(zip(gradients, parts, strict=True))
    sums = torch.stack([sync_batch_norm.sums(*pair, mean, rstd, call.device) for pair in pairs])
    total = sync_batch_norm.add_sums(sums)
    dx = [sync_batch_norm.input_gradient(*p, mean, rstd, weight, total, count, call.device) for p in pairs]
    results = _present(running_mean=running_mean, running_var=running_var)
    found = {"y": torch.cat(y), "dx": torch.cat(dx), "messages": messages, "mean": mean, "rstd": rstd, "sums": total}
    return {**results, **found}


def _weight(call: Call, device: torch.device) -> dict[str, Tensor]:
    x, dy = _draw(call, device)
    (weight,) = _vectors(len(x), call.dtype, device, 1)
    y, norm = weight_norm.forward(x, weight, call.device)
    dx, dw = weight_norm.backward(dy, x, norm, weight, "dx" in call.needs, "dw" in call.needs, call.device)
    return _present(y=y, norm=norm, dx=dx, dw=dw)


_OPERATORS = {
    "layer_norm": _rows(centred=True),
    "rms_norm": _rows(centred=False),
    "partial_rms_norm": _rows(centred=False, partial=True),
    "layer_norm_add": _rows(centred=True, add=True),
    "rms_norm_add": _rows(centred=False, add=True),
    "batch_norm": _batch(evaluating=False),
    "batch_norm_eval": _batch(evaluating=True),
    "batch_renorm": _batch_renorm,
    "noisy_batch_norm": _noisy_batch,
    "group_norm_of_5": _grouped(5),
    "group_norm_of_2": _grouped(2),
    "instance_norm": _grouped(1),
    "sync_batch_norm": _sync_batch,
    "lp_norm_1": _lp(1.0),
    "lp_norm_2": _lp(2.0),
    "lp_norm_inf": _lp(inf),
    "lp_norm_eval": _lp(1.0, evaluating=True),
    "weight_norm": _weight,
    "batch_norm_relu": _batch(evaluating=False, relu=True, pre_relu=True),
    "batch_norm_relu_eval": _batch(evaluating=True, relu=True, pre_relu=True),
}

# float64 is where rows loop first: backward beyond 4096 columns, forward beyond 8192.
_ROWS = [
    ((1, 1),),
    ((5, 1),),
    ((33, 100), torch.bfloat16),  # the last tile has one row of its 32
    ((7, 1000), torch.float16, 3),
    ((5, 1603),),  # three chunks, the last one partial
    ((3, 8205), torch.float64),  # both loops, with a partial last step
    ((6, 37), torch.float32, 1, "rows apart"),
    ((6, 37), torch.float32, 1, "expanded"),
    ((6, 37), torch.float32, 2, "contiguous", BARE),
    *(((6, 37), torch.float32, 2, "contiguous", FULL, needs) for needs in [("dx",), ("dw",), ("db",)]),
    *(((2, 4100), torch.float64, 1, "contiguous", FULL, needs) for needs in [("dx",), ("db",)]),
]

# What a residual adds: four more tensors of rows, in one tile, in chunks and in both loops.
_ADDING_ROWS = [
    ((33, 100), torch.bfloat16),
    ((5, 1603),),
    ((3, 8205), torch.float64),
    *(((6, 37), torch.float32, 1, layout) for layout in ("rows apart", "expanded")),
]

_BATCHES = [
    ((2, 1, 1, 1),),  # one channel of two elements
    ((5, 7),),
    ((33, 130), torch.bfloat16),  # the last channel group has two of its 32
    ((3, 5, 11), torch.float16, 2),
    ((4, 3, 7, 7), torch.float32, 5),
    ((2, 65, 7, 7), torch.float32, 3),
    ((2, 3, 700), torch.float64, 2),  # the last tile of a run is partial
    ((4, 3, 7, 7), torch.float32, 2, "contiguous", BARE),
    *(((4, 3, 7, 7), torch.float32, 2, "contiguous", FULL, needs) for needs in [("dx",), ("dw", "db")]),
]

# What ReLUs and a residual add: their tensors in a ragged tile, with signs; and without a residual no signs.
_RELU_BATCHES = [
    ((2, 65, 7, 7), torch.float32, 3),
    ((33, 130), torch.bfloat16),
    ((2, 1, 1, 1),),  # tiles that are smaller than a byte of signs
    ((4, 3, 7, 7), torch.float32, 2, "contiguous", BARE),
    ((4, 3, 7, 7), torch.float32, 2, "contiguous", FULL, ("dw", "db")),
]

# One launch: of rows that groups do not fill, of several groups, of channels. Streaming: a channel in several splits.
_GROUPS = [
    ("group_norm_of_5", (3, 10, 7), torch.float16),
    ("group_norm_of_2", (2, 6, 5, 5), torch.bfloat16),
    ("group_norm_of_2", (2, 6, 5, 5), torch.bfloat16, 1, "channels-last"),
    ("group_norm_of_2", (3, 6), torch.float64),
    ("instance_norm", (3, 5, 11)),
    ("instance_norm", (2, 65, 7, 7), torch.float32, 1, "channels-last"),
    ("instance_norm", (2, 5, 11), torch.float32, 1, "contiguous", BARE),
    *(("instance_norm", (3, 5, 11), torch.float32, 1, "contiguous", FULL, needs) for needs in [("dx",), ("db",)]),
    ("group_norm_of_5", (2, 10, 700), torch.float32, 9, "channels-last"),
    ("group_norm_of_2", (1, 6, 5000), torch.float32, 3),
    ("group_norm_of_2", (1, 6, 5000), torch.float32, 3, "contiguous", BARE, ("dx",)),
]

_ROW_CALLS = [Call(operator, *row) for operator, row in product(("layer_norm", "rms_norm"), _ROWS)]
_BATCH_CALLS = [Call(operator, *row) for operator, row in product(("batch_norm", "batch_norm_eval"), _BATCHES)]

# With a cache to count on a channel group is one program's, in one launch.
CACHE = 1 << 30
_ALONE = [
    Call("batch_norm", (3, 5, 11), torch.float16),
    Call("batch_norm", (2, 65, 7, 7)),
    Call("batch_norm", (4, 3, 7, 7), affine=BARE),
]

CALLS = [
    *_ROW_CALLS,
    *(Call("layer_norm_add", *row) for row in _ADDING_ROWS),
    Call("rms_norm_add", (3, 8205), torch.float64),
    *(
        Call("partial_rms_norm", *row)
        for row in [((33, 100), torch.bfloat16), ((5, 1603),), ((3, 8205), torch.float64)]
    ),
    *_BATCH_CALLS,
    *(replace(call, layout="channels-last") for call in _BATCH_CALLS if len(call.shape) > 2),
    *(
        replace(call, layout=layout, cache=CACHE, on_chip=on_chip)
        for call, layout, on_chip in product(_ALONE, ("contiguous", "channels-last"), (False, True))
    ),
    Call("batch_norm_relu", (2, 65, 6, 6), cache=CACHE, on_chip=True),
    *(Call(op, *row) for op, row in product(("batch_norm_relu", "batch_norm_relu_eval"), _RELU_BATCHES)),
    Call("batch_norm_relu", (2, 65, 7, 7), layout="channels-last"),
    Call("batch_renorm", (3, 5, 11), torch.bfloat16, 2),
    Call("batch_renorm", (2, 65, 7, 7), torch.float32, 3, "channels-last"),
    Call("batch_renorm", (5, 7), torch.float64, affine=BARE),
    Call("noisy_batch_norm", (3, 5, 11), torch.bfloat16, 2),
    Call("noisy_batch_norm", (2, 65, 7, 7), torch.float32, 1, "channels-last"),
    Call("noisy_batch_norm", (5, 7), torch.float64, affine=BARE),
    *(Call(*group) for group in _GROUPS),
    Call("sync_batch_norm", (3, 5, 11), torch.bfloat16, 2),
    Call("sync_batch_norm", (3, 65, 7, 7), torch.float64, layout="channels-last"),
    Call("sync_batch_norm", (5, 7), affine=BARE),
    Call("lp_norm_1", (3, 5, 11), torch.float16, 2),
    Call("lp_norm_1", (4, 3, 7, 7), layout="channels-last", needs=("dw", "db")),
    Call("lp_norm_2", (33, 130), torch.bfloat16),
    Call("lp_norm_inf", (2, 65, 7, 7), multiprocessors=3),
    Call("lp_norm_inf", (2, 3, 700), torch.float64, 2, "channels-last"),
    Call("lp_norm_inf", (4, 3, 7, 7), multiprocessors=2, affine=BARE),
    Call("lp_norm_eval", (3, 5, 11)),
    Call("weight_norm", (33, 100), torch.bfloat16),
    Call("weight_norm", (5, 1603)),
    Call("weight_norm", (3, 8205), torch.float64),
    *(Call("weight_norm", (6, 37), layout=layout) for layout in ("rows apart", "expanded")),
    *(Call("weight_norm", (6, 37), needs=needs) for needs in [("dx",), ("dw",)]),
    Call("weight_norm", (2, 4100), torch.float64, needs=("dw",)),
    # What many programs leave, more than the merge takes at once: 66 partial rows, and 66 splits of a channel.
    Call("layer_norm", (66, 520), torch.float64, 17),
    Call("batch_norm", (66, 2, 1), torch.float32, 17, needs=()),
    # Three splits of a long row's weight gradient, the last with one row.
    Call("layer_norm", (17, 4100), torch.float64, 9, needs=("dw", "db")),
]

# A few in which every kernel has lanes to mask, along rows and along columns.
RAGGED = [
    Call("layer_norm", (33, 100)),
    Call("layer_norm", (3, 8205), torch.float64),
    Call("batch_norm", (3, 5, 11), multiprocessors=2),
    Call("batch_norm", (3, 5, 11), cache=CACHE),
    Call("batch_norm", (2, 5, 11), cache=CACHE, on_chip=True),
    Call("batch_renorm", (3, 5, 11), multiprocessors=2),
    Call("noisy_batch_norm", (3, 5, 11), multiprocessors=2),
    Call("instance_norm", (3, 5, 11)),
    Call("group_norm_of_2", (1, 6, 5000), multiprocessors=3),
    Call("sync_batch_norm", (3, 5, 11), multiprocessors=2),
    Call("lp_norm_inf", (3, 5, 11), multiprocessors=2),
    Call("weight_norm", (33, 100)),
    Call("weight_norm", (3, 8205), torch.float64),
]
