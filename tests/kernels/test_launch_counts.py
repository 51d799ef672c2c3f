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
from every_kernel import KERNELS, WITHOUT_BARRIER
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[2]
SIDE = 7  # the handle of a stream that is not the default one
# Operators that queue nothing on a device, beside those that return views.
ALLOCATE = {f"aten::{name}" for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")}
QUIET = ALLOCATE | {"aten::promote_types"}
CALLS = 2  # that a profile is told apart into


# What one rank of synchronized batch norm does beside its launches: its gradients are copies of its message, and here a
# copy of its own message stands for the collective.
AROUND = {"sync_batch_norm": {"aten::clone", "aten::_to_copy"}}


class Operators(TorchDispatchMode):
    """Within, an operator that queues something is appended to a list by its name; normlib's are looked into."""

    def __init__(self, queued):
        super().__init__()
        self.queued = queued

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == "normlib":
            with self:
                return operator._op_dk(torch._C.DispatchKey.CPU, *args, **(kwargs or {}))
        if not operator.is_view and operator.name().partition(".")[0] not in QUIET:
            self.queued.append(operator.name())
        return operator(*args, **(kwargs or {}))


def queued_by_every_pass():
    """Returns a dict for each pass of each plan of an H200, and for a planted one: launches declared and queued."""
    from bench.audit.calls import calls, one_of_each_plan
    from bench.fake_gpu import H200, State, absent_gpu
    from normlib.kernels.batch_norm import sweeps

    state = State(stream=SIDE, launched=[])

    def queued(call, capturing):
        found, state.capturing = {}, capturing
        for mode, run in call.passes():
            state.launched.clear()
            with Operators(state.launched):
                run()
            found[mode] = [name for name in state.launched if name not in AROUND.get(call.op, ())]
        return found

    with absent_gpu(H200, state):
        planted = None
        for call in one_of_each_plan(calls(), H200):
            queued(call, capturing=False)  # the first call on a stream fills counters once
            eager, captured = (queued(call, capturing) for capturing in (False, True))
            for one in call.recorded(H200):
                waits = any(moved.waits for moved in one.launches)
                found = {"pass": f"{call} {one.mode}", "op": call.op, "waits": waits}
                found["declared"] = [moved.kernel for moved in one.launches]
                yield found | {"eager": eager[one.mode], "captured": captured[one.mode]}
                if call.op == "batch_norm" and one.mode == "fwd" and planted is None:
                    planted = call, one.mode
        sweeps.counters = lambda n, device: torch.zeros(n, dtype=torch.int32, device=device)
        call, mode = planted
        eager, captured = (queued(call, capturing)[mode] for capturing in (False, True))
        yield {"pass": "planted", "eager": eager, "captured": captured}


@pytest.fixture(scope="module")
def found():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    folders = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(folders)
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_pass_queues_what_its_plan_declares_on_a_side_stream_and_under_capture(found):
    """Every replay queues what was captured."""
    wrong = [f for f in found if f["pass"] != "planted" and not f["declared"] == f["eager"] == f["captured"]]
    assert wrong == []


def test_every_operator_is_among_them_and_every_kernel_with_a_barrier(found):
    from bench.audit.calls import audited

    passes = [f for f in found if f["pass"] != "planted"]
    assert {f["op"] for f in passes} == set(audited())
    assert {f["declared"][0] for f in passes if f["waits"]} == {
        "_row_norm_backward_kernel",
        "_row_norm_forward_sliced_kernel",
    }


def test_a_fill_beside_a_launch_is_noticed(found):
    (planted,) = (f for f in found if f["pass"] == "planted")
    assert (
        planted["eager"]
        == planted["captured"]
        == [
            *("aten::zeros", "_batch_norm_stats_kernel", "_batch_norm_normalize_kernel"),
        ]
    )


def one_of_each_count(calls, device):
    """(call, pass): the first of each operator, mode and number of launches, behind a barrier or not; and every kernel.

    Few, for a GPU is to compile them all.
    """
    counts, kernels = set(), set()
    for call in calls:
        for one in call.recorded(device):
            count = (call.op, one.mode, len(one.launches), any(moved.waits for moved in one.launches))
            names = {moved.kernel for moved in one.launches}
            if count not in counts or not names <= kernels:
                counts.add(count)
                kernels |= names
                yield call, one


def test_what_is_profiled_is_of_every_operator_mode_and_kernel_and_little():
    from bench.audit.calls import audited, calls
    from bench.fake_gpu import H200

    extra = list(calls(names=["extra"]))
    found = list(one_of_each_count(extra, H200))
    modes = {(op, mode) for op in audited() for mode in ("fwd", "bwd")}
    modes |= {(op, mode) for op, each in audited().items() if "eval" in each.modes for mode in ("eval", "eval_bwd")}
    assert {(call.op, one.mode) for call, one in found} == modes
    assert {moved.kernel for _, one in found for moved in one.launches} == KERNELS - WITHOUT_BARRIER
    assert len(found) < 90


def kernels_seen(gpu, run):
    """The kernels of one call or replay in the profiler's names and order, the flush before it left out."""
    from bench.measure.timing.phases import launched, of_one_call

    seen = launched(gpu, run, CALLS)
    _, count = of_one_call(seen, CALLS)
    return [launch.name for launch in seen[1 : 1 + count]]


def seen_of(gpu, call, one):
    """(seen, seen in a replay or None) of a pass on the current stream; a barrier's is captured too."""
    for mode, run in call.passes("cuda"):
        run()
        if mode == one.mode:
            seen, replayed = kernels_seen(gpu, run), None
            if any(moved.waits for moved in one.launches):
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                    run()
                replayed = kernels_seen(gpu, graph.replay)
            # Of synchronized batch norm's copies see AROUND.
            return [name for name in seen if call.op not in AROUND or name in KERNELS], replayed


@pytest.mark.gpu
def test_the_profiler_counts_what_plans_declare_on_a_side_stream(device):
    from bench.audit.calls import calls
    from bench.measure.timing.clock import Gpu
    from normlib.kernels.host import device_of

    here = device_of(torch.empty(1, device=device))
    wrong = {}
    with torch.cuda.stream(torch.cuda.Stream()):
        gpu = Gpu(torch.device("cuda", torch.cuda.current_device()))
        for call, one in one_of_each_count(calls(names=["extra"]), here):
            seen, replayed = seen_of(gpu, call, one)
            declared = [moved.kernel for moved in one.launches]
            if seen != declared or replayed not in (None, declared):
                wrong[f"{call} {one.mode}"] = {"declared": declared, "seen": seen, "replayed": replayed}
    assert wrong == {}


if __name__ == "__main__":
    for each in queued_by_every_pass():
        print(json.dumps(each))
