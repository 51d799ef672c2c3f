"""What the launches of a plan move: bytes by kernel and by tensor, declared from plan and shape alone.

A byte counts each time that an unmasked lane asks for it: a weight that every program loads counts once a program,
although a cache serves it. `distinct` counts each address once a launch. Both are exactly what the interpreter counts
when it runs the kernels (`python -m bench.audit`). A barrier's counters are left out: how often a program looks at one
is a matter of time. Pure Python; imports neither torch nor triton.

`sizes` has the bytes of an element of each tensor of the call, by the call's names (x, weight, running_mean, dw, ...);
a tensor that is not in it is None there, or not wanted. What comes back names tensors as each kernel does, less `_ptr`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from normlib.kernels.plan import BatchNormPlan, MergePlan, OncePlan, RowBackwardPlan, RowPlan, cdiv

Sizes = Mapping[str, int]
ACTIVATIONS = ("x", "y", "dy", "dx", "residual", "z", "dz", "signs")


def _statistics(sizes: Sizes) -> int:
    """Bytes of a statistic and of a partial result: float32, or float64 for float64."""
    return max(sizes["x"], 4)


@dataclass(frozen=True)
class Access:
    """What one launch does to one tensor, in bytes; in the tables below in elements."""

    loads: int
    stores: int
    distinct: int

    @property
    def once(self) -> int:
        """With every address loaded once and stored once."""
        return self.distinct * (bool(self.loads) + bool(self.stores))

    def __mul__(self, itemsize: int) -> Access:
        return Access(self.loads * itemsize, self.stores * itemsize, self.distinct * itemsize)


def _read(elements: int, times: int = 1) -> Access:
    return Access(elements * times, 0, elements)


def _written(elements: int) -> Access:
    return Access(0, elements, elements)


def _updated(elements: int) -> Access:
    return Access(elements, elements, elements)


@dataclass(frozen=True)
class Sweep:
    """One way through all tiles of a program, with the activations that it loads and stores at each."""

    loads: tuple[str, ...]
    stores: tuple[str, ...] = ()
    backwards: bool = False  # the last tile first; where it is a program's first sweep, the last split first too
    evicts: bool = False  # whether what it moves is the first to leave the cache


@dataclass(frozen=True)
class Traffic:
    """One launch: its grid, what it moves by tensor and, in batch norm, the sweeps of each of its programs."""

    kernel: str
    grid: tuple[int, ...]
    accesses: Mapping[str, Access]
    partials: tuple[str, ...] = ()  # tensors that live within the pass
    sweeps: tuple[Sweep, ...] = ()
    ahead: int = 0  # channel groups that a program's sweep runs ahead of its next one
    waits: bool = False  # whether programs wait for each other, so that all must be resident
    again: int = 0  # bytes of activations that a row norm's program loads a second time
    span: int = 0  # bytes of activations that it touches from the one time to the other

    @property
    def activation_bytes(self) -> int:
        """Loaded and stored of activations, each time that they are."""
        return sum(a.loads + a.stores for name, a in self.accesses.items() if name in ACTIVATIONS)

    @property
    def partial_bytes(self) -> int:
        """Of partial results, once a launch and way: caches serve the repetitions."""
        return sum(a.once for name, a in self.accesses.items() if name in self.partials)

    @property
    def vector_bytes(self) -> int:
        """Of parameters and statistics, likewise."""
        return sum(a.once for name, a in self.accesses.items() if name not in (*ACTIVATIONS, *self.partials))


def _traffic(
    kernel: str,
    grid: tuple[int, ...],
    sizes: Sizes,
    table: Mapping[str, Access],
    **more: Any,
) -> Traffic:
    """The launch with its table in bytes, less the tensors that are not there."""
    present = {name: access * sizes[name] for name, access in table.items() if name in sizes}
    return Traffic(kernel, grid, present, **more)


def _sum_partials(merge: MergePlan, programs: int, columns: int, sizes: Sizes, itemsize: int) -> Traffic:
    """Second stage of both backward passes: partials of dw, db or both, in `itemsize`, to one value a column."""
    outputs = [sizes[name] for name in ("dw", "db") if name in sizes]
    return _traffic(
        "_sum_partials_kernel",
        (cdiv(columns, merge.block_n), len(outputs)),
        {"partials": itemsize, **dict(zip(("first", "second"), outputs, strict=False))},
        {
            "first": _written(columns),
            "second": _written(columns),
            "partials": _read(len(outputs) * programs * columns),
        },
        partials=("partials",),
    )


def row_forward(plan: RowPlan, m: int, n: int, sizes: Sizes) -> tuple[Traffic, ...]:
    """Layer or RMS norm of M rows of N columns: of x, residual, z, y, weight, bias, mean (two floats) and rstd."""
    programs = cdiv(m, plan.block_m)
    # A loop's second sweep loads what is normalized: x, or the z that its first one stored.
    again = not plan.chunks
    table = {
        "y": _written(m * n),
        "mean": _written(2 * m),
        "rstd": _written(m),
        "x": _read(m * n, times=2 if again and "z" not in sizes else 1),
        "residual": _read(m * n),
        "z": _updated(m * n) if again else _written(m * n),
        "weight": _read(n, times=programs),
        "bias": _read(n, times=programs),
    }
    if plan.chunks:
        return (_traffic("_row_norm_forward_kernel", (programs,), sizes, table),)
    row = n * sizes["x"]
    span = row * sum(name in sizes for name in ("x", "y", "residual", "z"))
    return (_traffic("_row_norm_forward_loop_kernel", (programs,), sizes, table, again=m * row, span=span),)


def row_backward(plan: RowBackwardPlan, merge: MergePlan, m: int, n: int, sizes: Sizes) -> tuple[Traffic, ...]:
    """Of dx, dw, db (those that are wanted), dy, x, mean, rstd, weight and, where z had other uses, dz."""
    stats, p = _statistics(sizes), plan.programs
    wanted = sum(name in sizes for name in ("dw", "db"))
    own = {**sizes, "partials": stats}
    partial_rows = {"partials": _written(wanted * p * n)} if wanted else {}
    if plan.rows.chunks:
        table = {
            "dx": _written(m * n),
            **partial_rows,
            "dy": _read(m * n),
            "x": _read(m * n),
            "mean": _read(2 * m),
            "rstd": _read(m),
            "weight": _read(n, times=cdiv(m, plan.rows.block_m)),
            **({"dz": _read(m * n)} if "dx" in sizes else {}),
        }
        first = [_traffic("_row_norm_backward_kernel", (p,), own, table, partials=("partials",))]
    elif plan.slices:
        k, columns = plan.slices, plan.rows.block_n
        sums = k * m * (2 if "mean" in sizes else 1)
        table = {
            "dx": _written(m * n),
            **partial_rows,
            "sums": Access(sums * k, sums, sums),
            "dy": _read(m * n, times=2),
            "x": _read(m * n, times=2),
            "mean": _read(2 * m, times=2 * k),
            "rstd": _read(m, times=2 * k),
            "weight": _read(n, times=p),
            "dz": _read(m * n),
        }
        first = [
            _traffic(
                "_row_norm_backward_sliced_kernel",
                (k, p),
                {**own, "sums": stats},
                table,
                partials=("partials", "sums"),
                waits=True,
                again=2 * m * n * sizes["x"],
                # Two rounds of rows: the next one's first sweep comes before this one's second.
                span=2 * plan.block_rows * columns * sizes["x"] * (4 if "dz" in sizes else 3),
            )
        ]
    else:
        first = []
        if "dx" in sizes:
            table = {
                "dx": _written(m * n),
                "dy": _read(m * n, times=2),
                "x": _read(m * n, times=2),
                "mean": _read(2 * m),
                "rstd": _read(m),
                "weight": _read(n, times=2 * m),
                "dz": _read(m * n),
            }
            row = n * sizes["x"]
            more = {"again": 2 * m * row, "span": row * (4 if "dz" in sizes else 3)}
            first.append(_traffic("_row_norm_input_gradient_loop_kernel", (m,), sizes, table, **more))
        if wanted:
            blocks = cdiv(n, plan.block_columns)
            table = {
                **partial_rows,
                "dy": _read(m * n),
                "x": _read(m * n),
                "mean": _read(2 * m, times=blocks),
                "rstd": _read(m, times=blocks),
            }
            kernel = "_row_norm_weight_gradient_kernel"
            first.append(_traffic(kernel, (blocks, p), own, table, partials=("partials",)))
    return (*first, *([_sum_partials(merge, p, n, sizes, stats)] if wanted else []))


def _sign_bytes(plan: BatchNormPlan) -> int:
    """A bit for every lane of every tile."""
    return plan.tiles * plan.groups * max(plan.block_c * plan.block_s // 8, 1)


def batch_norm_forward(plan: BatchNormPlan, merge: MergePlan, sizes: Sizes) -> tuple[Traffic, ...]:
    """Training forward: of x, y, mean (two floats a channel), rstd, running_mean, running_var, weight and bias.

    Of x behind a residual also that and the signs of the sum, a byte for eight.
    """
    c, splits, all_x = plan.channels, plan.splits, plan.channels * plan.count
    grid = (plan.groups, splits)
    partials = {"partials": _statistics(sizes)}
    return (
        _traffic(
            "_batch_norm_stats_kernel",
            grid,
            {**sizes, **partials},
            {"partials": _written(3 * splits * c), "x": _read(all_x)},
            partials=("partials",),
            sweeps=(Sweep(("x",)),),
        ),
        _traffic(
            "_batch_norm_merge_kernel",
            (cdiv(c, merge.block_n),),
            {**sizes, **partials},
            {
                "mean": _written(2 * c),
                "rstd": _written(c),
                "running_mean": _updated(c),
                "running_var": _updated(c),
                "partials": _read(3 * splits * c),
            },
            partials=("partials",),
        ),
        _normalize(plan, sizes, evaluating=False),
    )


def batch_norm_forward_once(plan: BatchNormPlan, once: OncePlan, sizes: Sizes) -> tuple[Traffic, ...]:
    """The same in one launch."""
    c, all_x = plan.channels, plan.channels * plan.count
    table = {
        "y": _written(all_x),
        "mean": _written(2 * c),
        "rstd": _written(c),
        "running_mean": _updated(c),
        "running_var": _updated(c),
        "x": _read(all_x, times=2),
        "weight": _read(c, times=once.splits),
        "bias": _read(c, times=once.splits),
        "residual": _read(all_x),
        "signs": _written(_sign_bytes(plan)),
    }
    sweeps = (Sweep(("x",)), _last(plan, ("x", *_present(sizes, "residual")), ("y",)))
    return (_once("_batch_norm_forward_kernel", plan, once, sizes, table, 3, sweeps),)


def batch_norm_backward_once(
    plan: BatchNormPlan, once: OncePlan, sizes: Sizes, relu: bool = False
) -> tuple[Traffic, ...]:
    """Training backward in one launch; dx is wanted. `relu`: one was behind the norm."""
    c, all_x, stats = plan.channels, plan.channels * plan.count, _statistics(sizes)
    table = {
        "dx": _written(all_x),
        "dw": _written(c),
        "db": _written(c),
        "dy": _read(all_x, times=2),
        "x": _read(all_x, times=2),
        "mean": _read(2 * c, times=2 * once.splits),
        "rstd": _read(c, times=2 * once.splits),
        "weight": _read(c, times=(2 if relu else 1) * once.splits),
        "dz": _written(all_x),
        "signs": _read(_sign_bytes(plan), times=2),
        **({"bias": _read(c, times=2 * once.splits)} if relu and "signs" not in sizes else {}),
    }
    summed = {**sizes, "dw": stats, "db": stats}
    sweeps = (Sweep(("dy", "x")), _last(plan, ("dy", "x"), ("dx", *_present(sizes, "dz"))))
    return (_once("_batch_norm_backward_kernel", plan, once, summed, table, 2, sweeps),)


def _once(
    kernel: str,
    plan: BatchNormPlan,
    once: OncePlan,
    sizes: Sizes,
    table: Mapping[str, Access],
    planes: int,
    sweeps: tuple[Sweep, ...],
) -> Traffic:
    """A pass that is one launch: where a channel has several splits, each stores its partials and loads everyone's."""
    elements = planes * once.splits * plan.channels
    partials = {"partials": Access(elements * once.splits, elements, elements)} if once.splits > 1 else {}
    return _traffic(
        kernel,
        (once.windows, once.splits),
        {**sizes, "partials": _statistics(sizes)},
        {**table, **partials},
        partials=("partials",),
        sweeps=sweeps,
        ahead=once.ahead,
        waits=once.splits > 1,
    )


def batch_norm_eval_forward(plan: BatchNormPlan, sizes: Sizes) -> tuple[Traffic, ...]:
    """Evaluation: of x, y, running_mean, running_var, weight and bias."""
    return (_normalize(plan, _evaluating(sizes), evaluating=True),)


def batch_norm_backward(
    plan: BatchNormPlan, merge: MergePlan, sizes: Sizes, evaluating: bool, relu: bool = False
) -> tuple[Traffic, ...]:
    """Of dx, dw, db (those that are wanted), dy, x, weight, and mean and rstd or running_mean and running_var.

    `relu`: one was behind the norm; then also of the bias or, behind a residual, of its gradient dz and the signs.
    """
    if evaluating:
        sizes = _evaluating(sizes)
    splits, all_x = plan.splits, plan.channels * plan.count
    # In training dx needs the sums, whoever else wants them.
    sums = {"dw", "db"} <= sizes.keys() or ("dx" in sizes and not evaluating)
    stats = _statistics(sizes)
    partials = {"partials": stats} if sums else {}
    summed = {**sizes, "dw": stats, "db": stats}
    grid, channel, finds_dx = (plan.groups, splits), _channel_vectors(plan, evaluating), evaluating and "dx" in sizes
    if relu and "signs" not in sizes:
        channel["bias"] = _read(plan.channels, times=splits)
    channel["signs"] = _read(_sign_bytes(plan))
    stored = {"dx": _written(all_x), "dz": _written(all_x)}
    asks_x = sums or (relu and "signs" not in sizes)
    # The residual's gradient goes with dx, or alone where no dx is wanted.
    last = finds_dx or "dx" not in sizes
    launches = []
    if sums or finds_dx or "dz" in sizes:
        launches.append(
            _traffic(
                "_batch_norm_reduce_kernel",
                grid,
                {**sizes, **partials},
                {
                    "partials": _written(2 * splits * plan.channels),
                    **(stored if last else {}),
                    "dy": _read(all_x),
                    **({"x": _read(all_x)} if asks_x else {}),
                    **channel,
                },
                partials=("partials",),
                sweeps=(Sweep(("dy", "x") if asks_x else ("dy",), _present(sizes, "dx", "dz") if last else ()),),
            )
        )
    if sums:
        launches.append(_sum_partials(merge, splits, plan.channels, summed, stats))
    if "dx" in sizes and not evaluating:
        each = _read(plan.channels, times=splits)
        table = {**stored, "dy": _read(all_x), "x": _read(all_x), **channel, "dw": each, "db": each}
        sweep = _last(plan, ("dy", "x"), _present(sizes, "dx", "dz"))
        launches.append(_traffic("_batch_norm_input_gradient_kernel", grid, summed, table, sweeps=(sweep,)))
    return tuple(launches)


def _last(plan: BatchNormPlan, loads: tuple[str, ...], stores: tuple[str, ...], only: bool = False) -> Sweep:
    """A pass's last sweep, or its only one."""
    return Sweep(loads, stores, backwards=True, evicts=bool(plan.evict) and not only)


def _present(sizes: Sizes, *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if name in sizes)


def _evaluating(sizes: Sizes) -> Sizes:
    """In evaluation the kernels' mean and rstd are the running mean and variance."""
    return {**sizes, "mean": sizes["running_mean"], "rstd": sizes["running_var"]}


def _channel_vectors(plan: BatchNormPlan, evaluating: bool) -> dict[str, Access]:
    """What every split loads of its channels before it sweeps."""
    c, splits = plan.channels, plan.splits
    mean = _read(c if evaluating else 2 * c, times=splits)
    return {"mean": mean, "rstd": _read(c, times=splits), "weight": _read(c, times=splits)}


def _normalize(plan: BatchNormPlan, sizes: Sizes, evaluating: bool) -> Traffic:
    all_x = plan.channels * plan.count
    return _traffic(
        "_batch_norm_normalize_kernel",
        (plan.groups, plan.splits),
        sizes,
        {
            "y": _written(all_x),
            "x": _read(all_x),
            **_channel_vectors(plan, evaluating),
            "bias": _read(plan.channels, times=plan.splits),
            "residual": _read(all_x),
            "signs": _written(_sign_bytes(plan)),
        },
        sweeps=(_last(plan, ("x", *_present(sizes, "residual")), ("y",), only=evaluating),),
    )
