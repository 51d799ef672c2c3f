"""The time of all norms of a model: every shape's time as often as the model has it. Imports no torch.

The times are those of cold calls, one norm after another: what a step of the model spends in its norms where none of
their data is left in the cache.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.cases import models
from bench.cases.models import INFERENCE, TRAINING, Norm
from bench.results.records import CUDA_EVENT, Record

# The modes that are a whole pass over a model, by the use of the preset.
_WHOLE = {
    TRAINING: {"fwd_bwd": "training step", "eval": "evaluation pass"},
    INFERENCE: {"eval": "inference pass", "fwd": "inference pass"},
}

_NAMED = 2  # shapes without a time that a sentence names; the others it counts


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
        parts = [compared] if compared else []
        for name, shapes in self.lacking.items():
            more = f" and {len(shapes) - _NAMED} more" if len(shapes) > _NAMED else ""
            parts.append(f"no sum of {name}, which lacks {', '.join(shapes[:_NAMED])}{more}")
        return f"{self.about}: {'; '.join(parts)}"


def headlines(records: Sequence[Record], environment: Mapping[str, Any]) -> list[Headline]:
    """Returns a headline for each operator, whole pass, batch size, dtype and layout in which the run has all shapes.

    `environment` is that of the run, whose arguments name the preset. Empty where that is no model's or the model's
    counts are unknown, where shapes of the model are not in the run at all (an axis was typed, or reduced), and where
    nothing was timed by a clock that supports a claim.
    """
    of_preset = models.of_preset(str(environment.get("arguments", {}).get("preset")))
    if of_preset is None or not any(record.clock == CUDA_EVENT for record in records):
        return []
    model, use = of_preset
    groups: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in records:
        if record.inputs == "normal" and record.mode in _WHOLE[use]:
            groups.setdefault((record.op, record.mode, record.dtype, record.layout), []).append(record)
    return [
        headline
        for (op, mode, _, _), group in groups.items()
        for headline in _at_each_batch(model, models.norms(model, op), _WHOLE[use][mode], group)
    ]


def count_in_model(record: Record, environment: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns how many norms of the run's model are this record's, and at which batch; None where that is unknown."""
    of_preset = models.of_preset(str((environment.get("arguments") or {}).get("preset")))
    for norm in models.norms(of_preset[0], record.op) if of_preset else ():
        batch = _batch(record, norm)
        if norm.count and batch is not None:
            return norm.count, batch
    return None


def _at_each_batch(model: str, norms: Sequence[Norm], what: str, records: Sequence[Record]) -> Iterator[Headline]:
    """Yields the headlines of records of one operator, mode, dtype and layout."""
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
            mine = [(norm, of_norm.get(provider)) for norm, of_norm in zip(norms, cells, strict=True)]
            missing = [f"{_size(norm)} ({reason})" for norm, record in mine if (reason := _without_time(record))]
            if missing:
                lacking[provider] = tuple(missing)
                continue
            parts[provider] = {
                # Rows of heads of one size differ only in how many a sample, or token, has of them.
                f"{norm.count} of {f'{norm.each}x' if norm.each > 1 else ''}{_size(norm)}": norm.count * us / 1e3
                for norm, record in mine
                if norm.count and record and (us := record.latency_us)
            }
        unit = f"batch {batch}" if once.axis == "batch" else "1 token" if batch == 1 else f"{batch} tokens"
        first = records[0]
        yield Headline(first.op, model, what, unit, first.dtype, first.layout, sum(counts), parts, lacking)


def _batch(record: Record, norm: Norm) -> int | None:
    """Returns the batch, of samples or tokens, at which the record's shape is this norm's; None if it is at none."""
    if any(record.axes.get(axis) != value for axis, value in norm.size.items()):
        return None
    rows = record.axes.get(norm.axis)
    return rows // norm.each if isinstance(rows, int) and rows % norm.each == 0 else None


def _without_time(record: Record | None) -> str:
    """Returns why a cell has no time that counts; empty if it has one."""
    if record is None:
        return "not measured"
    if record.status != "ok":
        return record.status
    return "" if record.clock == CUDA_EVENT and record.latency_us else "not timed"


def _size(norm: Norm) -> str:
    return "x".join(str(value) for value in norm.size.values())
