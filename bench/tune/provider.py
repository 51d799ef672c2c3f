"""normlib with other values of what its plans choose, as `python -m bench.tune` measures it in a worker's process."""

from __future__ import annotations

from bench.cases.case import Case
from bench.cases.operators import Inputs
from bench.measure.providers import Runnable
from bench.measure.providers.normlib import Normlib
from normlib.kernels.host import try_tuning
from normlib.kernels.plan import Tuning


class TunedNormlib(Normlib):
    """Puts its tuning in force for the whole process, and leaves it there: no other normlib is to run beside it."""

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning

    def plan(self, case: Case, inputs: Inputs) -> str:
        """As the launchers choose it with this tuning."""
        try_tuning(self.tuning)
        return super().plan(case, inputs)

    def build(self, case: Case, inputs: Inputs) -> Runnable:
        """As normlib does, with this tuning."""
        try_tuning(self.tuning)
        return super().build(case, inputs)
