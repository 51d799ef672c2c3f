"""What a model's norms take together: every shape's time as often as the model has it. Imports no torch.

The times are those of cold calls, one norm after another: what a step of the model spends in its norms where nothing
of theirs is left in the cache.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.cases import models
from bench.cases.models import INFERENCE, TRAINING, Norm
from bench.results.records import CUDA_EVENT, Record

# The modes that are a whole pass over a model, by what the preset is for.
_WHOLE = {
    TRAINING: {"fwd_bwd": "training step", "eval": "evaluation pass"},
    INFERENCE: {"eval": "inference pass", "fwd": "inference pass"},
}


# Shapes that lack a time, of which a sentence names so many.
_NAMED = 2


@dataclass(frozen=True)
class Headline:
    """All norms that an operator serves in one pass of a model, at one batch size, dtype and layout.

    `parts` has a provider's milliseconds by shape (`3 of 64x56x56`) where it has a time for every shape; `lacking` has
    the other providers, with the shapes and why there is no time.
    """

    operator: str
    model: str
    what: str  # training step, inference pass, evaluation pass
    batch: str  # batch 32, 8192 tokens
    dtype: str
    layout: str
    norms: int
    parts: Mapping[str, Mapping[str, float]]
    lacking: Mapping[str, tuple[str, ...]]

    @property
    def milliseconds(self) -> dict[str, float]:
        """The sum of each provider's parts."""
        return {provider: sum(parts.values()) for provider, parts in self.parts.items()}

    @property
    def about(self) -> str:
        """For example `all 53 batch norms of one resnet50 training step, batch 32, fp16 nhwc`."""
        norm = models.FUSED.get(self.operator, (self.operator, ""))[0]
        of_these = f"{self.norms} {norm.replace('_', ' ')}s"
        which = f"all {of_these}" if norm == self.operator else f"{of_these} ({self.operator})"
        kind = self.dtype if self.layout == "rows" else f"{self.dtype} {self.layout}"
        return f"{which} of one {self.model} {self.what}, {self.batch}, {kind}"

    def sentence(self, baseline: str, ours: str) -> str:
        """`about` with the sums, `ours` first, then the baseline, then the others; and who has none, and why."""
        first = [name for name in (ours, baseline) if name in self.milliseconds]
        rest = sorted(set(self.milliseconds) - set(first), key=lambda name: (self.milliseconds[name], name))
        times = [f"{self.milliseconds[name]:.3g} ms ({name})" for name in (*first, *rest)]
        compared = " against ".join(part for part in (*times[:1], ", ".join(times[1:])) if part)
        without = [f"no sum of {name}, which lacks {_listed(shapes)}" for name, shapes in self.lacking.items()]
        return f"{self.about}: {'; '.join(part for part in (compared, *without) if part)}"


def headlines(records: Sequence[Record], environment: Mapping[str, Any]) -> list[Headline]:
    """One for every operator, whole pass over the model, batch size, dtype and layout in which the run has its shapes.

    `environment` is that of the run, whose arguments name the preset. Empty where that is no model's or the model's
    counts are unknown, where shapes of the model are not in the run at all (an axis was typed, or reduced), and where
    nothing was timed by a clock that supports a claim.
    """
    of_preset = models.of_preset(str(environment.get("arguments", {}).get("preset")))
    if of_preset is None or not any(record.clock == CUDA_EVENT for record in records):
        return []
    model, use = of_preset
    whole = [record for record in records if record.inputs == "normal" and record.mode in _WHOLE[use]]
    groups: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in whole:
        groups.setdefault((record.op, record.mode, record.dtype, record.layout), []).append(record)
    return [
        headline
        for (op, mode, _, _), group in groups.items()
        for headline in _at_each_batch(model, models.norms(model, op), _WHOLE[use][mode], group)
    ]


def _at_each_batch(model: str, norms: Sequence[Norm], what: str, records: Sequence[Record]) -> Iterator[Headline]:
    """The headlines of records of one operator, mode, dtype and layout."""
    counts = [norm.count for norm in norms if norm.count]
    if not norms or len(counts) < len(norms):
        return
    # A batch is told by the norms that a sample, or token, has one of; rows of heads could be those of any.
    once = min(norms, key=lambda norm: norm.each)
    for batch in dict.fromkeys(at for record in records if (at := _batch(record, once)) is not None):
        cells = [{record.provider: record for record in records if _batch(record, norm) == batch} for norm in norms]
        if not all(cells):
            continue
        parts: dict[str, dict[str, float]] = {}
        lacking: dict[str, tuple[str, ...]] = {}
        for provider in dict.fromkeys(name for of_norm in cells for name in of_norm):
            mine = [of_norm.get(provider) for of_norm in cells]
            reasons = [_without_time(record) for record in mine]
            if any(reasons):
                named = zip(norms, reasons, strict=True)
                lacking[provider] = tuple(f"{_size(norm)} ({reason})" for norm, reason in named if reason)
            else:
                times = [record.latency_us for record in mine if record and record.latency_us]
                shapes = [f"{n} of {_of_one(norm)}" for n, norm in zip(counts, norms, strict=True)]
                parts[provider] = {shape: n * us / 1e3 for shape, n, us in zip(shapes, counts, times, strict=True)}
        unit = f"batch {batch}" if once.axis == "batch" else "1 token" if batch == 1 else f"{batch} tokens"
        first = records[0]
        yield Headline(first.op, model, what, unit, first.dtype, first.layout, sum(counts), parts, lacking)


def _batch(record: Record, norm: Norm) -> int | None:
    """The batch, of samples or tokens, at which the record's shape is this norm's; None if it is at none."""
    if any(record.axes.get(axis) != value for axis, value in norm.size.items()):
        return None
    rows = record.axes.get(norm.axis)
    return rows // norm.each if isinstance(rows, int) and rows % norm.each == 0 else None


def _without_time(record: Record | None) -> str:
    """Why a cell has no time that counts; empty if it has one."""
    if record is None:
        return "not measured"
    if record.status != "ok":
        return record.status
    return "" if record.clock == CUDA_EVENT and record.latency_us else "not timed"


def _size(norm: Norm) -> str:
    return "x".join(str(value) for value in norm.size.values())


def _of_one(norm: Norm) -> str:
    """The size with the rows that one sample, or token, has of it: heads of one size differ in nothing else."""
    return f"{norm.each}x{_size(norm)}" if norm.each > 1 else _size(norm)


def _listed(shapes: Sequence[str]) -> str:
    more = f" and {len(shapes) - _NAMED} more" if len(shapes) > _NAMED else ""
    return ", ".join(shapes[:_NAMED]) + more
