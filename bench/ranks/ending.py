"""What a signal that ends a rank does to it: it stops the measuring once, and what follows is done undisturbed.

Where a rank is lost, torchrun sends SIGTERM to each other rank's whole process group, so that the rank's worker and the
server that starts workers end as well, perhaps before the rank itself has noticed; SIGKILL follows 30 s later. Ctrl-C
comes as SIGINT in the same way, a second one as SIGTERM, and a closed terminal as SIGHUP.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

# As `stopped_by` has them.
_NAMES = {signal.SIGINT: "interrupt", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
# A signal reaches the processes of a group one after the other, within microseconds; the rest is for a busy machine.
_NEAR_S = 2.0
_PERIOD_S = 0.02


class Ending:
    """Keeps signals from ending this process while it is entered; `told` names the first that came, "" if none has."""

    def __init__(self) -> None:
        self.told = ""
        self._interrupting = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Ending:
        self._before = {number: signal.signal(number, self._hear) for number in _NAMES}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """A block that a signal leaves by KeyboardInterrupt: at once, or as it begins where the signal came before."""
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

        To be asked after `interrupting`, where the loss of another process has raised an error: the same signal may
        have ended that process and not yet have been delivered here.
        """
        self.settle()
        end = time.monotonic() + _NEAR_S
        while not self.told and time.monotonic() < end:
            time.sleep(_PERIOD_S)
        return bool(self.told)

    def _hear(self, number: int, _: Any) -> None:
        first, self.told = not self.told, self.told or _NAMES[signal.Signals(number)]
        if first and self._interrupting:
            raise KeyboardInterrupt
