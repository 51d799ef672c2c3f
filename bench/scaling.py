"""`python -m bench.scaling`: what more devices do to a sweep's time and to synchronized batch norm's step, on paper.

The tables of docs/scaling.md. Nothing here was timed. A sweep is dealt to ranks by bench/ranks/shards.py, with the
expected seconds of bench/measure/cost.py. A step is what its bytes take at a bandwidth, and its two collectives by the
latency-bandwidth model: an all-gather of m bytes a rank takes log2(P) latencies, by recursive doubling, and its bytes
(Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", 2005, section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, log2, prod

RANKS = (1, 2, 4, 8, 16, 64, 256, 1024)
DEVICES = (1, 2, 4, 8, 16, 32, 64)
PROVIDERS = ("torch", "normlib", "torch_compile", "cudnn")
# ResNet-50's first, a middle and last batch norm at 32 images a rank: (name, C, H, W).
LAYERS = (("64 x 112 x 112", (64, 112, 112)), ("256 x 14 x 14", (256, 14, 14)), ("2048 x 7 x 7", (2048, 7, 7)))
IMAGES, ITEM_BYTES = 32, 2


@dataclass(frozen=True)
class Machine:
    """What the model takes for given. Bandwidths in bytes a second and rank, latencies in seconds a message."""

    # A large copy on an H200 moved some 4300 GB/s: the project's own figure for the memory, of no run that is kept.
    memory: float = 4.3e12
    # NVIDIA's figures: NVLink 4 has 900 GB/s a GPU, half of it each way; an NDR adapter 400 Gb/s a GPU each way.
    inside: float = 450e9
    between: float = 50e9
    node: int = 8
    # Assumed, of the order that collectives libraries show for small messages; no measurement of ours.
    latency_inside: float = 3e-6
    latency_between: float = 10e-6
    launch: float = 3e-6  # assumed: one kernel, of which a step has seven


MACHINE = Machine()


def message_bytes(channels: int) -> tuple[int, int]:
    """What a rank sends forward and backward, in float32: (mean, low, M2) and a count; two sums."""
    return 4 * (3 * channels + 2), 4 * 2 * channels


def all_gather(message: int, ranks: int, machine: Machine = MACHINE) -> float:
    """Seconds: log2(P) rounds, inside nodes first; then what comes into a node by its adapters, and what goes round."""
    inside = min(ranks, machine.node)
    outside = ranks - inside
    latencies = ceil(log2(inside)) * machine.latency_inside + ceil(log2(ranks / inside)) * machine.latency_between
    return latencies + (ranks - 1) * message / machine.inside + outside * message / (machine.between * inside)


def all_reduce(message: int, ranks: int, machine: Machine = MACHINE) -> float:
    """Seconds of the same bytes added up on the way: reduce-scatter and all-gather, 2 log2(P) rounds."""
    inside = min(ranks, machine.node)
    latencies = ceil(log2(inside)) * machine.latency_inside + ceil(log2(ranks / inside)) * machine.latency_between
    slowest = machine.between if ranks > machine.node else machine.inside
    return 2 * latencies + 2 * message * (ranks - 1) / ranks / slowest


def own_work(shape: Sequence[int], machine: Machine = MACHINE) -> float:
    """Seconds of one rank's sweeps, forward 3 units of the activation and backward 5, and of its launches."""
    return 8 * IMAGES * prod(shape) * ITEM_BYTES / machine.memory + 7 * machine.launch


def communication(channels: int, ranks: int, machine: Machine = MACHINE) -> float:
    """Seconds of both collectives of a step; none alone."""
    return sum(all_gather(message, ranks, machine) for message in message_bytes(channels)) if ranks > 1 else 0.0


def half_way(shape: Sequence[int], machine: Machine = MACHINE) -> int | None:
    """The first power of two of ranks at which a step spends more on communication than on work; None to 2^20."""
    ranks = (2**k for k in range(1, 21))
    return next((p for p in ranks if communication(shape[0], p, machine) > own_work(shape, machine)), None)


def sweep_seconds(devices: int) -> float:
    """The longest rank's share of `--op all --preset full` on GPUs, by the rule of thumb, each compiling for itself."""
    import torch

    from bench.cases import sweep
    from bench.cases.operators import operators
    from bench.measure.cost import expected
    from bench.ranks.shards import deal

    cases = sweep.cases(sweep.Sweep(tuple(operators()), "full"), operators())
    gpu = torch.device("cuda")  # of which only the kind is asked
    shares = deal(cases, PROVIDERS, gpu, devices)
    return max(expected(share, PROVIDERS, gpu, helpers=(0, 0)).total for share in shares)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (tuple(header), *map(tuple, rows))]
    return "\n".join([lines[0], "|" + "---|" * (lines[0].count("|") - 1), *lines[1:]])


def sweep_table() -> str:
    alone = sweep_seconds(1)
    rows = [(str(n), f"{(t := sweep_seconds(n)) / 60:.1f} min", f"{alone / t:.1f}x") for n in DEVICES]
    return _table(("devices", "expected time", "of one device's"), rows)


def step_table() -> str:
    def row(ranks: int) -> list[str]:
        return [str(ranks)] + [
            f"{1e6 * own_work(shape):.0f} + {1e6 * communication(shape[0], ranks):.0f}" for _, shape in LAYERS
        ]

    last = ["communication above half from", *(str(half_way(shape)) for _, shape in LAYERS)]
    return _table(("ranks", *(name for name, _ in LAYERS)), [*map(row, RANKS), last])


def backward_table() -> str:
    message = message_bytes(2048)[1]
    rows = [
        (str(p), f"{1e6 * all_gather(message, p):.0f}", f"{1e6 * all_reduce(message, p):.0f}") for p in RANKS if p > 1
    ]
    return _table(("ranks", "all-gather, added in rank order", "all-reduce"), rows)


TABLES: tuple[Callable[[], str], ...] = (sweep_table, step_table, backward_table)

if __name__ == "__main__":
    print("\n\n".join(table() for table in TABLES))
