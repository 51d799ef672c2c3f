"""Providers that cheat, each in one way that has been seen in public: PyTorch's layer norm, with something done to it.

`CHEATS` is the table of what must be said of each: the status, and a part of the reason.
"""

from __future__ import annotations

import gc
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name

import numpy as np
import torch
import triton
import triton.language as tl

from bench.measure import accuracy, persisting, sampling, telemetry, timing, truth
from bench.measure.providers import Provider, Runnable, providers
from bench.measure.timing import clock

TORCH = providers()["torch"]


class Cheat(Provider):
    """`spoil` gets the built cell, the case and the inputs, and returns the cell that is measured.

    `host` is called before each of its calls: on the fake GPU time passes only where it is told to.
    """

    host = staticmethod(lambda: None)

    def __init__(self, spoil, name="", backend="torch"):
        self.spoil, self.name, self._backend = spoil, name or spoil.__name__, backend

    def version(self):
        return "1"

    def backend(self, case, inputs):
        return self._backend

    def build(self, case, inputs):
        built = self.spoil(TORCH.build(case, inputs), case, inputs)
        return Runnable(lambda: (self.host(), built.run())[1], built.outputs)


@dataclass(frozen=True)
class Said:
    """A cheat, and what must be said of it: its status, and a part of the reason."""

    kind: str
    spoil: Callable
    status: str
    reason: str
    mode: str = "fwd"
    backend: str = "torch"
    tokens: int = 16
    host_s: float = 4e-3  # the fake host's time for a launch: if it is short, the device is behind


def timed(run):
    """Makes a cell of a function that gets the honest call, the number of this call and the inputs."""

    def spoil(built, case, inputs):
        calls = 0

        def called():
            nonlocal calls
            calls += 1
            return run(built.run, calls, inputs)

        return Runnable(called, built.outputs)

    spoil.__name__ = run.__name__
    return spoil


def own(function):
    """Makes a cell whose results are all this function's, of the inputs, in timed and in judged calls."""

    def spoil(built, case, inputs):
        f = lambda: {"y": function(inputs, case)}
        return Runnable(f, f)

    spoil.__name__ = function.__name__
    return spoil


def patched(name, *patches):
    """Makes a cell that replaces attributes, each (owner, name, value), when it is built."""

    def spoil(built, case, inputs):
        for owner, attribute, value in patches:
            setattr(resolve_name(owner) if isinstance(owner, str) else owner, attribute, value)
        return built

    spoil.__name__ = name
    return spoil


def normed(x, inputs, case):
    return torch.nn.functional.layer_norm(x, case.shape[1:], inputs["weight"], inputs["bias"], case.eps)


# ------------------------------------------------------------------------------------------------------------- timing


def side_stream(built, case, inputs):
    side = torch.cuda.Stream()

    def run():
        with torch.cuda.stream(side):
            return built.run()

    return Runnable(run, built.outputs)


def late_thread(built, case, inputs):
    """The results come from a thread that has not finished when the call has."""
    held = {n: t.detach().clone() for n, t in built.run().items()}

    def work(values):
        time.sleep(1e-4)
        for name, value in values.items():
            held[name].copy_(value)

    previous = [held]

    def run():
        thread = threading.Thread(target=work, args=(previous[0],))
        thread.start()
        thread.join()
        previous[0] = built.run()
        return {n: t * 1 for n, t in held.items()}

    return Runnable(run, built.outputs)


@timed
def records_the_start_anew(run, call, inputs):
    """Finds the clock's first event in the frames, and records it when the work is done."""
    found, frame = run(), sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "_timed":
        frame = frame.f_back
    if frame is not None and isinstance(start := frame.f_locals.get("start"), torch.cuda.Event):
        start.record()
    return found


@timed
def naps_in_warm_up(run, call, inputs):
    if call <= 3:
        time.sleep(0.02)
        naps_in_warm_up.kept = run()
    return naps_in_warm_up.kept


def no_time(*_, **__):
    return 0.001


def forged_timing(runs, device, **_):
    one = timing.Timing("cuda_event", 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 100, 0.0, "noise")
    return dict.fromkeys(runs, one)


# -------------------------------------------------------------------------------------------------------------- cache


def sets_cache_aside(built, case, inputs):
    def run():
        persisting.driver().cuCtxSetLimit(6, 1 << 17)
        return built.run()

    return Runnable(run, built.outputs)


def smaller_flush(built, case, inputs):
    spoilt = []

    def run():
        if not spoilt:
            for gpu in [o for o in gc.get_objects() if type(o) is clock.Gpu]:
                gpu._buffer = gpu._buffer[:64]
                spoilt.append(gpu)
        return built.run()

    return Runnable(run, built.outputs)


# ------------------------------------------------------------------------------------------------------------- replay


def keyed(name, key):
    """Makes a cell that keeps results by a key of its inputs."""

    def spoil(built, case, inputs):
        kept = {}

        def run():
            found = key(inputs)
            if found not in kept:
                kept[found] = {n: t * 1 for n, t in built.run().items()}
            return dict(kept[found])

        return Runnable(run, built.outputs)

    spoil.__name__ = name
    return spoil


def every(n):
    def spoil(built, case, inputs):
        calls, kept = 0, {}

        def run():
            nonlocal calls
            calls += 1
            if calls % n == 1 or not kept:
                kept.update(built.run())
            return dict(kept)

        return Runnable(run, built.outputs)

    spoil.__name__ = f"every_{n}th_call"
    return spoil


def stale_graph(built, case, inputs):
    """As a CUDA graph does whose inputs were copied when it was captured."""
    copied = {name: tensor.clone() for name, tensor in inputs.items()}
    run = TORCH.build(case, copied).run
    return Runnable(run, built.outputs)


@timed
def replays_with_noise(run, call, inputs):
    """Kept results that differ a little from call to call, so that none is like the last."""
    if call == 1:
        replays_with_noise.kept = run()
    return {n: t.detach() * (1 + 1e-5 * call) for n, t in replays_with_noise.kept.items()}


# -------------------------------------------------------------------------------------------------------------- drift


@timed
def wrong_after_five(run, call, inputs):
    found = run()
    return found if call <= 5 else {n: 1.001 * t for n, t in found.items()}


@timed
def wrong_after_fifty(run, call, inputs):
    found = run()
    return found if call <= 50 else {n: t + 0.01 for n, t in found.items()}


@timed
def half_precision_later(run, call, inputs):
    found = run()
    return found if call <= 10 else {n: t.half().float() for n, t in found.items()}


def overwrites(name, after):
    def spoil(built, case, inputs):
        calls = 0

        def run():
            nonlocal calls
            calls += 1
            found = built.run()
            if calls > after:
                inputs[name].detach().zero_()
            return found

        return Runnable(run, built.outputs)

    spoil.__name__ = f"overwrites_{name}_after_{after}"
    return spoil


# -------------------------------------------------------------------------------------------------------------- theft


def in_frames(inputs, case):
    frame = sys._getframe()
    while frame is not None:
        for value in frame.f_locals.values():
            for one in [value, *(getattr(value, "_reference", None) or {}).values()] if value is not None else []:
                if isinstance(one, torch.Tensor) and one.dtype == torch.float64 and one.shape == case.shape:
                    return one.float()
        frame = frame.f_back
    return torch.zeros_like(inputs["x"])


def in_gc(inputs, case):
    for one in gc.get_objects():
        y = one.get("y") if type(one) is dict else None  # other classes may have a get of their own
        if isinstance(y, torch.Tensor) and y.dtype == torch.float64 and y.shape == case.shape:
            return y.float()
    return torch.zeros_like(inputs["x"])


def in_freed_memory(inputs, case):
    return torch.empty_like(inputs["x"])


@timed
def overwrites_the_reference(run, call, inputs):
    if call <= 2:
        for one in gc.get_objects():
            y = one.get("y") if type(one) is dict else None
            if isinstance(y, torch.Tensor) and y.dtype == torch.float64:
                y.fill_(torch.nan)
    return {"y": torch.full_like(inputs["x"], torch.nan)}


def overwrites_the_judges_inputs(built, case, inputs):
    """So that all others seem wrong."""
    for one in gc.get_objects():
        if type(one) is truth.Truth and one._inputs is not None:
            one._inputs["weight"].mul_(2)
    return built


# ----------------------------------------------------------------------------------------------------------- numerics


def zeros(inputs, case):
    return torch.zeros_like(inputs["x"])


def constants(inputs, case):
    return inputs["bias"].expand(case.shape).clone()


def in_fp16(inputs, case):
    return normed(inputs["x"].half().float(), inputs, case)


def in_bf16(inputs, case):
    return normed(inputs["x"].bfloat16().float(), inputs, case)


def scaled(inputs, case):
    return normed(inputs["x"], inputs, case) * (1 + 2e-5)


def shifted(inputs, case):
    return normed(inputs["x"], inputs, case) + 1e-4


def mean_left_out(inputs, case):
    """As if its inputs had none."""
    x = inputs["x"]
    return x * (x.square().mean(1, keepdim=True) + case.eps).rsqrt() * inputs["weight"] + inputs["bias"]


def weight_left_out(inputs, case):
    return normed(inputs["x"], {**inputs, "weight": torch.ones_like(inputs["weight"])}, case)


def not_a_number(inputs, case):
    return torch.full_like(inputs["x"], torch.nan)


# ---------------------------------------------------------------------------------------------------------- structure


class Lazy(torch.Tensor):
    """A tensor that could compute itself when somebody looks."""


def lazy(inputs, case):
    return normed(inputs["x"], inputs, case).detach().as_subclass(Lazy)


def nothing(inputs, case):
    return None


def a_list(inputs, case):
    return normed(inputs["x"], inputs, case).tolist()


@triton.jit
def _absent_kernel(x_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x_ptr + offsets, tl.load(x_ptr + offsets))


@timed
def falls_back(run, call, inputs):
    try:
        raise RuntimeError("the kernel does not compile")
    except RuntimeError:
        return run()


@timed
def branch_never_taken(run, call, inputs):
    if inputs["x"].dim() > 7:
        _absent_kernel[(1,)](inputs["x"], BLOCK=4)
    return run()


def renamed(built, case, inputs):
    return built


def busy_kernel(built, case, inputs):
    """Launches a kernel that does nothing for it, and keeps its results by what its input begins with."""
    kept, workspace = {}, torch.zeros(16, device=inputs["x"].device)

    def run():
        _absent_kernel[(1,)](workspace, BLOCK=16)
        key = float(inputs["x"].flatten()[0])
        if key not in kept:
            kept[key] = {n: t * 1 for n, t in built.run().items()}
        return dict(kept[key])

    return Runnable(run, built.outputs)


def past_its_output(inputs, case):
    y = torch.empty_like(inputs["x"])
    y.copy_(normed(inputs["x"], inputs, case))
    if y.untyped_storage().nbytes() > y.nbytes:  # the memory behind it belongs to nobody else
        torch.as_strided(y, (4,), (1,), y.storage_offset() + y.numel()).zero_()
    return y


def past_its_input(inputs, case):
    x = inputs["x"].detach()
    torch.as_strided(x, (4,), (1,), x.storage_offset() + x.numel()).zero_()
    return normed(inputs["x"], inputs, case)


# --------------------------------------------------------------------------------------------------------- unfairness


@timed
def copies_first(run, call, inputs):
    inputs["x"].clone()
    return run()


@timed
def copies_back(run, call, inputs):
    return {n: t.detach().clone().requires_grad_() if n == "y" else t for n, t in run().items()}


@timed
def without_grad(run, call, inputs):
    with torch.no_grad():
        return run()


@timed
def in_inference_mode(run, call, inputs):
    with torch.inference_mode():
        return run()


@timed
def forward_in_backward(run, call, inputs):
    torch.nn.functional.layer_norm(inputs["x"], inputs["x"].shape[1:], inputs["weight"], inputs["bias"])
    return run()


@timed
def one_gradient(run, call, inputs):
    return {n: t for n, t in run().items() if n != "dw"}


def no_backward(built, case, inputs):
    """fwd_bwd that times forward only."""
    forward = TORCH.build(type(case)(**{**vars(case), "mode": "fwd"}), inputs)
    return Runnable(forward.run, built.outputs)


def first(t):
    return float(t["x"].flatten()[0])


CHEATS = (
    Said("timing", side_stream, "impossible", "on after", tokens=512, host_s=1e-6),
    Said("timing", late_thread, "wrong", "beyond"),
    Said(
        "timing", patched("faster_events", ("torch.cuda:Event", "elapsed_time", no_time)), "impossible", "elapsed_time"
    ),
    Said("timing", patched("no_wait", (torch.cuda, "synchronize", no_time)), "impossible", "cuda.synchronize"),
    Said("timing", patched("slower_clock", (time, "perf_counter", no_time)), "impossible", "time.perf_counter"),
    Said("timing", patched("own_clock", (clock, "perf_counter", no_time)), "impossible", "clock.perf_counter"),
    Said("timing", patched("own_median", (statistics, "median", no_time)), "impossible", "statistics.median"),
    Said("timing", patched("own_percentile", (np, "percentile", no_time)), "impossible", "numpy.percentile"),
    Said("timing", patched("content_with_noise", (sampling, "NOISE", 9.0)), "impossible", "sampling.NOISE"),
    Said(
        "timing", patched("own_timing", (timing, "measure_together", forged_timing)), "impossible", "measure_together"
    ),
    Said("timing", records_the_start_anew, "impossible", "its kernels take", tokens=512, host_s=1e-6),
    Said("timing", naps_in_warm_up, "wrong", "in a timed call"),
    Said("cache", sets_cache_aside, "impossible", "bytes of the cache, which were set aside"),
    Said("cache", smaller_flush, "impossible", "flush"),
    Said("cache", patched("small_cache", (telemetry, "cache_bytes", lambda device: 64)), "impossible", "cache_bytes"),
    Said("cache", patched("no_flush", (clock.Gpu, "flush", lambda self: None)), "impossible", "Gpu.flush"),
    Said("replay", keyed("by_shape", lambda t: t["x"].shape), "wrong", "of an earlier call"),
    Said("replay", keyed("by_address", lambda t: t["x"].data_ptr()), "wrong", "of an earlier call"),
    Said("replay", keyed("by_identity", lambda t: id(t["x"])), "wrong", "of an earlier call"),
    Said("replay", keyed("by_version", lambda t: t["x"]._version), "wrong", "of an earlier call"),
    Said("replay", keyed("by_first_element", first), "wrong", "does less for inputs"),
    Said("replay", keyed("by_sum", lambda t: float(t["x"].sum())), "wrong", "does less for inputs"),
    Said("replay", every(2), "wrong", ""),
    Said("replay", every(7), "wrong", ""),
    Said("replay", stale_graph, "wrong", "beyond"),
    Said("replay", replays_with_noise, "wrong", ""),
    Said("replay", keyed("by_gradient", lambda t: t["dy"].data_ptr()), "wrong", "of an earlier call", mode="bwd"),
    Said("drift", wrong_after_five, "wrong", "beyond"),
    Said("drift", wrong_after_fifty, "wrong", "beyond"),
    Said("drift", half_precision_later, "wrong", "beyond"),
    Said("drift", overwrites("x", 1), "wrong", "writes into its input x"),
    Said("drift", overwrites("x", 40), "wrong", "writes into its input x"),
    Said("drift", overwrites("weight", 40), "wrong", ""),
    Said("drift", overwrites("dy", 40), "wrong", "writes into its input dy", mode="bwd"),
    Said("theft", own(in_frames), "wrong", "beyond"),
    Said("theft", own(in_gc), "wrong", "beyond"),
    Said("theft", own(in_freed_memory), "wrong", ""),
    Said("theft", overwrites_the_reference, "impossible", "the judge's reference"),
    Said("theft", overwrites_the_judges_inputs, "impossible", "the judge's weight"),
    Said("theft", patched("own_bounds", (accuracy, "ROUNDINGS", 1e9)), "impossible", "accuracy.ROUNDINGS"),
    Said("theft", patched("own_judge", (accuracy, "check", lambda *a, **k: [])), "impossible", "accuracy.check"),
    Said("theft", patched("own_verdict", (accuracy, "verdict", lambda errors: ("ok", ""))), "impossible", "verdict"),
    Said("numerics", own(zeros), "wrong", "beyond"),
    Said("numerics", own(constants), "wrong", "beyond"),
    Said("numerics", own(in_fp16), "wrong", "beyond"),
    Said("numerics", own(in_bf16), "wrong", "beyond"),
    Said("numerics", own(scaled), "wrong", "scale_error"),
    Said("numerics", own(shifted), "wrong", "beyond"),
    Said("numerics", own(mean_left_out), "wrong", "beyond"),
    Said("numerics", own(weight_left_out), "wrong", "beyond"),
    Said("numerics", own(not_a_number), "wrong", "NaN"),
    Said("structure", own(lazy), "wrong", "Lazy"),
    Said("structure", own(nothing), "wrong", "missing"),
    Said("structure", own(a_list), "wrong", "list"),
    Said("structure", falls_back, "wrong", "runs PyTorch's aten.native_layer_norm", backend="triton"),
    Said("structure", branch_never_taken, "wrong", "runs PyTorch's aten.native_layer_norm", backend="triton"),
    Said("structure", renamed, "wrong", "runs PyTorch's aten.native_layer_norm", backend="renamed"),
    Said("structure", renamed, "wrong", "runs PyTorch's", mode="bwd", backend="renamed_backward"),
    Said("structure", busy_kernel, "wrong", "does less for inputs"),
    Said("structure", own(past_its_output), "wrong", "writes past the memory of empty"),
    Said("structure", own(past_its_input), "wrong", "writes past the memory of x"),
    Said("unfairness", copies_first, "wrong", "copies 1 tensors"),
    Said("unfairness", copies_back, "wrong", "copies 1 tensors"),
    Said("unfairness", without_grad, "wrong", "switches grad mode off"),
    Said("unfairness", in_inference_mode, "crash", "inference"),
    Said("unfairness", forward_in_backward, "wrong", "runs forward", mode="bwd"),
    Said("unfairness", one_gradient, "wrong", "dw: missing", mode="bwd"),
    Said("unfairness", no_backward, "wrong", "missing", mode="fwd_bwd"),
)
