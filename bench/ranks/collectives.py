"""What a step sends: its collectives are recorded once, and then repeated alone to see what they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Sent:
    """One collective as a rank took part in it: its name in torch.distributed, and what the rank gave."""

    name: str
    numel: int
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def again(self, group: dist.ProcessGroup, device: torch.device) -> Callable[[], Any]:
        """The same collective on zeros, ready to be called."""
        mine = torch.zeros(self.numel, dtype=self.dtype, device=device)
        call = getattr(dist, self.name)
        if self.name == "all_reduce":
            return lambda: call(mine, group=group)
        every = mine.new_empty(group.size() * self.numel)
        parts = list(every.chunk(group.size())) if self.name == "all_gather" else every
        return lambda: call(parts, mine, group=group)


# By name: which argument a rank gives. all_gather_into_tensor is all_gather_single's older name.
_GIVEN = {"all_gather_single": 1, "all_gather_into_tensor": 1, "all_gather": 1, "all_reduce": 0}


@contextmanager
def recording() -> Iterator[list[Sent]]:
    """The list that the collectives called meanwhile, through torch.distributed, are added to."""
    found: list[Sent] = []
    inside = False

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:  # one name calls another
                return call(*args, **kwargs)
            given: Tensor = args[_GIVEN[name]]
            found.append(Sent(name, given.numel(), given.dtype))
            inside = True
            try:
                return call(*args, **kwargs)
            finally:
                inside = False

        return recorded

    with ExitStack() as patches:
        for name in _GIVEN:
            if hasattr(dist, name):
                patches.enter_context(mock.patch.object(dist, name, watched(name, getattr(dist, name))))
        yield found
