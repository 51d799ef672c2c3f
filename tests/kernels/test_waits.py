"""The audit's number of waits of a launch is how often one of its programs arrives at a barrier."""

from collections import Counter

import pytest
from every_kernel import WAITING
from interleaving import interleaved
from triton.runtime.interpreter import interpreter_builder

from bench.audit.calls import Call, calls, one_of_each_plan
from bench.audit.expected import waits
from bench.audit.targets import TARGETS
from bench.fake_gpu import recording
from normlib.kernels.numerics import INTERPRETED
from normlib.kernels.plan import Device

# A round, several of them, several of uneven groups.
CASES = {
    ("layer_norm", (3, 8195), "fp32", "rows"): Device(3, cooperative=True),
    ("rms_norm", (7, 4100), "fp64", "rows"): Device(3, l2=2_000_000, cooperative=True),
    ("layer_norm", (5, 8200), "bf16", "rows"): Device(3, cooperative=True),
    ("rms_norm", (5, 16400), "bf16", "rows"): Device(3, cooperative=True),
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
        call = Call(*case)
        with recording(device, lambda launch: launch.run()):
            for one, (mode, run) in zip(call.recorded(device), call.passes(), strict=False):
                if one.mode in ("fwd", "bwd"):
                    expected = max(waits(one, moved, call.shape) for moved in one.launches)
                    arrived.clear()
                    with interleaved(0):
                        run()
                    assert max(arrived.values(), default=0) == expected, (case, mode)
                    found.add((one.kind, expected))
    assert any(n > 1 for _, n in found)


def test_waits_are_counted_in_every_launch_that_has_some():
    waiting = set()
    for target, (_, device) in TARGETS.items():
        for call in one_of_each_plan(calls(), device):
            for one in call.recorded(device):
                for moved in one.launches:
                    assert (waits(one, moved, call.shape) > 0) == moved.waits, (target, str(call), one.mode)
                    waiting |= {moved.kernel} if moved.waits else set()
    assert waiting == WAITING | {"_row_norm_backward_kernel"}
