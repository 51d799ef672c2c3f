"""The inputs of one problem, what float64 makes of them, and PyTorch's own errors, which its cells share."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bench.cases.case import Case
from bench.cases.operators import Inputs, Operator, Reference
from bench.measure import accuracy
from bench.measure.ending import ending
from bench.measure.providers import Outputs, Provider
from bench.results.records import TensorError


class Truth:
    """Draws inputs and compares results with float64.

    Everything is made when the first cell needs it. The inputs as drawn are never handed out to a provider: each cell
    works on a copy, so that no gradient, running buffer or stray write of one reaches the next.
    """

    def __init__(self, problem: Case, operator: Operator, device: torch.device, seed: int, yardstick: Provider) -> None:
        self.operator, self.seed = operator, seed
        self._problem, self._device, self._provider = problem, device, yardstick
        self._inputs: Inputs | None = None
        self._reference: Reference | None = None
        self._amplification: dict[str, float] = {}
        self._sums: dict[str, int] = {}
        self._yardsticks: dict[str, tuple[dict[str, float] | None, str]] = {}

    def inputs(self) -> Inputs:
        """Returns the inputs as they were drawn."""
        if self._inputs is None:
            self._inputs = self.operator.inputs(self._problem, self._device, self.seed)
        return self._inputs

    def reference(self, case: Case) -> Reference:
        """Returns in float64 what the case's mode produces."""
        inputs = self.inputs()
        if self._reference is None:
            self._reference = self.operator.reference(self._problem, inputs)
            self._amplification = self.operator.amplification(inputs, self._reference)
            self._sums = self._bits(self._reference)
        return {name: self._reference[name] for name in self.operator.outputs(case.mode)}

    def changing(self, case: Case) -> list[str]:
        """Returns the inputs that may change between the calls of a cell."""
        if case.mode == "bwd":  # its graph holds what forward saved
            return ["dy"]
        return [n for n in self.inputs() if not (case.mode == "eval" and n.startswith("running_"))]

    def drawn_anew(self, case: Case, seed: int) -> Inputs:
        """Returns inputs of another seed, except what a cell of this mode read when it was built."""
        new = self.operator.inputs(self._problem, self._device, seed)
        changing = self.changing(case)
        return {name: new[name] if name in changing else tensor for name, tensor in self.inputs().items()}

    def errors(self, outputs: Outputs, case: Case) -> list[TensorError]:
        """Returns the errors of what a cell computed from the inputs as they were drawn."""
        return self._errors(outputs, case, self.yardstick(case)[0])

    def verdict_anew(self, results: Outputs, case: Case, seed: int) -> tuple[str, str]:
        """Returns the verdict on results of another seed's inputs.

        Where chance decides, the bound is twice as wide. What is looked for here is as wrong as can be, and an honest
        implementation at the edge is not to be refused thrice as often because it is looked at thrice.
        """
        inputs = self.drawn_anew(case, seed)
        reference = self.operator.reference(case, inputs)
        amplification = self.operator.amplification(inputs, reference)
        wanted = {name: reference[name] for name in self.operator.outputs(case.mode)}
        found = {n: t.view(wanted[n].shape) for n, t in results.items() if n in wanted}
        dtypes, dim = self.operator.dtypes(inputs), self.operator.statistics_dim
        return accuracy.verdict(accuracy.check(found, wanted, dtypes, None, dim, amplification, slack=2.0))

    def yardstick(self, case: Case) -> tuple[dict[str, float] | None, str]:
        """Returns PyTorch's errors in this mode, or None and why there are none."""
        if case.mode not in self._yardsticks:
            name = self._provider.name
            try:
                copies = {n: t.detach().clone() for n, t in self.inputs().items()}
                outputs = self._provider.build(case, copies).outputs()
                self._yardsticks[case.mode] = accuracy.yardstick(self._errors(outputs, case, None)), ""
            except Exception as error:
                self._yardsticks[case.mode] = None, f"not compared with {name}: {': '.join(ending(error))}"
        return self._yardsticks[case.mode]

    def overwritten(self) -> list[str]:
        """Returns the inputs and references that are not what they were, and has them made anew."""
        assert self._reference is not None
        now = self._bits(self._reference)
        found = [name for name, total in now.items() if total != self._sums[name]]
        if found:
            self.release()
        return found

    def release(self) -> None:
        """Drops all tensors; they are drawn again when somebody asks."""
        self._inputs = self._reference = None

    def _errors(self, outputs: Outputs, case: Case, yardstick: Mapping[str, float] | None) -> list[TensorError]:
        reference, dtypes = self.reference(case), self.operator.dtypes(self.inputs())
        assert self._reference is not None
        for name in (n for n in self.operator.saved if n in outputs):  # given by few, in the dtype that each likes
            dtype = getattr(outputs[name], "dtype", None)
            dtypes[name] = dtype if dtype in accuracy.DTYPE_NAMES else torch.float32
            reference[name] = self._reference[name]
        return accuracy.check(outputs, reference, dtypes, yardstick, self.operator.statistics_dim, self._amplification)

    def _bits(self, reference: Reference) -> dict[str, int]:
        """Returns the sum of the bits of each tensor, taken as integers."""
        integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        tensors = {**self.inputs(), **{f"reference {n}": t for n, t in reference.items()}}
        return {n: int(t.view(integers.get(t.element_size(), torch.uint8)).sum()) for n, t in tensors.items()}
