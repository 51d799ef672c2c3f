"""Providers that are unusual and honest: nothing may be said against any of them."""

from __future__ import annotations

import time

import torch
import triton
import triton.language as tl
from cheats import Cheat, own, timed

from bench.measure.providers import Runnable


@triton.jit
def _rows_kernel(x_ptr, w_ptr, b_ptr, y_ptr, eps, N, BLOCK: tl.constexpr):
    """A layer norm of one row a program, as somebody may write it."""
    columns = tl.arange(0, BLOCK)
    inside = columns < N
    row = tl.program_id(0) * N
    x = tl.load(x_ptr + row + columns, inside, 0.0)
    d = tl.where(inside, x - tl.sum(x) / N, 0.0)
    d = tl.where(inside, d - tl.sum(d) / N, 0.0)
    rstd = 1 / tl.sqrt(tl.sum(d * d) / N + eps)
    y = d * rstd * tl.load(w_ptr + columns, inside, 0.0) + tl.load(b_ptr + columns, inside, 0.0)
    tl.store(y_ptr + row + columns, y, inside)


def _triton(inputs, case, y=None):
    x = inputs["x"]
    y = torch.empty_like(x) if y is None else y
    rows, columns = case.shape
    options = {"BLOCK": triton.next_power_of_2(columns)}
    _rows_kernel[(rows,)](x, inputs["weight"], inputs["bias"], y, case.eps, columns, **options)
    return y


def own_kernel(inputs, case):
    return _triton(inputs, case)


def without_autograd(inputs, case):
    with torch.enable_grad():
        return torch.layer_norm(inputs["x"], case.shape[1:], inputs["weight"], inputs["bias"], case.eps)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        ctx.save_for_backward(x, weight)
        return torch.layer_norm(x, x.shape[1:], weight, bias, eps)

    @staticmethod
    def backward(ctx, dy):
        raise NotImplementedError


def autograd_function(inputs, case):
    return _Function.apply(inputs["x"].data.requires_grad_(), inputs["weight"], inputs["bias"], case.eps)


def own_buffer(built, case, inputs):
    """Writes every result into the same memory."""
    y = torch.empty_like(inputs["x"])

    def run():
        return {"y": _triton(inputs, case, y)}

    return Runnable(run, built.outputs)


def flat(built, case, inputs):
    return Runnable(lambda: {n: t.view(-1) for n, t in built.run().items()}, built.outputs)


def shared_storage(built, case, inputs):
    """y lies in the middle of a larger tensor."""

    def run():
        memory = torch.empty(3 * inputs["x"].numel(), device=inputs["x"].device)
        y = memory[inputs["x"].numel() : 2 * inputs["x"].numel()].view(case.shape)
        return {"y": _triton(inputs, case, y)}

    return Runnable(run, built.outputs)


def transposed_result(built, case, inputs):
    """y's rows are innermost in memory."""

    def run():
        y = torch.empty(case.shape[::-1], device=inputs["x"].device).t()
        x, w, b = (inputs[n].double() for n in ("x", "weight", "bias"))
        d = x - x.mean(1, keepdim=True)
        y.copy_(d / (d.square().mean(1, keepdim=True) + case.eps).sqrt() * w + b)
        return {"y": y}

    return Runnable(run, run)


def in_double(inputs, case):
    x = inputs["x"].double()
    d = x - x.mean(1, keepdim=True)
    y = d / (d.square().mean(1, keepdim=True) + case.eps).sqrt() * inputs["weight"].double() + inputs["bias"].double()
    return y.float()


@timed
def compiles_at_the_third_call(run, call, inputs):
    if call == 3:
        time.sleep(0.05)
    return run()


@timed
def slow_to_warm_up(run, call, inputs):
    if call < 12:
        time.sleep(0.003)
    return run()


def several_streams(built, case, inputs):
    """Half of the rows on a stream of their own, which is joined before the call returns."""
    side = torch.cuda.Stream()
    half = case.shape[0] // 2
    args = (case.shape[1:], inputs["weight"], inputs["bias"], case.eps)

    def run():
        x, main = inputs["x"], torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            low = torch.layer_norm(x[:half], *args)
        high = torch.layer_norm(x[half:], *args)
        main.wait_stream(side)
        return {"y": torch.cat([low, high])}

    return Runnable(run, built.outputs)


def graph_inside(built, case, inputs):
    """Captures a CUDA graph when it is built, and replays it."""
    y = torch.empty_like(inputs["x"])
    _triton(inputs, case, y)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _triton(inputs, case, y)

    def run():
        graph.replay()
        return {"y": y}

    return Runnable(run, built.outputs)


def extra_results(built, case, inputs):
    return Runnable(lambda: built.run() | {"mean": inputs["x"].mean(1)}, built.outputs)


def row_blocks(inputs, case):
    args = (case.shape[1:], inputs["weight"], inputs["bias"], case.eps)
    return torch.cat([torch.layer_norm(rows, *args) for rows in inputs["x"].split(20)])


def constant_kept(built, case, inputs):
    """Keeps what does not depend on the inputs: ones, to sum with."""
    ones = torch.ones(case.shape[1], 1, dtype=torch.float64, device=inputs["x"].device)

    def run():
        x = inputs["x"].double()
        d = x - x @ ones / case.shape[1]
        y = d / (d.square() @ ones / case.shape[1] + case.eps).sqrt() * inputs["weight"] + inputs["bias"]
        return {"y": y.float()}

    return Runnable(run, run)


def own_events(built, case, inputs):
    """Records events of its own, as profilers do."""

    def run():
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        found = built.run()
        end.record()
        return found

    return Runnable(run, built.outputs)


def large_workspace(built, case, inputs):
    def run():
        torch.empty(1 << 20, device=inputs["x"].device)
        return built.run()

    return Runnable(run, built.outputs)


def plain(built, case, inputs):
    return built


def two_kernels(built, case, inputs):
    """The second kernel reads what the first has written."""
    z = torch.empty_like(inputs["x"])
    one, zero = torch.ones_like(inputs["weight"]), torch.zeros_like(inputs["bias"])

    def run():
        _triton({**inputs, "weight": one, "bias": zero}, case, z)
        return {"y": torch.addcmul(inputs["bias"], z, inputs["weight"])}

    return Runnable(run, built.outputs)


def _named(name, spoil, backend="torch", mode="fwd"):
    return name, Cheat(spoil, name, backend), mode


HONEST = (
    _named("plain", plain),
    _named("plain_backward", plain, mode="bwd"),
    _named("plain_both", plain, mode="fwd_bwd"),
    _named("own_kernel", own(own_kernel), "triton"),
    _named("without_autograd", own(without_autograd)),
    _named("autograd_function", own(autograd_function)),
    _named("own_buffer", own_buffer, "triton"),
    _named("flat", flat),
    _named("shared_storage", shared_storage, "triton"),
    _named("transposed_result", transposed_result, "mine"),
    _named("in_double", own(in_double)),
    _named("compiles_at_the_third_call", compiles_at_the_third_call),
    _named("slow_to_warm_up", slow_to_warm_up),
    _named("several_streams", several_streams),
    _named("graph_inside", graph_inside, "triton"),
    _named("extra_results", extra_results),
    _named("row_blocks", own(row_blocks)),
    _named("constant_kept", constant_kept),
    _named("own_events", own_events),
    _named("large_workspace", large_workspace),
    _named("two_kernels", two_kernels, "triton"),
)
