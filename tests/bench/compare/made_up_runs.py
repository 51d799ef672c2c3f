"""Made-up runs: records and samples of any number of cells, for tests of report and comparison.

`python tests/bench/compare/made_up_runs.py FOLDER CASES [SEED]` writes one as a GPU run would leave it, four providers
a case, to try report and comparison on many cells. Every time in it is drawn, and describes no machine.
"""

import sys
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import report_runs

from bench.results import samples

PROVIDERS = ("normlib", "torch", "torch_compile", "cudnn")
TENSORS = {"fwd": ("y", "mean", "rstd"), "fwd_bwd": ("y", "dx", "dw", "db", "mean", "rstd")}


def steady(noise=0.01, least=20, most=200, outliers=0.05):
    """Draws the microseconds of a cell, which scatter by `noise`; some are outliers, up to five times as long."""

    def draw(case, provider, dice):
        count = int(dice.integers(least, most + 1))
        base = (5.0 + case % 97) * (1.0 + 0.2 * PROVIDERS.index(provider))
        wild = np.where(dice.random(count) < outliers, dice.uniform(1.2, 5.0, count), 1.0)
        return base * np.exp(dice.normal(0.0, noise, count)) * wild

    return draw


def record(case, provider, samples):
    """The record of one ok cell of layer norm, timed on a GPU, whose errors are the same in every run."""
    dtype, mode = ("fp32", "fp16", "bf16")[case % 3], ("fwd", "fwd_bwd")[case // 3 % 2]
    axes = {"tokens": 64 * (1 + case // 6 // 64), "hidden": 128 * (1 + case // 6 % 64)}
    ranked, median = np.sort(samples), float(np.median(samples))
    half = 0.98 * len(ranked) ** 0.5
    low, high = (ranked[int(np.clip(len(ranked) / 2 + side * half, 0, len(ranked) - 1))] for side in (-1, 1))
    kinds = {tensor: "fp32" if tensor in ("mean", "rstd") else dtype for tensor in TENSORS[mode]}
    shares = [0.3 + 0.1 * ((case + place) % 7) for place in range(len(kinds))]
    return report_runs.record(
        axes=axes, dtype=dtype, layout="rows", mode=mode, provider=provider, latency_us=median, samples=len(ranked),
        errors=[
            report_runs.tensor_error(tensor, kind, share if kind == "fp32" else 0.953)
            for (tensor, kind), share in zip(kinds.items(), shares, strict=True)
        ],
        latency_us_low=float(low), latency_us_high=float(high), latency_us_min=float(ranked[0]),
        latency_us_p10=float(ranked[len(ranked) // 10]), latency_us_p90=float(ranked[-len(ranked) // 10]),
        hot_us=0.8 * median, call_us=1.2 * median, graph_us=0.9 * median, kernel_us=0.85 * median, launches=1,
    )  # fmt: skip


def write(folder, cases, draw, seed=0, names=PROVIDERS, change=lambda record: None, **environment):
    """Writes a whole run; `change` may alter each record before it is written."""
    dice, records, taken = np.random.default_rng(seed), [], []
    for case, provider in product(range(cases), names):
        cold = draw(case, provider, dice)
        records.append(record(case, provider, cold))
        change(records[-1])
        taken.append(samples.Samples(records[-1].key, {"cold_us": cold.tolist()}))
    return report_runs.write(folder, records, taken, **environment)


if __name__ == "__main__":
    path, count, *rest = sys.argv[1:]
    write(Path(path), int(count), steady(least=30, most=30), seed=int(rest[0]) if rest else 0)
