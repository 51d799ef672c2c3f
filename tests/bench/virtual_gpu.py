"""A GPU and its host in virtual time: work is queued by one and done by the other, so that either may wait."""

from __future__ import annotations

from dataclasses import dataclass

EVENT_S, LAUNCH_S = 1e-6, 5e-6  # of the host
FLUSH_S = 40e-6
CYCLES_PER_S = 1.5e9


class VirtualGpu:
    """As bench.measure.timing.clock.Gpu, in seconds that pass only here."""

    def __init__(self):
        self.host = self.free = 0.0  # the host's time, and when the device will have done what is queued
        self.cached = False
        self.flushes = 0
        self.lost = False

    def now(self):
        return self.host

    def launch(self, device_s, host_s=LAUNCH_S):
        self.host += host_s
        self.free = max(self.host, self.free) + device_s

    def event(self):
        return VirtualEvent(self)

    def flush(self):
        self.flushes += 1
        self.cached = False
        self.launch(FLUSH_S)

    def sleep(self, cycles):
        self.launch(cycles / CYCLES_PER_S)

    def synchronize(self):
        if self.lost:
            raise RuntimeError("an illegal memory access was encountered")
        self.host = max(self.host, self.free)

    def release_cache(self):
        pass

    def set_aside(self):
        return 0

    def alive(self):
        return not self.lost

    def call(self, device_s, host_s=LAUNCH_S, reading_s=0.0, waits=False):
        """A call that works for so long, and longer where its data is not cached; `waits`: the host stays for it."""

        def run():
            run.calls += 1
            self.launch(device_s + (0.0 if self.cached else reading_s), host_s)
            self.cached = True
            if waits:
                self.synchronize()

        run.calls = 0
        return run


@dataclass
class VirtualEvent:
    gpu: VirtualGpu
    time: float | None = None

    def record(self):
        self.gpu.host += EVENT_S
        self.time = max(self.gpu.host, self.gpu.free)

    def query(self):
        return self.time <= self.gpu.host

    def synchronize(self):
        self.gpu.host = max(self.gpu.host, self.time)

    def elapsed_time(self, end):
        assert max(self.time, end.time) <= self.gpu.host, "read before the device had got there"
        return 1e3 * (end.time - self.time)
