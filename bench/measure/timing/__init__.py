"""Times the cells of one case side by side, and this device's copies of memory.

On a GPU, in this order: cold calls (`latency_us`, the figure that counts), calls that find their data in the cache
(`hot_us`), many calls in a row with the host's work (`call_us`) and, with --energy, the board's energy (`energy_mj`),
the kernels by themselves (`kernel_us`), and, last because a capture that fails may spoil the process, replays of a CUDA
graph (`graph_us`). clock.py says what is kept out of these times, bench/measure/sampling.py when enough of them have
been taken.

On a CPU no time supports a claim of speed, as the clock's name says, and there is only a latency.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean, median
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from bench.measure.sampling import Series, StoppingRule, median_interval, noise, side_by_side
from bench.measure.witness import Witness
from bench.results.records import CUDA_EVENT, HOST_CPU, INTERPRETER

if TYPE_CHECKING:
    from bench.measure.timing.phases import GpuFigures

# On a CPU: enough passes to see that a time is no accident, without holding up a run that is about errors.
CPU = StoppingRule(budget_s=0.05, most_samples=10)
# Far beyond any L2, and small beside the memory of any device that runs a sweep.
COPY_BYTES = 1 << 30
# So many streams at once may a call's kernels keep busy: one after the other they take as many times its time.
STREAMS = 4


@dataclass(frozen=True)
class Timing:
    """Microseconds and millijoules of one call, by what they include, and the state of the device meanwhile.

    `latency_us` is the median of cold calls, `latency_us_low` to `latency_us_high` its 95% interval by ranks. `series`
    has every single time by the name of its figure, in the order taken. A figure that could not be had is None, and
    `remarks` says why. The figures have the names of bench.results.records.Record.
    """

    clock: str
    latency_us: float
    latency_us_low: float
    latency_us_high: float
    latency_us_p10: float
    latency_us_p90: float
    latency_us_min: float
    samples: int
    noise: float | None  # standard error of the mean over the mean
    stopped: str  # noise, steady or budget: bench/measure/sampling.py
    retaken: int | None = None  # samples of a throttled GPU, thrown away; None where nobody could tell
    hot_us: float | None = None
    call_us: float | None = None
    graph_us: float | None = None
    kernel_us: float | None = None
    launches: int | None = None
    sm_clock_mhz: float | None = None
    mem_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttle: str = ""
    energy_mj: float | None = None
    energy_mj_low: float | None = None
    energy_mj_high: float | None = None
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    doubt: str = ""  # why the time cannot be believed
    poisoned: bool = False  # what comes after it in this process may be spoiled


def measure_together(
    runs: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    interpreted: Collection[str] = (),
    graphless: Collection[str] = (),
    seed: int = 0,
    began: Callable[[str], None] = lambda name: None,
    witnesses: Mapping[str, Witness] | None = None,
    energies: bool = False,
) -> dict[str, Timing | Exception]:
    """Times the calls of one case, by name, in turns; each must have run once before (its first call compiles).

    A call that raises is out, its exception in its place, and the others go on. Where that has lost the device, only
    what has failed by then is returned, the one that lost it last.

    `began` is called with a name before that name's code runs, never inside a time that is measured. `interpreted` are
    those that Triton's interpreter runs, whose times are marked so; no CUDA graph of `graphless` is tried. `seed`
    determines the order of turns. `witnesses` change the inputs of cold calls, and look at their results. `energies`
    asks for energies too, which take half a second a call.
    """
    if device.type == "cuda":
        from bench.measure.timing import phases

        measured = phases.measure(runs, device, graphless, seed, began, witnesses or {}, energies)
        return {name: one if isinstance(one, Exception) else _on_gpu(one) for name, one in measured.items()}
    blocks = {name: partial(_host_block, run, (witnesses or {}).get(name)) for name, run in runs.items()}
    clocks = {name: INTERPRETER if name in interpreted else HOST_CPU for name in runs}
    taken = side_by_side(blocks, CPU, seed=seed, began=began)
    return {name: one if isinstance(one, Exception) else _timing(clocks[name], one) for name, one in taken.items()}


def copy_bandwidth(device: torch.device) -> float | None:
    """Returns GB/s (bytes read plus bytes written) of a large copy on the device; None on a CPU.

    Cells are compared with it as their roof, so it is taken by the same clock in the same run.
    """
    if device.type != "cuda":
        return None
    from bench.measure.timing import phases

    free, _ = torch.cuda.mem_get_info(device)
    size = min(COPY_BYTES, free // 4)
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copied = phases.cold(lambda: target.copy_(source), device)
    return 2 * source.nbytes / median(copied.samples) / 1e3


def _host_block(run: Callable[[], object], witness: Witness | None) -> list[float]:
    if witness:
        witness.block(1)
        witness.before()
    start = perf_counter()
    found = run()
    taken = perf_counter() - start
    if witness:
        witness.after(found)
    return [1e6 * taken]


def _on_gpu(measured: GpuFigures) -> Timing:
    kernels, graph = measured.kernels, measured.graph
    remarks = {
        "the host is in latency_us: ": "a call waits for the device" if measured.host_bound else "",
        "no energy_mj: ": measured.energy.remark,
        "no kernel_us: ": kernels.remark,
        "no graph_us: ": graph.remark,
    }
    beside = {"hot_us": measured.hot} | ({"graph_us": graph.replays} if graph.replays else {})
    found, doubt = _timing(CUDA_EVENT, measured.cold, beside), measured.doubt
    if (kernels.kernel_us or 0.0) > STREAMS * found.latency_us:
        doubt = doubt or f"its kernels take {kernels.kernel_us:.1f} us, and the call {found.latency_us:.1f} us"
    return replace(
        found,
        call_us=measured.call_us,
        kernel_us=kernels.kernel_us,
        launches=kernels.launches,
        energy_mj=measured.energy.mj,
        energy_mj_low=measured.energy.low,
        energy_mj_high=measured.energy.high,
        remarks=tuple(figure + why for figure, why in remarks.items() if why),
        doubt=doubt,
        poisoned=graph.poisoned,
    )


def _timing(clock: str, cold: Series, beside: Mapping[str, Series] | None = None) -> Timing:
    """Summarizes the cold series, the medians of those taken beside it, and the device's state in all of them."""
    series = {"cold_us": cold, **(beside or {})}
    readings = [reading for one in series.values() for reading in one.readings]
    low, high = median_interval(cold.samples)
    p10, p90 = (float(p) for p in np.percentile(cold.samples, (10, 90)))
    return Timing(
        clock=clock,
        latency_us=median(cold.samples),
        latency_us_low=low,
        latency_us_high=high,
        latency_us_p10=p10,
        latency_us_p90=p90,
        latency_us_min=min(cold.samples),
        samples=len(cold.samples),
        noise=noise(cold.samples),
        stopped=cold.stopped,
        retaken=sum(one.retaken for one in series.values()) if readings else None,
        throttle=", ".join(sorted(set().union(*(one.reasons for one in series.values())))),
        series={name: one.samples for name, one in series.items()},
        hot_us=median(series["hot_us"].samples) if "hot_us" in series else None,
        graph_us=median(series["graph_us"].samples) if "graph_us" in series else None,
        sm_clock_mhz=_mean(reading.sm_clock_mhz for reading in readings),
        mem_clock_mhz=_mean(reading.mem_clock_mhz for reading in readings),
        power_w=_mean(reading.power_w for reading in readings),
        temperature_c=_mean(reading.temperature_c for reading in readings),
    )


def _mean(figures: Iterable[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return fmean(known) if known else None
