"""The audit's number of waits of a launch is how often one of its programs arrives at a barrier."""

from collections import Counter

import pytest
from interleaving import interleaved
from triton.runtime.interpreter import interpreter_builder

from bench.audit.calls import Launch, launches
from bench.audit.expected import waits
from bench.audit.small_calls import OFF_CHIP
from bench.audit.targets import TARGETS
from normlib.kernels.numerics import INTERPRETED
from normlib.kernels.plan import Device

# Of rows: a round, several of them, several of uneven groups. Of batch norm: all groups at once, windows of groups one
# after another, windows that run ahead, and what is held on chip.
CASES = {
    ("layer_norm", (3, 8195), "fp32", "rows"): Device(3, cooperative=True),
    ("rms_norm", (7, 4100), "fp64", "rows"): Device(3, l2=2_000_000, cooperative=True),
    ("layer_norm", (5, 8200), "bf16", "rows"): Device(3, cooperative=True),
    ("batch_norm", (5, 20, 16, 16), "fp32", "nchw"): Device(2, l2=1 << 30, cooperative=True, tuning=OFF_CHIP),
    ("batch_norm", (9, 70, 10, 10), "fp16", "nchw"): Device(1, l2=300_000, cooperative=True, tuning=OFF_CHIP),
    ("batch_norm", (5, 200, 6, 6), "fp32", "nchw"): Device(3, l2=1_200_000, cooperative=True, tuning=OFF_CHIP),
    ("batch_norm", (6, 40, 8, 8), "bf16", "nhwc"): Device(2, l2=50_000, cooperative=True),
}


@pytest.mark.skipif(not INTERPRETED.value, reason="counts in Triton's interpreter")
def test_programs_arrive_as_often_as_is_counted_on(monkeypatch):
    builder, arrived = type(interpreter_builder), Counter()
    rmw = builder.create_atomic_rmw

    def counting(self, operation, pointer, value, mask, semantics, scope):
        arrived[self.grid_idx] += str(semantics).endswith(".RELEASE")
        return rmw(self, operation, pointer, value, mask, semantics, scope)

    monkeypatch.setattr(builder, "create_atomic_rmw", counting)
    found = set()
    for case, device in CASES.items():
        launch = Launch(*case)
        tensors = launch.tensors("cpu")
        for mode in ("fwd", "bwd"):
            each = launch.passes.modes[mode]
            declared = each.declare(tensors, device)
            expected = max(waits(declared, moved, launch.shape) for moved in declared.launches)
            arrived.clear()
            with interleaved(0):
                each.run(tensors, device)
            assert max(arrived.values(), default=0) == expected, (case, mode)
            found.add((declared.kind, expected))
    assert {"once", "many times"} <= {"once" if n == 1 else "many times" for _, n in found if n}


def test_waits_are_counted_in_every_launch_that_has_some():
    waiting = set()
    for target, (_, device) in TARGETS.items():
        for launch in launches():
            for mode, each in launch.passes.modes.items():
                declared = each.declare(launch.tensors("meta"), device)
                for moved in declared.launches:
                    assert (waits(declared, moved, launch.shape) > 0) == moved.waits, (target, str(launch), mode)
                    waiting |= {moved.kernel} if moved.waits else set()
    assert len(waiting) > 3
