"""Changes a cell's inputs before each timed call, and looks at what the timed calls computed.

Every timed call finds x and the gradients that arrive filled with new random numbers, so that nothing kept from an
earlier call can be right. Two things are looked at, between the calls and outside their times:

- A few elements of every result as large as x must differ from those of the call before.
- One timed call, which nobody can tell from the others, gets inputs as the case has them, of a seed of its own. Its
  results are kept, and compared with float64 when the timing is over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from random import SystemRandom

import torch
from torch import Tensor

from bench.cases.operators import Inputs
from bench.measure.providers import Outputs

# Elements of a result that are compared from call to call: that all of them agree by chance is out of the question.
SAMPLED = 64
# With fewer elements a statistic, results may well be the same whatever x is.
LEAST_ELEMENTS = 4


class Witness:
    """Watches the timed calls of one cell.

    `inputs` are the cell's, in place; those of `changed` may change between its calls. `draw` returns the case's inputs
    of a seed, and `refill` has the cell begin with such. `repeats` says that equal results of different inputs are
    nothing unusual.
    """

    def __init__(
        self,
        inputs: Inputs,
        changed: Collection[str],
        draw: Callable[[int], Inputs],
        refill: Callable[[Inputs], None],
        seed: int,
        repeats: bool,
    ) -> None:
        self._inputs, self._draw, self._refill, self._repeats = inputs, draw, refill, repeats
        x = inputs["x"]
        self._large = [n for n in changed if inputs[n].shape == x.shape and inputs[n].is_floating_point()]
        self._random, self._blocks, self._chosen, self._call = SystemRandom(), 0, -1, 0
        self._generator = torch.Generator(x.device)
        self._generator.manual_seed(seed)
        self._where = [torch.randint(max(size, 1), (SAMPLED,), device=x.device) for size in x.shape]
        self._last: dict[str, Tensor] = {}
        self._same: dict[str, Tensor] = {}
        self._fresh: Inputs = {}
        self.seed = 0  # of the inputs that the kept results were computed from
        self.kept: Outputs | None = None
        self.calls = 0

    def block(self, calls: int) -> None:
        """Begins a block of timed calls: perhaps one of them, at random, is the call that is kept."""
        self._blocks, self._call, self._chosen = self._blocks + 1, 0, -1
        if self._random.randrange(self._blocks) == 0:
            self._chosen = self._random.randrange(calls)
            self.seed, self.kept = self._random.randrange(1, 2**62), None
            self._fresh = self._draw(self.seed)

    def before(self) -> None:
        """Changes the inputs for the next timed call."""
        with torch.no_grad():
            if self._call == self._chosen:
                self._refill(self._fresh)
            else:
                for name in self._large:
                    self._inputs[name].data.normal_(generator=self._generator)

    def after(self, results: object) -> None:
        """Looks at the results of a timed call, before anything else is launched."""
        if isinstance(results, Mapping):
            with torch.no_grad():
                if self._call == self._chosen:
                    self.kept = {n: t.detach().clone() for n, t in results.items() if isinstance(t, Tensor)}
                self._compare(results)
        self._call += 1
        self.calls += 1

    def _compare(self, results: Mapping[str, object]) -> None:
        shape = self._inputs["x"].shape
        for name, tensor in results.items():
            if self._repeats or not isinstance(tensor, Tensor) or tensor.numel() != shape.numel():
                continue
            sample = tensor.detach().view(shape)[tuple(self._where)]
            if name in self._last and self._last[name].dtype == sample.dtype:
                same = (sample == self._last[name]).all().long()
                self._same[name] = self._same.get(name, torch.zeros_like(same)) + same
            self._last[name] = sample

    def doubt(self) -> str:
        """Returns what is wrong with the results of the timed calls, or ""."""
        for name, same in self._same.items():
            if int(same):
                return f"{name}: {int(same)} of {self.calls} timed calls gave the results of the call before"
        return ""
