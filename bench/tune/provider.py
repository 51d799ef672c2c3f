"""normlib with other values for its plans. A file of its own, because a worker's process imports it by name."""

from __future__ import annotations

from bench.cases.case import Case
from bench.cases.operators import Inputs
from bench.measure.providers import Runnable
from bench.measure.providers.normlib import Normlib
from normlib.kernels.host import try_tuning
from normlib.kernels.plan import Tuning


class TunedNormlib(Normlib):
    """Applies its tuning to the whole process and leaves it there, so that no other normlib may run beside it."""

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning

    def plan(self, case: Case, inputs: Inputs) -> str:
        """Returns the plan that launchers choose with this tuning."""
        try_tuning(self.tuning)
        return super().plan(case, inputs)

    def build(self, case: Case, inputs: Inputs) -> Runnable:
        """Builds normlib's cell with this tuning."""
        try_tuning(self.tuning)
        return super().build(case, inputs)
