"""The calls that are counted: small ones, of every kind of plan, ragged, and with everything optional left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product

from bench.audit.calls import Launch
from bench.audit.choices import audited
from normlib.kernels.batch_norm.plan import batch_norm_plans
from normlib.kernels.plan import Device, Tuning

Calls = Iterator[tuple[Launch, Device]]

# Enough programs that a channel is split and a grid is persistent, few enough to be quick: 2 ms each.
DEVICE = Device(multiprocessors=1)
# A plan knows a dtype by its size, so float16 goes as bfloat16 does.
DTYPES = ("fp32", "bf16", "fp64")
# Both loops, the last step partial.
LOOP = {"bf16": (1, 16390), "fp64": (2, 8205)}
# One chunk and a tile of rows that is not full; three chunks, the last one partial.
ROW_SHAPES = ((100, 100), (5, 1603))
# Three runs of 11; more channels than a tile; (N, C), with two channels in the last group; runs longer than a tile.
BATCH_SHAPES = ((3, 5, 11), (2, 65, 7, 7), (33, 130), (2, 3, 700))
# As the second one, in runs of a multiple of 4: shorter ones take three launches behind a ReLU.
ALIGNED_SHAPE = (2, 65, 6, 6)
# Where what registers could hold is to be swept twice all the same.
OFF_CHIP = Tuning(
    {batch_norm_plans(last, itemsize): {"on_chip": 0} for last in (False, True) for itemsize in (2, 4, 8)}
)
# One tile a split; three channel groups of 68, in tiles of 32; and the cache, in units of x, in which two of the groups
# fit forward (3) or backward (6), so that the third runs behind them.
ONCE_SHAPES = {"nchw": (6, 5, 12), "nhwc": (6, 68, 111)}
ONCE_CACHE = {"fp32": (3, 6), "bf16": (6,), "fp64": (3,)}
SEQUENCES = (11, 3, 130)
LOOP_WITHOUT = (("dx",), ("dw",))
# A device on which the same rows go in slices: three of them, two groups of rows, two rounds.
SLICED = replace(DEVICE, multiprocessors=3, cooperative=True)
SLICED_ROWS = {"bf16": (4, 8202), "fp64": (3, 4102)}
# Groups: of rows that they do not fill; two a tile; several splits of a channel, with few groups; (N, C).
GROUPED = {
    "group_norm": (((3, 10, 11), 2), ((2, 8, 7, 7), 4), ((1, 6, 4100), 2), ((5, 12), 4)),
    "instance_norm": (((3, 5, 11), 5), ((1, 3, 9000), 3)),
}
# What may be left out.
WITHOUT: dict[str, tuple[tuple[str, ...], ...]] = {
    "layer_norm": (("weight", "bias"), ("bias",), ("dx",), ("dw",), ("db",), ("dw", "db"), ("dx", "dw", "db")),
    "rms_norm": (("weight",), ("dx",), ("dw",), ("dx", "dw")),
    "partial_rms_norm": (),
    "layer_norm_add": (("dz",), ("dx",)),
    "rms_norm_add": (("dz",),),
    "weight_norm": (("dx",), ("dw",)),
    "batch_norm": (
        ("weight", "bias"),
        ("bias",),
        ("running_mean", "running_var"),
        ("dx",),
        ("dw", "db"),
        ("dx", "dw", "db"),
    ),
    "batch_norm_relu": (("weight", "bias"), ("dx",), ("dw", "db")),
    "batch_norm_add_relu": (("dz",), ("dx",), ("dw", "db"), ("dx", "dw", "db")),
    "batch_renorm": (("weight", "bias"), ("dx",), ("dw", "db")),
    "noisy_batch_norm": (("running_mean", "running_var"), ("dx",), ("dw", "db")),
    "group_norm": (("weight", "bias"), ("dx",), ("dw",), ("db",), ("dw", "db"), ("dx", "dw", "db")),
    "instance_norm": (("running_mean", "running_var"), ("dx",)),
    "sync_batch_norm": (("weight", "bias"), ("running_mean", "running_var"), ("dx",)),
    "lp_norm": (("weight", "bias"), ("running_mean", "running_norm"), ("dx",), ("dw", "db"), ("dx", "dw", "db")),
}


def small_calls(ops: Iterable[str]) -> Iterator[tuple[Launch, Device]]:
    """Those of these operators, each with the device that it is planned for."""
    for op in ops:
        of_layout = _fused if "nchw" in audited()[op].layouts else _rows
        yield from _OWN.get(op, of_layout)(op)


def _rows(op: str) -> Calls:
    """Every kind of plan in every dtype, ragged; and everything optional left out."""
    for dtype, shape in (*product(DTYPES, ROW_SHAPES), *LOOP.items()):
        yield Launch(op, shape, dtype, "rows"), DEVICE
    for names in WITHOUT[op]:
        yield Launch(op, ROW_SHAPES[0], "fp64", "rows", names), DEVICE
    for names in LOOP_WITHOUT:
        yield Launch(op, LOOP["fp64"], "fp64", "rows", names), DEVICE
    for dtype, shape in SLICED_ROWS.items():
        yield Launch(op, shape, dtype, "rows"), SLICED


# Registers that hold the first of these in one program each way, the second (all but its fp64) in several.
CHIP = replace(DEVICE, multiprocessors=9, l2=1 << 20, cooperative=True)
CHIP_SHAPES = ((2, 5, 11), (11, 68, 7, 7))


def _on_chip(op: str, dtypes: Iterable[str]) -> Calls:
    """Held in registers, alone and behind a barrier, in both layouts; and without what may be left out."""
    for shape, dtype, layout in product(CHIP_SHAPES, dtypes, ("nchw", "nhwc")):
        yield Launch(op, shape, dtype, layout), CHIP
    for names in WITHOUT[op]:
        yield Launch(op, CHIP_SHAPES[0], "fp64", "nchw", names), CHIP


def _batch_norm(op: str) -> Calls:
    """The same in both layouts."""
    roomy = replace(DEVICE, l2=1 << 30, tuning=OFF_CHIP)
    for dtype in DTYPES:
        for shape in BATCH_SHAPES:
            for layout in ("nchw", "nhwc") if len(shape) > 2 else ("nchw",):
                yield Launch(op, shape, dtype, layout), DEVICE
        for layout, shape in ONCE_SHAPES.items():
            call = Launch(op, shape, dtype, layout)
            for cache in ONCE_CACHE[dtype]:
                yield call, replace(roomy, l2=cache * call.activation_bytes, cooperative=True)
        yield Launch(op, BATCH_SHAPES[0], dtype, "nchw"), roomy
    for names, device in product(WITHOUT[op], (DEVICE, roomy)):
        yield Launch(op, BATCH_SHAPES[0], "fp64", "nchw", names), device
    yield from _on_chip(op, DTYPES)


def _grouped(op: str) -> Calls:
    """One launch and streaming, in both layouts; everything optional left out of each."""

    def call(shape: tuple[int, ...], groups: int, dtype: str, layout: str, without: tuple[str, ...] = ()) -> Launch:
        return Launch(op, shape, dtype, layout, without, (("groups", groups),) if op == "group_norm" else ())

    shapes = GROUPED[op]
    for (shape, groups), dtype, layout in product(shapes, ("fp32", "bf16"), ("nchw", "nhwc")):
        yield call(shape, groups, dtype, layout), replace(DEVICE, multiprocessors=2)
    for names, layout in product(WITHOUT[op], ("nchw", "nhwc")):
        shape, groups = shapes[0]
        yield call(shape, groups, "fp64", layout, names), DEVICE


def _fused(op: str) -> Calls:
    """Every kind of plan once more, and everything optional left out: what is fused adds to tiles, not to dtypes."""
    for layout, shape in ONCE_SHAPES.items():
        call = Launch(op, shape, "bf16", layout)
        yield call, DEVICE
        yield call, replace(DEVICE, l2=6 * call.activation_bytes, cooperative=True, tuning=OFF_CHIP)
    for names, l2 in product(((), *WITHOUT[op]), (0, 1 << 30)):
        yield Launch(op, ALIGNED_SHAPE, "fp64", "nchw", names), replace(DEVICE, l2=l2, tuning=OFF_CHIP)
    yield from _on_chip(op, ("bf16",))


def _lp_norm(op: str) -> Calls:
    """Every p in both layouts, ragged; and everything optional left out where there is most, with a peak."""
    for p, layout in product(audited()[op].choices["p"], ("nchw", "nhwc")):
        yield Launch(op, (2, 65, 7, 7), "bf16", layout, (), (("p", p),)), DEVICE
    for names in WITHOUT[op]:
        yield Launch(op, BATCH_SHAPES[0], "fp64", "nchw", names, (("p", "inf"),)), DEVICE


def _sequences(op: str) -> Calls:
    """One: the launches are batch norm's."""
    yield Launch(op, SEQUENCES, "bf16", "tnh"), DEVICE


def _synchronized(op: str) -> Calls:
    """Messages of as many ranks as the merge has lanes, and of fewer; in every dtype and both layouts, ragged."""

    def call(dtype: str, layout: str, ranks: int, without: tuple[str, ...] = ()) -> tuple[Launch, Device]:
        return Launch(op, (2, 65, 7, 7), dtype, layout, without, (("ranks", ranks),)), DEVICE

    for dtype, layout, ranks in (("fp32", "nchw", 2), ("bf16", "nhwc", 3), ("fp64", "nchw", 17)):
        yield call(dtype, layout, ranks)
    for names in WITHOUT[op]:
        yield call("fp64", "nchw", 3, names)


# Operators whose plans are not those of their layout's others.
_OWN: Mapping[str, Callable[[str], Calls]] = {
    "batch_norm": _batch_norm,
    **dict.fromkeys(GROUPED, _grouped),
    "lp_norm": _lp_norm,
    "sequence_batch_norm": _sequences,
    "sync_batch_norm": _synchronized,
}
