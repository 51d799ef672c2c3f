"""Clocks of the host beside the fake GPU: the real one without the device's work, and one in virtual time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class RealHost:
    """The clock of the machine, which stands still while the CPU does the fake device's work.

    A launch takes QUEUE_S instead, and one of Triton's interpreter, which is slow, a SHARE of its processor time, or
    MOST_S: few calls are to fill the time that a measurement takes.
    """

    QUEUE_S, SHARE, MOST_S = 1e-4, 0.2, 5e-3

    def __init__(self) -> None:
        self._clock, self._stood = time.perf_counter, 0.0

    def now(self) -> float:
        return self._clock() - self._stood

    @contextmanager
    def working(self, kernel: bool = False) -> Iterator[None]:
        """Within, the CPU does the device's work."""
        began, worked = self._clock(), time.process_time()
        try:
            yield
        finally:
            share = min(self.SHARE * (time.process_time() - worked), self.MOST_S) if kernel else 0.0
            taken = max(self.QUEUE_S, share)
            self._stood += self._clock() - began - taken

    def wait_until(self, moment: float) -> None:
        while (left := moment - self.now()) > 0:
            time.sleep(left)


@dataclass
class VirtualHost:
    """A clock that only moves by `queue_s` for everything that is queued, and by waiting."""

    queue_s: float = 50e-6
    moment: float = 0.0

    def now(self) -> float:
        return self.moment

    @contextmanager
    def working(self, kernel: bool = False) -> Iterator[None]:
        yield
        self.moment += self.queue_s

    def wait_until(self, moment: float) -> None:
        self.moment = max(self.moment, moment)
