"""One measured region: how long `run()` takes, and how fast this device copies memory.

On a GPU `triton.testing.do_bench` does the work, because its source does what a cold measurement needs: events are
recorded around each call, a 256 MB buffer (more than any L2 there is) is cleared before each call and outside of the
two events, and the counts of warm-up and measured calls scale with a first estimate. What it cannot know is the
host: where Python takes longer to launch than the device to run, the figure is the launch's.

On a CPU nothing here supports a claim of speed; the clock's name says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np
import torch

CUDA_EVENT, HOST_CPU, INTERPRETER = "cuda_event", "host_cpu", "interpreter"

# do_bench's own defaults: long enough for a clock to rise, short enough for hundreds of cells.
WARMUP_MS, REPEAT_MS = 25, 100
# On a CPU: enough passes to see that a time is no accident, without holding up a run that is about errors.
CPU_BUDGET_S, CPU_SAMPLES = 0.05, 10
# Far beyond any L2, and small beside the memory of any device that runs a sweep.
COPY_BYTES = 1 << 30


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: median, 10th and 90th percentile, least; how many samples; which clock."""

    latency_us: float
    p10: float
    p90: float
    min: float
    samples: int
    clock: str


def measure(run: Callable[[], object], device: torch.device, interpreted: bool = False) -> Timing:
    """Times `run`, which must have run once before (its first call compiles).

    `interpreted` says that Triton's interpreter runs it: such a time is the interpreter's and is marked so.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return _summary(_gpu_samples_us(run), CUDA_EVENT)
    return _summary(_cpu_samples_us(run), INTERPRETER if interpreted else HOST_CPU)


def copy_bandwidth(device: torch.device) -> float | None:
    """GB/s (bytes read plus bytes written) of a large copy on the device; None on a CPU.

    It is the roof that a cell is held against: taken by the same clock, in the same run.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    size = min(COPY_BYTES, free // 4)
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    timing = measure(lambda: target.copy_(source), device)
    return 2 * source.nbytes / timing.latency_us / 1e3


def _gpu_samples_us(run: Callable[[], object]) -> list[float]:
    # Imported here, for a CPU has no use for it and `bench.run` sets TRITON_INTERPRET first.
    from triton.testing import do_bench

    return [1e3 * ms for ms in do_bench(run, warmup=WARMUP_MS, rep=REPEAT_MS, return_mode="all")]


def _cpu_samples_us(run: Callable[[], object]) -> list[float]:
    samples: list[float] = []
    end = perf_counter() + CPU_BUDGET_S
    while not samples or (len(samples) < CPU_SAMPLES and perf_counter() < end):
        start = perf_counter()
        run()
        samples.append(1e6 * (perf_counter() - start))
    return samples


def _summary(samples_us: list[float], clock: str) -> Timing:
    p10, p90 = (float(p) for p in np.percentile(samples_us, (10, 90)))
    return Timing(median(samples_us), p10, p90, min(samples_us), len(samples_us), clock)
