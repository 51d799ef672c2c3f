"""Calls of normlib whose kernels are executed and judged: every small call that the audit counts the bytes of.

They come from the operators and their plans, so that a new one is here without an edit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import torch

from bench.audit.calls import Call, recorded_small_calls, small_calls
from bench.audit.choices import audited
from bench.cases.operators import Inputs
from bench.measure import accuracy
from normlib.kernels.plan import UNTUNED, Device
from ptx.emulated import Emulation, emulated

# Beside each call as it is: a mean of 1e4 deviations, with as many products fused and approximations as bad as there
# may be; and the other 16 bits.
OFFSET, WORST = 1e4, {"contract": "all", "approx": "worst"}
LARGEST = 30_000  # elements of what is sampled
# What is left out of a call is nothing to its truth.
NEUTRAL = {"weight": torch.ones_like, "bias": torch.zeros_like, "dz": torch.zeros_like}


@dataclass(frozen=True)
class Case:
    """A call of the audit, the device that it is planned for, and how it is executed."""

    call: Call
    device: Device
    offset: float = 0.0
    contract: str = "single"
    approx: str = "exact"

    def __str__(self) -> str:
        tuned = "" if self.device.tuning is UNTUNED else " tuned"
        offset = f" offset {self.offset:g}" if self.offset else ""
        return f"{self.call} {self.device.multiprocessors}mp l2={self.device.l2}{tuned}{offset}"

    def judged(self) -> tuple[list[str], Counter]:
        """Returns what is wrong with the results, and what was found in the launches."""
        operator = audited()[self.call.op]
        family = {"inputs": "offset", "offset": self.offset} if self.offset else {}
        case = replace(self.call.case, dtype=self.call.dtype.replace("64", "32"), **family)
        inputs = operator.inputs(case, torch.device("cpu"), 0)
        if self.call.dtype == "fp64":
            inputs = _as(torch.float64, inputs)
        with emulated(self.device, Emulation(contract=self.contract, approx=self.approx)) as launches:
            results = _results(self.call, inputs)
        assert launches
        # Accuracy knows no bound of float64.
        results = {name: t.float() if t.dtype == torch.float64 else t for name, t in results.items()}

        left_out = NEUTRAL.keys() & inputs.keys() & {*self.call.without}
        inputs |= {name: NEUTRAL[name](inputs[name]) for name in left_out}
        reference = operator.reference(case, inputs)
        amplification = operator.amplification(inputs, reference)
        if any(name.startswith("eval_bwd") for name in results):  # no mode of an operator: the truth is PyTorch's own
            reference |= _results(self.call, _as(torch.float64, inputs))
        reference = {name: reference[name] for name in results if name in reference}
        dtypes = {name: results[name].dtype for name in reference}
        errors = accuracy.check(results, reference, dtypes, None, operator.statistics_dim, amplification)
        return [accuracy.verdict([error])[1] for error in errors if not error.ok], sum(launches, start=Counter())


def _as(dtype: torch.dtype, inputs: Inputs) -> Inputs:
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs.items()}


def _results(call: Call, inputs: Inputs) -> Inputs:
    """Returns the results of all passes by the reference's names; evaluation's backward has names of its own."""
    given = {name: t.clone() for name, t in inputs.items()}
    found: Inputs = {}
    for mode, run in call.passes(make=lambda *_: given):
        for name, result in run().items():
            found[{"eval": f"{name}_eval", "eval_bwd": f"eval_bwd {name}"}.get(mode, name)] = result.detach()
        if mode == "fwd":
            running = [name for name in given if name.startswith("running_") and name not in call.without]
            found |= {name: given[name].clone() for name in running}
            for name in running:  # evaluation is judged with those that there were before
                given[name].data.copy_(inputs[name])
    return found


def every_case() -> Iterator[Case]:
    """Yields every small call as it is, and with an offset or in float16."""
    for call, device in small_calls(audited()):
        yield Case(call, device)
        if call.dtype == "fp32":
            yield Case(call, device, OFFSET, **WORST)
        elif call.dtype == "bf16":
            yield Case(replace(call, dtype="fp16"), device)


def one_of_each_plan() -> Iterator[Case]:
    """Yields the smallest case of each operator, layout and kind of plan with a kernel that none before had.

    A few plans have no case that takes only seconds.
    """
    seen: set[tuple[str, ...]] = set()
    for call, device, passes in sorted(recorded_small_calls(), key=lambda small: prod(small[0].shape)):
        found = {(call.op, call.layout, one.kind, moved.kernel) for one in passes for moved in one.launches}
        if not found <= seen and prod(call.shape) <= LARGEST:
            seen |= found
            yield Case(call, device)
