"""The ranks that torchrun has started: what they tell each other, and what a signal does to one of them.

They talk through torch.distributed's store and not through collectives, because a collective with a rank that has died
waits long, and here every wait has an end. Under torchrun the store lives in the agent, so that it survives any rank.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from bench.cli import BadArgument

# Until all ranks have found each other: they start together, but may import torch from a slow shared folder. Five
# minutes are thirty times what that takes on one machine.
MEETING_S = 300.0
# Seconds between looks at what the others have done.
_PERIOD_S = 0.2
START_WITH = "start it with torchrun --nproc-per-node=N -m bench.run ..."
# As `stopped_by` has them.
_NAMES = {signal.SIGINT: "interrupt", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
# A signal reaches the processes of a group one after the other, within microseconds; the rest is for a busy machine.
_NEAR_S = 2.0
_SIGNAL_LOOK_S = 0.02


class HeldSignals:
    """Keeps signals from ending this process while it is entered; `told` names the first that came, "" if none has.

    Where a rank is lost, torchrun sends SIGTERM to each other rank's whole process group, so that the rank's worker and
    the server that starts workers end as well, perhaps before the rank itself has noticed; SIGKILL follows 30 s later.
    Ctrl-C comes as SIGINT in the same way, a second one as SIGTERM, and a closed terminal as SIGHUP. The first signal
    stops the measuring; what follows it is done undisturbed.
    """

    def __init__(self) -> None:
        self.told = ""
        self._interrupting = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> HeldSignals:
        self._before = {number: signal.signal(number, self._hear) for number in _NAMES}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raises KeyboardInterrupt in this block when a signal comes, or as it begins where one came before."""
        self._interrupting = True
        try:
            self.check()
            yield
        finally:
            self._interrupting = False

    def check(self) -> None:
        """Raises KeyboardInterrupt again inside `interrupting`: Python drops one that is raised in a finalizer."""
        if self._interrupting and self.told:
            raise KeyboardInterrupt

    def settle(self) -> str:
        """Returns `told`; nothing is interrupted from here on, even where a signal cut the leaving of it short."""
        self._interrupting = False
        return self.told

    def near(self) -> bool:
        """Returns whether a signal has come, or comes within two seconds.

        For use after `interrupting`, where the loss of another process has raised an error: the same signal may have
        ended that process and not have been delivered here yet.
        """
        self.settle()
        end = time.monotonic() + _NEAR_S
        while not self.told and time.monotonic() < end:
            time.sleep(_SIGNAL_LOOK_S)
        return bool(self.told)

    def _hear(self, number: int, _: Any) -> None:
        first, self.told = not self.told, self.told or _NAMES[signal.Signals(number)]
        if first and self._interrupting:
            raise KeyboardInterrupt


class Team:
    """One rank's view of `size` ranks; `store` is any of torch.distributed's.

    No method waits inside the store, where Python handles no signal. Every method raises
    torch.distributed.DistError where the store is gone.
    """

    def __init__(self, store: Store, rank: int, size: int, meeting: float = MEETING_S) -> None:
        self.rank, self.size, self._store, self._meeting = rank, size, store, meeting
        self.signals = HeldSignals()

    def tell(self, key: str, said: Any) -> None:
        self._store.set(key, json.dumps(said))

    def hear(self, key: str, whom: str) -> Any:
        """Waits for what is told under a key; raises BadArgument where that takes longer than the meeting."""
        end = time.monotonic() + self._meeting
        while not self._store.check([key]):
            self.signals.check()
            if time.monotonic() >= end:
                raise BadArgument("torchrun", f"nothing was heard of {whom} for {self._meeting:g} s; {START_WITH}")
            time.sleep(_PERIOD_S)
        return json.loads(self._store.get(key))

    def send(self, key: str, content: bytes) -> None:
        self._store.set(key, content.decode())

    def fetch(self, key: str) -> bytes | None:
        """Returns what was sent under a key, or None where nothing has been."""
        return bytes(self._store.get(key)) if self._store.check([key]) else None

    def wait_for(self, key: str, others: Collection[int], silence: float, limit: float = float("inf")) -> set[int]:
        """Waits until these ranks have told `key`, or `limit` seconds; returns those that have not.

        Ends earlier where all that are left are lost: their `pulse` has not changed for `silence` seconds.
        """
        end = time.monotonic() + limit
        waiting, heard = set(others), {rank: (time.monotonic(), b"") for rank in others}
        while waiting:
            self.signals.check()
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
    """Returns the team of this process, None if it is the only one; raises BadArgument if the others are not found."""
    if int(os.environ.get("WORLD_SIZE") or 1) < 2:
        return None
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=meeting)))
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].removeprefix("Error initializing torch.distributed using ").rstrip(".")
        raise BadArgument("torchrun", f"there is no rendezvous: {reason}; {START_WITH}") from error
    return Team(store, rank, size, meeting)
