"""Addresses are 64-bit: beyond 2^31 elements without the memory, and in the compiler's own words.

Memory that nobody touches is not there, so tensors of 2^31 elements cost a test nothing; and of a launch over them only
the programs at the grid's corners run. The interpreter wraps 32-bit integers as a GPU does: a product of 32 bits would
read and write 4 GB below the tensor, which usually ends the process.
"""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from errors import assert_right
from every_kernel import KERNELS

from normlib import functional, reference
from normlib.kernels import batch_norm_streaming as streaming
from normlib.kernels import plan, row_norm, weight_norm
from normlib.kernels.batch_norm_launch import launch
from normlib.kernels.numerics import INTERPRETED, float_pair
from normlib.kernels.plan import Device

ROOT = Path(__file__).parents[2]
BEYOND = 2**31
DTYPE = torch.bfloat16
# So many programs that each has one tile.
WIDE = Device(2**20)

interpreted = pytest.mark.skipif(not INTERPRETED.value, reason="picks the programs that the interpreter runs")


# ------------------------------------------------------------------------------------------- what is read and written


@contextmanager
def corner_programs():
    """Of every launch, only the programs at the grid's corners."""
    from triton.runtime.interpreter import GridExecutor, interpreter_builder

    launch = GridExecutor.__call__
    set_dim, set_index = interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx

    def launch_corners(self, *args, **kwargs):
        grid = (*self.grid, 1, 1)[:3]
        corners = [sorted({0, length - 1}) for length in grid]
        self.grid = tuple(map(len, corners))
        interpreter_builder.set_grid_dim = lambda *_: set_dim(*grid)
        interpreter_builder.set_grid_idx = lambda *at: set_index(*(c[i] for c, i in zip(corners, at, strict=True)))
        try:
            return launch(self, *args, **kwargs)
        finally:
            interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx = set_dim, set_index

    GridExecutor.__call__ = launch_corners
    try:
        yield
    finally:
        GridExecutor.__call__ = launch


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("n", [24, 1600, 32776])  # many rows a program, chunks, and the loops
def test_rows_may_be_any_distance_apart(n, centred, device):
    # Row 2 of x, and of dy behind it, begins beyond 2^31 elements.
    stride = BEYOND // 2 + 16
    memory = torch.empty(2 * stride + 2 * n, dtype=DTYPE, device=device)
    x, dy = (memory.as_strided((3, n), (stride, 1), offset) for offset in (0, n))
    for t in (x, dy):
        t.copy_(torch.randn(3, n))
    weight, bias = torch.randn(2, n, device=device)
    y, mean, rstd = row_norm.forward(x, weight, bias, 1e-5, centred, n)
    dx, dw, db = row_norm.backward(dy, x, mean, rstd, weight, centred, n, torch.float32, torch.float32, True)
    formula = reference.layer_norm if centred else reference.rms_norm
    truth = formula(x, (n,), weight, bias, 1e-5, dy)
    for name, out in {"y": y, "dx": dx, "dw": dw, "db": db, "rstd": rstd}.items():
        assert_right(out, truth[name], name)


@pytest.mark.parametrize("n", [24, 20000])  # in registers, and the loops
def test_rows_of_weights_may_be_any_distance_apart(n, device):
    stride = BEYOND // 2 + 16
    memory = torch.empty(2 * stride + 2 * n, dtype=DTYPE, device=device)
    x, dy = (memory.as_strided((3, n), (stride, 1), offset) for offset in (0, n))
    for t in (x, dy):
        t.copy_(torch.randn(3, n))
    weight = torch.rand(3, device=device) + 0.5
    y, norm = weight_norm.forward(x, weight)
    dx, dw = weight_norm.backward(dy, x, norm, weight, True, True)
    truth = reference.weight_norm(x, weight, dy)
    for name, out in {"y": y, "dx": dx, "dw": dw}.items():
        assert_right(out, truth[name], name)


@interpreted
@pytest.mark.parametrize("n", [1600, 20000])
def test_weights_are_written_beyond_2_31_elements(n):
    row, row_dy = torch.randn(2, 1, n).to(DTYPE)
    rows = BEYOND // n + 3
    x, dy = row.expand(rows, n), row_dy.expand(rows, n)
    weight = torch.full((rows,), 1.5)
    with corner_programs():
        y, norm = weight_norm.forward(x, weight, WIDE)
        dx, _ = weight_norm.backward(dy, x, norm, weight, True, False, WIDE)
    truth = reference.weight_norm(row, weight[:1], row_dy)
    for name, out in {"y": y, "dx": dx}.items():
        assert out.numel() > BEYOND
        for i in (0, rows - 1):
            assert_right(out[i : i + 1], truth[name], f"{name}, row {i}")


@interpreted
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("n", [1600, 32776])
def test_results_are_written_beyond_2_31_elements(n, centred):
    row, row_dy = torch.randn(2, 1, n).to(DTYPE)
    rows = BEYOND // n + 3
    x, dy = row.expand(rows, n), row_dy.expand(rows, n)
    with corner_programs():
        y, mean, rstd = row_norm.forward(x, None, None, 1e-5, centred, n, WIDE)
        dx, *_ = row_norm.backward(dy, x, mean, rstd, None, centred, n, None, None, True, WIDE)
    formula = reference.layer_norm if centred else reference.rms_norm
    truth = formula(row, (n,), None, None, 1e-5, row_dy)
    for name, out in {"y": y, "dx": dx}.items():
        assert out.numel() > BEYOND
        for i in (0, rows - 1):
            assert_right(out[i : i + 1], truth[name], f"{name}, row {i}")


# (batch, channels, positions): 2^31 elements and more in 65535 tiles a channel group at most, one tile a program.
HUGE = {"contiguous": ((2, 514, 2**21), False), "channels-last": ((2**19 + 32, 4096), True)}


def corner_tiles(t, p):
    """The first tile of the first channels, and the last tile of the last."""
    if p.channels_last:
        return t[: p.block_s, : p.block_c], t[-p.block_s :, -p.block_c :]
    return t[:1, : p.block_c, : p.block_s], t[-1:, -p.block_c :, -p.block_s :]


@interpreted
@pytest.mark.parametrize("kernel", ["statistics", "evaluation", "sums", "input gradient"])
@pytest.mark.parametrize("layout", HUGE)
def test_batch_norm_reaches_beyond_2_31_elements(layout, kernel):
    shape, last = HUGE[layout]
    p = plan.batch_norm(shape, last, DTYPE.itemsize, WIDE)
    assert p.splits == p.tiles and p.channels % p.block_c == 0 == p.positions % p.block_s
    x, dy, out = (torch.empty(shape, dtype=DTYPE) for _ in range(3))
    for t in (*corner_tiles(x, p), *corner_tiles(dy, p)):
        t.copy_(torch.randn(t.shape) + 3)  # no mean and no sum comes out near zero, where a relative error says little
    c = shape[1]
    mean, var, weight = torch.randn(c), torch.rand(c) + 0.5, torch.randn(c)
    pair, rstd = torch.stack([mean, torch.zeros(c)]), (var + 1e-5).rsqrt()
    dw, db = torch.randn(2, c)
    partials = torch.zeros(3, p.splits, c)
    corners = [(slice(0, p.block_c), 0), (slice(c - p.block_c, c), p.splits - 1)]
    plain = {"RELU": False, "PRE_RELU": False}
    sweeps = {
        "statistics": lambda: launch(streaming._batch_norm_stats_kernel, p, partials, x, PRE_RELU=False),
        "evaluation": lambda: launch(
            streaming._batch_norm_normalize_kernel,
            *(p, out, None, x, None, mean, var, weight, None),
            **plain,
            scalars=(1e-5,),
            EVAL=True,
        ),
        "sums": lambda: launch(
            streaming._batch_norm_reduce_kernel,
            *(p, partials, None, None, dy, None, x, pair, rstd, weight, None),
            **plain,
            scalars=(1e-5,),
            EVAL=False,
        ),
        "input gradient": lambda: launch(
            streaming._batch_norm_input_gradient_kernel,
            *(p, out, None, dy, None, x, pair, rstd, weight, None, dw, db, None),
            **plain,
        ),
    }
    assert x.numel() > BEYOND
    with corner_programs():
        sweeps[kernel]()
    for x_tile, dy_tile, out_tile, (channels, split) in zip(
        *(corner_tiles(t, p) for t in (x, dy, out)), corners, strict=True
    ):
        given = mean[channels], var[channels], weight[channels]
        truth = reference.batch_norm_eval(x_tile, *given, None, 1e-5, dy_tile)
        found = partials[:, split, channels]
        if kernel == "statistics":
            assert_right(found[0] + found[1], reference.batch_norm(x_tile)["mean"], "mean")
        elif kernel == "evaluation":
            assert_right(out_tile, truth["y"], "y")
        elif kernel == "sums":
            assert_right(found[0], truth["dw"], "dw")
            assert_right(found[1], truth["db"], "db")
        else:
            d = (x_tile.double().movedim(1, -1) - mean[channels].double()) * rstd[channels].double()
            rest = (dw[channels].double() * d + db[channels].double()) / p.count
            wdy = (dy_tile.double().movedim(1, -1) - rest) * (weight * rstd.double())[channels]
            assert_right(out_tile, wdy.movedim(-1, 1), "dx")


def test_a_channel_may_have_more_than_2_31_elements(device):
    # Two splits of 2^32 elements each: means 1 and 3, variances 0.5.
    partials = torch.tensor([[[1.0], [3.0]], [[0.0], [0.0]], [[2.0**31], [2.0**31]]], device=device)
    mean, rstd = torch.empty(2, 1, device=device), torch.empty(1, device=device)
    channels, positions, tiles, splits = 1, 2**13, 2**20, 2
    scalars = (channels, positions, tiles, splits, *float_pair(1e-5), *float_pair(0.1), positions)
    streaming._batch_norm_merge_kernel[(1,)](mean, rstd, None, None, partials, *scalars, BLOCK_P=2, BLOCK_N=1)
    assert mean.flatten().tolist() == [2.0, 0.0]
    assert_right(rstd, torch.tensor([0.5 + 1 + 1e-5], dtype=torch.float64, device=device).rsqrt(), "rstd")


@pytest.mark.parametrize("channels", [2**k for k in range(20, 31)])
def test_an_offset_inside_a_batch_norm_tile_fits_32_bits(channels):
    # The kernels keep it in 32 bits, beside the tile's own in 64.
    for batch, itemsize in product((1, 8, 64, 1024), (2, 4, 8)):
        p = plan.batch_norm((batch, channels), True, itemsize, Device(132))
        assert (p.block_s - 1) * channels + p.block_c <= BEYOND, f"{batch} rows, {itemsize} bytes an element"


@pytest.mark.parametrize("positions", [49, 2**13 - 1, 2**14 + 1, 6 * 2**12 - 1, 2**20 - 1, 2**24 + 1, 2**30, 2**31 - 1])
def test_an_offset_inside_a_contiguous_batch_norm_tile_fits_32_bits(positions):
    for channels, itemsize in product((1, 3, 64, 4096, 2**20), (2, 4, 8)):
        p = plan.batch_norm((1, channels, positions), False, itemsize, Device(132))
        assert (p.block_c - 1) * positions + p.block_s <= BEYOND


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "batch_norm"])
def test_a_gpu_goes_over_more_than_2_31_elements(name):
    shape = HUGE["contiguous"][0] if name == "batch_norm" else (BEYOND // 4096 + 8, 4096)
    x, dy = (torch.empty(shape, dtype=DTYPE, device="cuda").normal_() for _ in range(2))
    x.requires_grad_()
    if name == "batch_norm":
        y = functional.batch_norm(x, None, None, training=True, eps=1e-5)
        formula = lambda part, gradient: reference.batch_norm(part, None, None, 1e-5, gradient)
        parts = [(slice(None), slice(c, c + 1)) for c in (0, shape[1] - 1)]
    else:
        y = getattr(functional, name)(x, shape[1:], eps=1e-5)
        formula = lambda part, gradient: getattr(reference, name)(part, shape[1:], None, None, 1e-5, gradient)
        parts = [slice(0, 8), slice(shape[0] - 8, shape[0])]
    (dx,) = torch.autograd.grad(y, x, dy)
    for part in parts:
        truth = formula(x.detach()[part], dy[part])
        assert_right(y.detach()[part], truth["y"], "y")
        assert_right(dx[part], truth["dx"], "dx")


# ---------------------------------------------------------------------------------------------- what is computed in 64

# Rows of lengths that no tile has, in registers and in a loop; batch norm in both layouts; and more rows than 2^31 - 1,
# for which Triton makes the argument M 64-bit.
LAUNCHES = {
    "as usual": [
        ("batch_norm", (4, 65, 7, 7), "nchw"),
        ("batch_norm", (4, 65, 7, 7), "nhwc"),
        ("batch_norm", (32, 128, 28, 28), "nchw"),
        ("batch_norm", (32, 128, 28, 28), "nhwc"),
        ("lp_norm", (4, 65, 7, 7), "nchw", ("p", "1")),
        ("lp_norm", (4, 65, 7, 7), "nhwc", ("p", "inf")),
        *((op, (4, 65, 7, 7), "nchw") for op in ("batch_renorm", "noisy_batch_norm")),
        *(("group_norm", (4, 65, 7, 7), layout, ("groups", 5)) for layout in ("nchw", "nhwc")),
        *(("group_norm", (1, 64, 112, 112), layout, ("groups", 4)) for layout in ("nchw", "nhwc")),
        *(("instance_norm", (4, 65, 7, 7), layout) for layout in ("nchw", "nhwc")),
        *(("sync_batch_norm", (4, 65, 7, 7), layout, ("ranks", 3)) for layout in ("nchw", "nhwc")),
        *((op, (4096, n), "rows") for op in ("layer_norm", "rms_norm", "weight_norm") for n in (1000, 100000)),
    ],
    "2^31 rows": [(op, (BEYOND + 4096, 1000), "rows") for op in ("layer_norm", "rms_norm")],
}


@triton.jit
def _stride_kernel(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + row, tl.load(x_ptr + row * stride))


@triton.jit
def _late_kernel(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + row, tl.load(x_ptr + (row * stride).to(tl.int64)))


@triton.jit
def _constant_stride_kernel(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    n = tl.arange(0, BLOCK)
    tl.store(y_ptr + row * N + n, tl.load(x_ptr + row.to(tl.int64) * N + n))


@triton.jit
def _plane_kernel(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    tl.store(y_ptr + n, tl.load(x_ptr + stride * tl.num_programs(0) + n))


@triton.jit
def _carried_kernel(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    n = tl.arange(0, BLOCK)
    offset = 0
    for _ in range(tl.program_id(0)):
        tl.store(y_ptr + n, tl.load(x_ptr + offset + n))
        offset += stride


@triton.jit
def _right_kernel(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, BLOCK)
    tl.store(y_ptr + row.to(tl.int64) * N + n, tl.load(x_ptr + row.to(tl.int64) * stride + n * stride))


PLANTED = {
    "_stride_kernel": "a row's number times the stride",
    "_late_kernel": "the same, made 64-bit when it is too late",
    "_constant_stride_kernel": "a row's number times a constant that is no tile's length",
    "_plane_kernel": "a size times a number of programs",
    "_carried_kernel": "a stride added up in a loop",
}


def print_compiled():
    """[launch, kernel, its TTIR] of every kernel, one JSON list; run in a process that does not interpret."""
    from triton.compiler import ASTSource

    from bench.audit import TARGETS, Launch, call, compiling

    target, device = TARGETS["sm_90"]
    texts = set()
    # With the plans of a device that has barriers and a cache to count on, and of one that has not.
    for name, launches in LAUNCHES.items():
        with compiling("sm_90") as found:
            for (op, shape, layout, *options), here in product(
                launches, (device, replace(device, l2=0, cooperative=False))
            ):
                call(Launch(op, shape, "bf16", layout, (), tuple(options)), here)
        texts |= {(name, kernel, compiled.asm["ttir"]) for kernel, compiled in found}
    signature = {"y_ptr": "*bf16", "x_ptr": "*bf16", "stride": "i32", "N": "constexpr", "BLOCK": "constexpr"}
    for name in (*PLANTED, "_right_kernel"):
        source = ASTSource(globals()[name], signature, {"N": 1000, "BLOCK": 64})
        texts.add(("planted", name, triton.compile(source, target=target).asm["ttir"]))
    print(json.dumps(sorted(texts)))


@pytest.fixture(scope="module")
def compiled():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    command = [sys.executable, __file__]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = defaultdict(list)
    for call, name, text in json.loads(done.stdout):
        found[call].append((name, Program(text)))
    return found


PRODUCTS = ("arith.muli", "arith.shli")
# A product that is divided is an index again, and no offset; a comparison is neither, and nor is what memory holds.
ENDS = ("arith.divsi", "arith.remsi", "arith.divui", "arith.remui", "arith.cmpi", "tt.load")


class Program:
    """A kernel's TTIR as definitions: value -> (operation, operands, the rest of the line).

    Of loops and branches it knows three more operations: "from" is a loop's variable, "carried" a value that a loop
    hands on to its next pass, "to" a result.
    """

    def __init__(self, text):
        # A wait at a barrier yields nothing, and computes no offset.
        text = re.sub(r"scf\.while : \(\) -> \(\) \{.*?\} do \{.*?\n *\}[^\n]*", "", text, flags=re.DOTALL)
        assert "scf.while" not in text, "not understood here"
        self.values = {}
        self.scopes = [{}]  # names, which sibling regions use again, by region: name -> key in values
        self._loop_results = []
        yields = [[]]  # of each open region, what the values it yields become
        for line in text.splitlines():
            line = re.sub(r" loc\(.*\)$", "", line.strip())
            if line.startswith("}"):
                self.scopes.pop()
                closed = yields.pop()
            carried = closed if line.startswith("} else") else self._define(line)
            if line.startswith("scf.yield %"):
                for value, keys in zip(self._operands(line.split(" : ")[0]), yields[-1], strict=True):
                    for key in keys:
                        self.values[key][1].append(value)
            if line.endswith("{"):
                self.scopes.append({})
                yields.append(carried)
            self._define_arguments(line)

    def _operands(self, text):
        return [next(s[name] for s in reversed(self.scopes) if name in s) for name in re.findall(r"%[\w#]+", text)]

    def _enter(self, name, operation, operands, kind):
        key = self.scopes[-1][name] = f"{name} ({len(self.values)})"
        self.values[key] = (operation, operands, kind)
        return key

    def _define_arguments(self, line):
        """Enters what a region begins with: a function's or a reduction's arguments, a loop's variable."""
        if line.startswith(("tt.func", "^")):
            for name, kind in re.findall(r"(%\w+): (!tt\.ptr|[if]\d+)", line):
                self._enter(name, "argument" if line.startswith("tt.func") else "element", [], kind)
        loop = re.search(r"scf\.for (%\w+) = (%[\w#]+) .*?(i\d+) \{$", line)
        if loop:
            self._enter(loop[1], "from", self._operands(loop[2]), loop[3])
            handed_on = re.findall(r"(%\w+) = (%[\w#]+)", line.partition("iter_args")[2])
            for (name, initial), becomes in zip(handed_on, self._loop_results, strict=True):
                _, operands, kind = self.values[becomes[0]]
                operands += self._operands(initial)
                becomes.append(self._enter(name, "carried", self._operands(initial), kind))

    def _define(self, line):
        """Enters a line's results; of a loop or branch returns, for each value that it yields, what that becomes."""
        self._loop_results = []
        match = re.match(r"(%\w+)(?::\d+)? = \"?([\w.]+)\"?(.*)", line)
        if match is None:
            return []
        name, operation, rest = match.groups()
        if operation in ("scf.for", "scf.if"):
            types = re.findall(r"[^\s,()]+", re.search(r"-> \((.*?)\)", rest)[1])
            names = [f"{name}#{i}" for i in range(len(types))] if len(types) > 1 else [name]
            self._loop_results = [[self._enter(n, "to", [], kind)] for n, kind in zip(names, types, strict=True)]
        else:
            self._enter(name, operation, self._operands(rest.split(" : ")[0].split("({")[0]), rest)
        return self._loop_results

    def bits(self, name):
        """The width of an integer value, by the type that its line ends with."""
        return int(re.search(r"i(\d+)>?$", self.values[name][2])[1])

    def constant(self, name):
        """The number that a value is, splat or not; None if it is not known."""
        operation, operands, rest = self.values[name]
        if operation == "arith.constant":
            number = re.match(r" (?:dense<)?(-?\d+)>?(?: |$)", rest)
            return int(number[1]) if number else None
        return self.constant(operands[0]) if operation in ("tt.splat", "arith.extsi", "tt.broadcast") else None

    def behind(self, name, ends=()):
        """The value and all that it is made of, as far as the operations that end the search."""
        found, waiting = {}, [name]
        while waiting:
            here = waiting.pop()
            if here not in found:
                found[here] = self.values[here]
                waiting += [] if found[here][0] in ends else found[here][1]
        return found

    def kinds(self, name):
        """What a number is made of: tile lanes, sizes (arguments), positions (programs and loop variables)."""
        kind = {"tt.make_range": "lane", "argument": "size", "from": "position"}
        kind |= {"tt.get_program_id": "position", "tt.get_num_programs": "position", "tt.load": "data"}
        return {kind[operation] for operation, *_ in self.behind(name).values() if operation in kind}

    def lengths(self):
        """Of the program's tiles."""
        ranges = [
            re.search(r"end = (\d+).*start = (\d+)", r) for o, _, r in self.values.values() if o == "tt.make_range"
        ]
        return {int(match[1]) - int(match[2]) for match in ranges}

    def is_index(self, product):
        """Whether a 32-bit product counts something that an argument counts, or stays inside a tile."""
        operation, (a, b), _ = self.values[product]
        if operation == "arith.shli":
            return False  # Triton writes none for an index
        if self.constant(a) is not None:
            a, b = b, a
        factor = self.constant(b)
        if factor is None:
            return {frozenset(self.kinds(a)), frozenset(self.kinds(b))} == {frozenset({"lane"}), frozenset({"size"})}
        if "position" in self.kinds(a):
            return factor in self.lengths()  # a tile's number times its length: the number of its first element
        operation, operands, _ = self.values[a]
        rounded_down = operation == "arith.divsi" and self.constant(operands[1]) == factor
        return self.kinds(a) <= {"lane"} or rounded_down

    def offsets(self):
        return [operands[1] for operation, operands, _ in self.values.values() if operation == "tt.addptr"]

    def narrow(self):
        """The 32-bit values that should be 64-bit: products and running sums that reach an address."""
        found = set()
        for offset in self.offsets():
            for name, (operation, _, _) in self.behind(offset, ENDS).items():
                product = operation in PRODUCTS and not self.is_index(name)
                if operation == "arith.trunci" or ((product or operation == "carried") and self.bits(name) == 32):
                    found.add(name)
        return found

    def wide_products(self):
        """The 64-bit products that reach an address."""
        behind = {k: v for offset in self.offsets() for k, v in self.behind(offset, ENDS).items()}
        return {name for name, (operation, *_) in behind.items() if operation in PRODUCTS and self.bits(name) == 64}

    def rounded_up(self):
        """The 32-bit sums of arguments, or of one and a constant, that are divided: of the largest, beyond 2^31."""
        found = set()
        for dividend in [operands[0] for operation, operands, _ in self.values.values() if operation == "arith.divsi"]:
            for name, (operation, operands, _) in self.behind(dividend, ENDS).items():
                added = operation == "arith.addi" and self.kinds(name) == {"size"} and self.bits(name) == 32
                if added and self.values[operands[0]][0] == "arith.divsi":
                    continue  # a quotient, and so a number of blocks: one more of them does not wrap
                if added and (self.constant(operands[1]) or 1) > 0:
                    found.add(name)
        return found

    def narrow_compared_with_wide(self):
        """The 32-bit products that are compared with a 64-bit argument, and so may be beyond what they can hold."""
        found = set()
        for operation, operands, rest in self.values.values():
            if operation == "arith.cmpi" and "i64" in rest:
                for name, (inner, *_) in {k: v for o in operands for k, v in self.behind(o, ENDS).items()}.items():
                    if inner in PRODUCTS and self.bits(name) == 32:
                        found.add(name)
        return found


def test_every_kernel_computes_its_offsets_in_64_bits(compiled):
    programs = compiled["as usual"]
    assert {name for name, _ in programs} == KERNELS
    assert {name: program.narrow() for name, program in programs if program.narrow()} == {}
    # It looked at something: each has an offset that needs 64 bits, and has them; but for one that has channels alone.
    without = {name for name, program in programs if not program.wide_products()}
    assert without == {"_batch_renorm_weight_gradient_kernel"}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_32_bit_offset_is_found(name, compiled):
    assert len(dict(compiled["planted"])[name].narrow()) == 1, PLANTED[name]


def test_a_right_kernel_is_no_false_alarm(compiled):
    program = dict(compiled["planted"])["_right_kernel"]
    assert program.narrow() == set() and len(program.wide_products()) == 2


def test_no_length_is_rounded_up_beyond_32_bits(compiled):
    found = {name: program.rounded_up() for name, program in compiled["as usual"]}
    assert {name: values for name, values in found.items() if values} == {}


def test_a_row_has_a_64_bit_number_where_there_are_more_than_32_bits_count(compiled):
    found = {name: program.narrow_compared_with_wide() for name, program in compiled["2^31 rows"]}
    assert {name: values for name, values in found.items() if values} == {}


if __name__ == "__main__":
    print_compiled()
