"""Compares two runs, with a verdict a cell: SLOWER, FASTER, SAME or UNCLEAR; newly wrong; less accurate."""

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from math import expm1, log1p
from pathlib import Path

from bench.compare import conditions, drift
from bench.compare.comparison import EXCLUDED, FASTER, SAME, SLOWER, THRESHOLD, UNCLEAR, CellPair, Comparison
from bench.compare.errors import grown
from bench.page.formatting import change, percent, plural
from bench.results.intervals import LEAST, Array, Change, Interval, of_medians, of_samples
from bench.results.load import LoadedRun, UnreadableRun, labels, load
from bench.results.records import Record


class Incomparable(ValueError):
    """Two runs that have nothing in common; the text says why, in one line."""


def compare(
    a: Path | str,
    b: Path | str,
    threshold: float = THRESHOLD,
    providers: Sequence[str] = (),
    subject: str | None = None,
) -> Comparison:
    """Compares run B with run A, both folders, cell by cell; only these providers if any are given.

    `threshold` is the share by which a time must have changed at least before that counts. `subject` is the provider
    whose changes decide; by default that of run B. Raises UnreadableRun where a folder holds no run, Incomparable where
    the two have no cell in common.
    """
    before, after = (load(folder, needs_environment=False, subject=subject) for folder in (a, b))
    for run in (before, after):
        if not run.records:
            raise UnreadableRun(f"{run.folder}: has no record")
        if providers and not set(providers).intersection(run.providers):
            there = ", ".join(sorted(run.providers))
            raise Incomparable(f"{run.folder}: has no record of {', '.join(providers)}, only of {there}")
    return judge(before, after, threshold, providers)


def judge(
    before: LoadedRun, after: LoadedRun, threshold: float = THRESHOLD, providers: Sequence[str] = ()
) -> Comparison:
    """`compare`, of runs that have been read. Providers that are not looked at still tell what the machine did."""
    every = before.by_key | after.by_key
    names = dict(zip(every, labels(list(every.values()), [one.cell for one in every.values()]), strict=True))
    found = {
        key: CellPair(key, names[key], a, b, growth=grown(a, b) if a.status == b.status == "ok" else None)
        for key, b in after.by_key.items()
        if (a := before.by_key.get(key))
    }
    looked_at = set(providers or (*before.providers, *after.providers))
    between = None
    if before.has_gpu_clock and after.has_gpu_clock:
        between = _judge_speed(before, after, found, threshold, looked_at)
    pairs = tuple(pair for pair in found.values() if pair.provider in looked_at)
    if not pairs:
        raise Incomparable(f"{before.folder} and {after.folder}: no cell is in both")
    only_a, only_b = (
        tuple(
            (one.provider, names[key]) for key, one in cells.items() if key not in found and one.provider in looked_at
        )
        for cells in (before.by_key, after.by_key)
    )
    compared = sorted({pair.provider for pair in pairs})
    differences = tuple(conditions.differences(before.environment, after.environment, compared))
    notes = tuple(_notes(before, after, pairs, between))
    return Comparison(
        before.folder, after.folder, threshold, pairs, only_a, only_b, differences, notes, between, after.subject
    )


def _judge_speed(
    before: LoadedRun, after: LoadedRun, pairs: dict[str, CellPair], threshold: float, looked_at: Set[str]
) -> drift.Between:
    """Puts the verdict on speed into every pair that was ok and timed by a GPU's clock in both runs."""
    timed = {key: pair for key, pair in pairs.items() if before.is_timed(pair.a) and after.is_timed(pair.b)}
    changes = {}
    for key, pair in timed.items():
        found = _change(pair, before.samples.get(key), after.samples.get(key))
        if isinstance(found, Change):
            changes[pair.b.case_key, pair.provider] = found
        else:
            pairs[key] = replace(pair, verdict=UNCLEAR, why=found)
    between = drift.between(changes)
    together = sum(provider in looked_at for _, provider in changes)
    intervals = drift.intervals(changes, between, together)
    for key, pair in timed.items():
        at = pair.b.case_key, pair.provider
        if at in changes:
            uncorrected = changes[at].interval(together, between.scatter**2)
            pairs[key] = _judged(pair, changes[at], uncorrected, intervals[at], threshold)
    return between


def _change(pair: CellPair, before: Array | None, after: Array | None) -> Change | str:
    """Returns the change of a cell, or why it cannot be told."""
    a, b = pair.a, pair.b
    if before is not None and after is not None:
        return of_samples(before, after) or f"fewer than {LEAST} samples in one of the runs"
    if a.median and b.median:
        # A record without a count of samples is taken to have the fewest.
        return of_medians(a.median, b.median, (a.samples or LEAST, b.samples or LEAST))
    return f"{'A' if not a.median else 'B'} holds neither samples nor an interval of the median"


def _judged(pair: CellPair, found: Change, uncorrected: Interval, interval: Interval, threshold: float) -> CellPair:
    """Returns the pair with its verdict; `uncorrected` still has the drift that all providers of a case share."""
    least, excluded = log1p(threshold), log1p(max(EXCLUDED, 2 * threshold))
    (low, high), why = interval, ""
    if _beyond(interval, least):
        verdict = SLOWER if low > 0 else FASTER
    elif _beyond(uncorrected, least):
        verdict, why = UNCLEAR, "the other providers of this case moved as well"
    elif -excluded < low and high < excluded:
        verdict = SAME
    else:
        verdict, why = UNCLEAR, f"anything from {change(expm1(low))} to {change(expm1(high))} is possible"
    return replace(pair, verdict=verdict, why=why, change=expm1(found.estimate), low=expm1(low), high=expm1(high))


def _beyond(interval: Interval, least: float) -> bool:
    return interval[0] > least or interval[1] < -least


def _notes(
    before: LoadedRun, after: LoadedRun, pairs: Sequence[CellPair], between: drift.Between | None
) -> Iterator[str]:
    """Yields what a reader must know before believing the verdicts, a sentence each."""
    if before.folder.resolve() == after.folder.resolve():
        yield "A and B are one run: every cell is compared with itself, so nothing here says anything about a change."
    if between is None:
        without = [name for name, run in (("A", before), ("B", after)) if not run.has_gpu_clock]
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
            pair.provider for pair in pairs if pair.a.status == pair.b.status and _bits(pair.a) != _bits(pair.b)
        )
        for provider, count in sorted(unlike.items()):
            yield (
                f"{plural(count, 'cell')} of {provider} gave other bits than before, on the same device, commit and "
                "seed: it does not compute the same result twice."
            )


def _bits(record: Record) -> list[tuple[object, ...]]:
    return [(error.tensor, error.dtype, error.rel_l2_error, error.floor_ratio) for error in record.errors]


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
