"""The looks that the judge takes at a cell besides its errors: what one call does, what timed calls gave, and after.

Each raises Refused where it finds what makes the cell wrong or impossible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod

import torch

from bench.cases.case import Case
from bench.cases.operators import Inputs
from bench.measure import contract
from bench.measure.ending import exits_raised
from bench.measure.observed import GuardedMemory, between_guards, observing
from bench.measure.providers import Outputs, Provider, Runnable
from bench.measure.truth import Truth
from bench.measure.witness import LEAST_ELEMENTS, Witness
from bench.results.records import Record


class Refused(Exception):
    """The cell is wrong, or impossible; the text says why."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class BuiltCell:
    """A cell that has run once and can be timed."""

    record: Record
    case: Case
    cell: Runnable
    inputs: Inputs
    provider: Provider
    memories: Mapping[str, GuardedMemory]  # of the inputs
    buffers: Outputs = field(default_factory=dict)  # running statistics, which each call moves on

    def refill(self, values: Inputs) -> None:
        """Gives the inputs these values, and the running statistics theirs."""
        for name, tensor in self.inputs.items():
            tensor.data.copy_(values[name])  # .data: a graph that was built once is not refused for it
        for name, buffer in self.buffers.items():
            buffer.copy_(values[name].view(buffer.shape))

    def differing(self, values: Inputs) -> list[str]:
        """Returns the inputs that are no longer equal to these values; running statistics may have moved on."""
        return [n for n, t in self.inputs.items() if not n.startswith("running_") and not _same(t, values[n])]

    def refuse_overruns(self) -> None:
        """Raises Refused where something was written before or behind an input."""
        if beyond := [name for name, memory in self.memories.items() if not memory.intact]:
            raise Refused("wrong", f"writes past the memory of {', '.join(beyond)}")


def guarded(inputs: Inputs) -> tuple[Inputs, dict[str, GuardedMemory]]:
    """Returns copies of the same values and strides with a guard before and behind each, and their memories."""
    pairs = {name: between_guards(tensor) for name, tensor in inputs.items()}
    for name, (copy, _) in pairs.items():
        copy.detach().copy_(inputs[name])
    return {name: copy for name, (copy, _) in pairs.items()}, {name: memory for name, (_, memory) in pairs.items()}


def at_one_call(built: BuiltCell, truth: Truth) -> None:
    """Runs the call on new inputs and notes what it does, repeats it, and runs it as a ghost."""
    case, record = built.case, built.record
    fresh = truth.drawn_anew(case, truth.seed + 1)
    built.refill(fresh)
    with observing() as (log, overrun):
        results = built.cell.run()
    record.ran = log.words
    if beyond := overrun():
        raise Refused("wrong", f"writes past the memory of {', '.join(beyond)}")
    built.refuse_overruns()
    if broken := contract.broken(case, record.backend, built.inputs, results, log):
        raise Refused("wrong", broken)
    record.deviations = "; ".join(contract.deviations(case, built.inputs, results, log))
    built.buffers.update({n: t.detach() for n, t in results.items() if n.startswith("running_")})
    before = {n: t.detach().clone() for n, t in results.items() if n not in built.buffers}
    built.refill(fresh)
    with observing() as (again, _):
        repeated = built.cell.run()
    if len(again.work) < len(log.work):
        raise Refused("wrong", f"does less for inputs that it has seen: {again.words or 'nothing'}, not {log.words}")
    # What a cell writes into memory of its own, call after call, must not be there already.
    for name in before:
        repeated[name].detach().fill_(torch.nan)
    built.refill(fresh)
    after: Outputs = {}
    with observing(ghost=True) as (ghost, _), suppress(Exception):  # of what cannot go on with such numbers
        after = built.cell.run()
    alike = [n for n, t in after.items() if n in before and before[n].numel()]
    unchanged = [n for n in alike if _same(after[n].reshape(before[n].shape), before[n])]
    if unchanged and unchanged == [*before] and ghost.kernels:
        did = ", ".join(dict.fromkeys(log.work))
        raise Refused("wrong", f"gives the same {', '.join(unchanged)} with its work ({did}) left out")


def batch_invariant(built: BuiltCell, truth: Truth) -> bool | None:
    """Returns whether the first rows have the same bits without the others; None where nothing could be compared.

    He and Thinking Machines Lab, "Defeating nondeterminism in LLM inference" (2025), call a kernel batch invariant
    whose result for a row does not depend on the number of rows beside it.
    """
    case, given, same = built.case, truth.inputs(), []
    smaller = [] if built.provider.one_shape else truth.operator.smaller(case)
    shape = given["x"].shape
    most = max((one.shape[0] for one in smaller), default=0)
    # Copies, because another call of the provider may write into the same memory.
    whole = {n: t[:most].clone() for n, t in (built.cell.outputs() if smaller else {}).items() if t.shape == shape}
    for one in smaller:
        rows = one.shape[0]
        inputs, _ = guarded({n: t[:rows] if t.shape == shape else t for n, t in given.items()})
        with suppress(Exception), exits_raised():  # of a provider that does not serve so few
            found = built.provider.build(one, inputs).outputs()
            same += [_same_bits(found[name], t[:rows]) for name, t in whole.items()]
    return all(same) if same else None


def witness(built: BuiltCell, truth: Truth) -> Witness:
    """Returns what watches the timed calls of a cell."""
    case = built.case
    few = prod(case.shape) < LEAST_ELEMENTS * max(truth.operator.saved_values(case), 1)
    draw: Callable[[int], Inputs] = lambda seed: truth.drawn_anew(case, seed)
    return Witness(built.inputs, truth.changing(case), draw, built.refill, truth.seed, few)


def at_timed_calls(built: BuiltCell, truth: Truth, seen: Witness, doubt_of_time: str) -> None:
    """Judges a call that was timed, and one more on new inputs."""
    if seen.kept is not None:
        _refuse_wrong(built, truth, seen.kept, seen.seed, "in a timed call")
    if doubt := seen.doubt():
        raise Refused("wrong", doubt)
    on_new_inputs(built, truth, seen.seed + 1, "on new inputs after timing")
    if doubt_of_time:
        raise Refused("impossible", doubt_of_time)


def on_new_inputs(built: BuiltCell, truth: Truth, seed: int, when: str) -> None:
    """Judges one call on inputs of a seed; the results of the call before are overwritten."""
    fresh = truth.drawn_anew(built.case, seed)
    for name, result in built.cell.run().items():
        if name not in built.buffers:
            result.detach().fill_(torch.nan)
    built.refill(fresh)
    found = built.cell.run()
    if changed := built.differing(fresh):
        raise Refused("wrong", f"{when}: writes into its input {', '.join(changed)}")
    built.refuse_overruns()
    _refuse_wrong(built, truth, found, seed, when)


def _refuse_wrong(built: BuiltCell, truth: Truth, results: Outputs, seed: int, when: str) -> None:
    status, reason = truth.verdict_anew(results, built.case, seed)
    if status != "ok":
        # The judge itself has overwritten results of earlier calls with NaN.
        if kept := [name for name, tensor in results.items() if tensor.numel() and tensor.isnan().all()]:
            reason = f"gives {', '.join(kept)} of an earlier call, which meanwhile were overwritten"
        raise Refused(status, f"{when}: {reason}")


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    integers = {2: torch.int16, 4: torch.int32}[b.element_size()]
    return torch.equal(*(t.detach().contiguous().view(integers) for t in (a, b)))


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Returns whether two tensors are equal, NaN in the same places included."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
