"""A pass queues the launches that its plan declares and nothing else: on any stream, under capture and in a replay.

Run as a program it prints what every pass queues on a GPU that is not there: that takes a process in which Triton does
not interpret.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from every_kernel import KERNELS
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[2]
SIDE = 7  # the handle of a stream that is not the default one
# Operators that queue nothing on a device, beside those that return views.
ALLOCATE = {f"aten::{name}" for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")}
QUIET = ALLOCATE | {"aten::promote_types"}
CALLS = 2  # that a profile is told apart into


class Operators(TorchDispatchMode):
    """Within, an operator that queues something is appended to a list by its name."""

    def __init__(self, queued):
        super().__init__()
        self.queued = queued

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if not operator.is_view and operator.name().partition(".")[0] not in QUIET:
            self.queued.append(operator.name())
        return operator(*args, **(kwargs or {}))


def queued_by_every_pass():
    """What each pass of each plan of an H200 declares and queues, and what a planted one does: a dict each."""
    from bench.audit.calls import launches, one_of_each_plan
    from bench.audit.targets import TARGETS
    from bench.fake_gpu import State, absent_gpu
    from normlib.kernels.batch_norm import grids as batch_norm_launch

    _, h200 = TARGETS["sm_90"]
    state = State(stream=SIDE, launched=[])

    def queued(each, tensors, capturing):
        state.capturing = capturing
        state.launched.clear()
        with Operators(state.launched):
            each.run(tensors, h200)
        return state.launched.copy()

    def queued_by(each, tensors):
        # The first call on a stream fills counters once, and what is compiled is not launched here.
        queued(each, tensors, capturing=False)
        return {"eager": queued(each, tensors, capturing=False), "captured": queued(each, tensors, capturing=True)}

    with absent_gpu(h200, state):
        planted = None
        for call in one_of_each_plan(launches(), h200):
            tensors = call.tensors("meta")
            for mode, each in call.passes.modes.items():
                declared = each.declare(tensors, h200).launches
                waits = any(moved.waits for moved in declared)
                found = {"pass": f"{call} {mode}", "op": call.op, "waits": waits}
                yield found | {"declared": [m.kernel for m in declared]} | queued_by(each, tensors)
                if waits and planted is None:
                    planted = each, tensors
        batch_norm_launch.counters = lambda n, device: torch.zeros(n, dtype=torch.int32, device=device)
        yield {"pass": "planted"} | queued_by(*planted)


@pytest.fixture(scope="module")
def found():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    folders = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(folders)
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_pass_queues_what_its_plan_declares_on_a_side_stream_and_under_capture(found):
    """What is captured is what every replay queues."""
    wrong = [f for f in found if f["pass"] != "planted" and not f["declared"] == f["eager"] == f["captured"]]
    assert wrong == []


def test_every_operator_is_among_them_and_every_kernel_with_a_barrier(found):
    from bench.audit.calls import audited

    passes = [f for f in found if f["pass"] != "planted"]
    assert {f["op"] for f in passes} == set(audited())
    assert {f["declared"][0] for f in passes if f["waits"]} == {
        "_batch_norm_forward_kernel",
        "_batch_norm_backward_kernel",
        "_batch_norm_forward_on_chip_kernel",
        "_batch_norm_backward_on_chip_kernel",
        "_row_norm_backward_sliced_kernel",
    }
    alone = [f for f in passes if f["waits"] and f["op"].startswith("batch_norm")]
    assert alone and all(len(f["declared"]) == 1 for f in alone)


def test_a_fill_beside_a_launch_is_noticed(found):
    (planted,) = (f for f in found if f["pass"] == "planted")
    assert planted["eager"] == planted["captured"] == ["aten::zeros", "_batch_norm_forward_kernel"]


def one_of_each_count(calls, device):
    """(call, mode): the first of each operator, mode and number of launches, behind a barrier or not; and every kernel.

    Few, for a GPU is to compile them all.
    """
    counts, kernels = set(), set()
    for call in calls:
        tensors = call.tensors("meta")
        for mode, each in call.passes.modes.items():
            declared = each.declare(tensors, device).launches
            count = (call.op, mode, len(declared), any(moved.waits for moved in declared))
            names = {moved.kernel for moved in declared}
            if count not in counts or not names <= kernels:
                counts.add(count)
                kernels |= names
                yield call, mode


def test_what_is_profiled_is_of_every_operator_mode_and_kernel_and_little():
    from bench.audit.calls import audited, launches
    from bench.audit.targets import TARGETS

    _, h200 = TARGETS["sm_90"]
    calls = list(launches(names=["extra"]))
    found = list(one_of_each_count(calls, h200))
    assert {(call.op, mode) for call, mode in found} == {
        (call.op, mode) for call in calls for mode in call.passes.modes
    }
    declared = [call.passes.modes[mode].declare(call.tensors("meta"), h200).launches for call, mode in found]
    assert {call.op for call, _ in found} == set(audited())
    assert {moved.kernel for launches in declared for moved in launches} == KERNELS
    assert len(found) < 90


def kernels_seen(gpu, run):
    """The kernels of one call or replay in the profiler's names and order, the flush before it left out."""
    from bench.measure.timing.phases import launched, of_one_call

    seen = launched(gpu, run, CALLS)
    _, count = of_one_call(seen, CALLS)
    return [launch.name for launch in seen[1 : 1 + count]]


def declared_and_seen(gpu, call, mode, device):
    """(declared, seen, seen in a replay or None) of a pass on the current stream; a barrier's is captured too."""
    tensors = call.tensors("cuda")
    each = call.passes.modes[mode]
    declared = each.declare(tensors, device).launches

    def run():
        each.run(tensors, device)

    run()
    seen, replayed = kernels_seen(gpu, run), None
    if any(moved.waits for moved in declared):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            run()
        replayed = kernels_seen(gpu, graph.replay)
    return [moved.kernel for moved in declared], seen, replayed


@pytest.mark.gpu
def test_the_profiler_counts_what_plans_declare_on_a_side_stream(device):
    from bench.audit.calls import launches
    from bench.measure.timing.clock import Gpu
    from normlib.kernels.host import device_of

    here = device_of(torch.empty(1, device=device))
    wrong = {}
    with torch.cuda.stream(torch.cuda.Stream()):
        gpu = Gpu(torch.device("cuda", torch.cuda.current_device()))
        for call, mode in one_of_each_count(launches(names=["extra"]), here):
            declared, seen, replayed = declared_and_seen(gpu, call, mode, here)
            if seen != declared or replayed not in (None, declared):
                wrong[f"{call} {mode}"] = {"declared": declared, "seen": seen, "replayed": replayed}
    assert wrong == {}


if __name__ == "__main__":
    for each in queued_by_every_pass():
        print(json.dumps(each))
