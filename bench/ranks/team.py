"""The ranks that torchrun has started, and what they tell each other: words in torch.distributed's own store.

A store and no collectives: whoever waits in a collective for a rank that has died waits long, and here every wait has
an end. Under torchrun the store lives in the agent, so that it survives any rank.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection
from datetime import timedelta
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from bench.cli import BadArgument
from bench.ranks.ending import Ending

# Until all ranks have found each other: they start together, but may import torch from a slow shared folder. Five
# minutes is thirty times what that takes here.
MEETING_S = 300.0
# Seconds between looks at what the others have done.
_PERIOD_S = 0.2
_HOW = "start it with torchrun --nproc-per-node=N -m bench.run ..."


class Team:
    """One rank's view of `size` ranks; `store` is any of torch.distributed's.

    `ending` is what signals do to this rank. No method waits inside the store, where Python handles no signal. Every
    method raises torch.distributed.DistError where the store is gone.
    """

    def __init__(self, store: Store, rank: int, size: int, meeting: float = MEETING_S) -> None:
        self.rank, self.size, self._store, self._meeting = rank, size, store, meeting
        self.ending = Ending()

    def tell(self, key: str, said: Any) -> None:
        self._store.set(key, json.dumps(said))

    def hear(self, key: str, whom: str) -> Any:
        """What was told under a key; BadArgument where nobody does within the time of meeting."""
        end = time.monotonic() + self._meeting
        while not self._store.check([key]):
            self.ending.check()
            if time.monotonic() >= end:
                raise BadArgument("torchrun", f"nothing was heard of {whom} for {self._meeting:g} s; {_HOW}")
            time.sleep(_PERIOD_S)
        return json.loads(self._store.get(key))

    def send(self, key: str, content: bytes) -> None:
        self._store.set(key, content.decode())

    def fetch(self, key: str) -> bytes | None:
        """What was sent under a key, or None where nothing has been."""
        return bytes(self._store.get(key)) if self._store.check([key]) else None

    def wait_for(self, key: str, others: Collection[int], silence: float, limit: float = float("inf")) -> set[int]:
        """Until these ranks have told `key`, or `limit` seconds; gives those that have not.

        It ends before that where all that are left are lost: their `pulse` has rested for `silence` seconds.
        """
        end = time.monotonic() + limit
        waiting, heard = set(others), {rank: (time.monotonic(), b"") for rank in others}
        while waiting:
            self.ending.check()
            time.sleep(_PERIOD_S)
            for rank in tuple(waiting):
                pulse = self.fetch(f"pulse/{rank}") or b""
                if pulse != heard[rank][1]:
                    heard[rank] = time.monotonic(), pulse
                if self._store.check([f"{key}/{rank}"]):
                    waiting.remove(rank)
            lost = {rank for rank in waiting if time.monotonic() - heard[rank][0] > silence}
            if lost == waiting or time.monotonic() >= end:
                break
        return waiting


def join(meeting: float = MEETING_S) -> Team | None:
    """The team of this process, None where it is alone; BadArgument where the others cannot be found."""
    if int(os.environ.get("WORLD_SIZE") or 1) < 2:
        return None
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=meeting)))
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].removeprefix("Error initializing torch.distributed using ").rstrip(".")
        raise BadArgument("torchrun", f"there is no rendezvous: {reason}; {_HOW}") from error
    return Team(store, rank, size, meeting)
