"""Two runs -> a verdict a cell: SLOWER, FASTER, SAME or UNCLEAR; newly wrong; less accurate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from math import expm1, log1p
from pathlib import Path

from bench.compare import conditions, drift
from bench.compare.cells import Cell, Incomparable, Run, load
from bench.compare.comparison import EXCLUDED, FASTER, SAME, SLOWER, THRESHOLD, UNCLEAR, Comparison, Pair
from bench.compare.errors import grown
from bench.compare.words import change
from bench.page.formatting import percent, plural
from bench.results.intervals import LEAST, Change, Interval, of_medians, of_samples
from bench.results.records import CUDA_EVENT


def compare(a: Path, b: Path, threshold: float = THRESHOLD, providers: Sequence[str] = ()) -> Comparison:
    """Compares run B with run A, both folders, cell by cell; of these providers alone if any are given.

    `threshold` is the share by which a time must have changed at least before that counts.
    Raises Incomparable, with one line, where a folder holds no run or the two have no cell in common.
    """
    before, after = load(a), load(b)
    for run in (before, after):
        if providers and not run.providers.intersection(providers):
            there = ", ".join(sorted(run.providers))
            raise Incomparable(f"{run.folder}: has no record of {', '.join(providers)}, only of {there}")
    return judge(before, after, threshold, providers)


def judge(before: Run, after: Run, threshold: float = THRESHOLD, providers: Sequence[str] = ()) -> Comparison:
    """`compare`, of runs that have been read. Providers that are not looked at still tell what the machine did."""
    names = _names({**before.cells, **after.cells})
    both = [key for key in after.cells if key in before.cells]
    found = {key: _pair(key, names[key], before.cells[key], after.cells[key]) for key in both}
    looked_at = set(providers) or before.providers | after.providers
    between = None
    if before.supports_speed and after.supports_speed:
        between = _judge_speed(before, after, found, threshold, looked_at)
    pairs = tuple(pair for pair in found.values() if pair.provider in looked_at)
    if not pairs:
        raise Incomparable(f"{before.folder} and {after.folder}: no cell is in both")
    return Comparison(
        a=before.folder,
        b=after.folder,
        threshold=threshold,
        pairs=pairs,
        only_a=_only(before, after, names, looked_at),
        only_b=_only(after, before, names, looked_at),
        differences=tuple(
            conditions.differences(before.environment, after.environment, sorted({pair.provider for pair in pairs}))
        ),
        notes=tuple(_notes(before, after, pairs, between)),
        between=between,
    )


def _names(cells: Mapping[str, Cell]) -> dict[str, str]:
    """Labels by key; with eps where the label alone does not tell two cells apart."""
    count = Counter((cell.label, cell.provider) for cell in cells.values())
    return {
        key: f"{cell.label} eps {key.rpartition('/')[2]}" if count[cell.label, cell.provider] > 1 else cell.label
        for key, cell in cells.items()
    }


def _only(here: Run, there: Run, names: Mapping[str, str], looked_at: Set[str]) -> tuple[tuple[str, str], ...]:
    alone = ((cell.provider, names[key]) for key, cell in here.cells.items() if key not in there.cells)
    return tuple((provider, name) for provider, name in alone if provider in looked_at)


def _pair(key: str, label: str, a: Cell, b: Cell) -> Pair:
    return Pair(key, label, a, b, growth=grown(a, b) if a.status == b.status == "ok" else None)


def _judge_speed(
    before: Run, after: Run, pairs: dict[str, Pair], threshold: float, looked_at: Set[str]
) -> drift.Between:
    """Puts the verdict on speed into every pair that was ok and timed by a GPU's clock in both runs."""
    timed = [key for key, pair in pairs.items() if _timed(pair.a) and _timed(pair.b)]
    changes = {}
    for key in timed:
        found = _change(before, after, key)
        if isinstance(found, Change):
            changes[pairs[key].b.case, pairs[key].provider] = found
        else:
            pairs[key] = replace(pairs[key], verdict=UNCLEAR, why=found)
    between = drift.between(changes)
    together = sum(provider in looked_at for _, provider in changes)
    intervals = drift.intervals(changes, between, together)
    for key in timed:
        at = pairs[key].b.case, pairs[key].provider
        if at in changes:
            alone = changes[at].interval(together, between.scatter**2)
            pairs[key] = _judged(pairs[key], changes[at], alone, intervals[at], threshold)
    return between


def _timed(cell: Cell) -> bool:
    return cell.status == "ok" and cell.clock == CUDA_EVENT and cell.latency_us is not None


def _change(before: Run, after: Run, key: str) -> Change | str:
    """The change of a cell, or why it cannot be told."""
    a, b = before.cells[key], after.cells[key]
    if key in before.samples and key in after.samples:
        found = of_samples(before.samples[key], after.samples[key])
        return found or f"fewer than {LEAST} samples in one of the runs"
    if a.median and b.median:
        # A record without a count says nothing of its own certainty: as if it were the fewest.
        return of_medians(a.median, b.median, (a.count or LEAST, b.count or LEAST))
    return f"{'A' if not a.median else 'B'} holds neither samples nor an interval of the median"


def _judged(pair: Pair, found: Change, alone: Interval, interval: Interval, threshold: float) -> Pair:
    least, excluded = log1p(threshold), log1p(max(EXCLUDED, 2 * threshold))
    (low, high), why = interval, ""
    if _beyond(interval, least):
        verdict = SLOWER if low > 0 else FASTER
    elif _beyond(alone, least):
        verdict, why = UNCLEAR, "the other providers of this case moved as well"
    elif -excluded < low and high < excluded:
        verdict = SAME
    else:
        verdict, why = UNCLEAR, f"anything from {change(expm1(low))} to {change(expm1(high))} is possible"
    return replace(pair, verdict=verdict, why=why, change=expm1(found.estimate), low=expm1(low), high=expm1(high))


def _beyond(interval: Interval, least: float) -> bool:
    return interval[0] > least or interval[1] < -least


def _notes(before: Run, after: Run, pairs: Sequence[Pair], between: drift.Between | None) -> Iterator[str]:
    """What a reader must know before believing the verdicts, a sentence each."""
    if between is None:
        without = [name for name, run in (("A", before), ("B", after)) if not run.supports_speed]
        yield f"Only errors are compared: {' and '.join(without)} had no GPU's clock, and nothing else tells speed."
    else:
        yield from _drift_notes(between)
        throttled = sum(pair.verdict in (SLOWER, FASTER) and bool(pair.a.throttle or pair.b.throttle) for pair in pairs)
        if throttled:
            yield f"The GPU was throttled while {plural(throttled, 'changed cell')} ran."
    for name, run in (("A", before), ("B", after)):
        if not run.environment:
            yield f"{name} has no environment.json, so what differs around the two runs is not known."
    if conditions.same_bits(before.environment, after.environment):
        unlike = Counter(
            pair.provider for pair in pairs if pair.a.status == pair.b.status and pair.a.errors != pair.b.errors
        )
        for provider, count in sorted(unlike.items()):
            yield (
                f"{plural(count, 'cell')} of {provider} gave other bits than before, on the same device, commit and "
                "seed: it does not compute the same result twice."
            )


def _drift_notes(between: drift.Between) -> Iterator[str]:
    moved = {name: shift for name, shift in between.common.items() if abs(shift) > log1p(THRESHOLD)}
    if moved:
        told = ", ".join(f"{name} {change(expm1(shift))}" for name, shift in sorted(moved.items()))
        yield f"The whole run moved, which no provider is blamed for: {told}."
    if between.shared > log1p(THRESHOLD):
        yield f"Providers of one case moved together, by {percent(expm1(between.shared))} from case to case."
    if between.scatter > log1p(THRESHOLD) / 2:
        scatter = percent(expm1(between.scatter))
        yield f"Single cells scatter by {scatter} between the runs; intervals are the wider for it."
