"""Measures the cells of one case: builds each, checks every output, times them side by side, checks on new inputs."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache, partial

import torch

from bench.cases.case import Case
from bench.cases.operators import Operator
from bench.measure import accuracy, looks, timing
from bench.measure.ending import ending, exits_raised, one_line, text_of, trace_of
from bench.measure.kept import KeptReferences
from bench.measure.looks import BuiltCell, Refused
from bench.measure.providers import Provider, Unsupported
from bench.measure.truth import Truth
from bench.results.records import INTERPRETER, Record, fill


@dataclass(frozen=True)
class RunSettings:
    """The settings that all cells of a run share, in each process that measures them.

    `yardstick` is PyTorch eager, which errors are compared with.
    """

    device: torch.device
    seed: int
    baseline: str
    yardstick: Provider
    operators: Mapping[str, Operator]
    energies: bool = False  # as timing.measure_together says

    def record(self, case: Case, provider: str, status: str, reason: str = "") -> Record:
        """Returns the record of a cell that has no figures."""
        return Record(
            op=case.op,
            shape=list(case.shape),
            axes=dict(case.axes),
            dtype=case.dtype,
            layout=case.layout,
            mode=case.mode,
            eps=case.eps,
            inputs=case.inputs,
            offset=case.offset,
            provider=provider,
            backend=provider,
            device=self.device.type,
            status=status,
            reason=reason,
            bytes_moved=self.operators[case.op].bytes_moved(case),
            baseline=self.baseline,
            seed=self.seed,
        )


@dataclass(frozen=True)
class FinishedCell:
    """A cell that has ended: its record, and every single time that was taken, by series."""

    record: Record
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)
    poisoned: bool = False  # what follows in this process may be spoiled by it
    trace: str = ""  # of the exception that ended it


class DeviceLost(Exception):
    """The device no longer answers, as after an illegal access: this process can measure nothing more."""


class Problem:
    """The inputs, float64 references and PyTorch's own errors that the cases of one problem share.

    They are made when the first cell needs them. Every cell works on its own copy of the inputs, so that no gradient,
    running buffer or stray write of one reaches the next.
    """

    def __init__(self, case: Case, settings: RunSettings, kept: KeptReferences | None = None) -> None:
        self.case, self._settings, self._device = case, settings, settings.device
        self._kept = kept or KeptReferences()
        self._replaced: dict[str, str] = {}  # by provider, what it has replaced of the instrument
        self._traces: dict[str, str] = {}  # by provider, of the exception that has ended its cell
        operator = settings.operators[case.op]
        self._truth = Truth(case, operator, settings.device, settings.seed, settings.yardstick)

    def measure(
        self,
        case: Case,
        providers: Iterable[Provider],
        finished: Callable[[FinishedCell], None],
        began: Callable[[str], None] = lambda name: None,
        graphless: Collection[str] = (),
    ) -> None:
        """Measures the case with each provider, and calls `finished` with each cell when it has ended, however it did.

        Cells with inputs other than normal, and those of providers that are never timed, are only judged by their
        errors; the others are timed side by side. What finds no memory beside the others is measured once more by
        itself. `began` is called with the provider whose code runs from then on, so that a crash or hang has a name.
        No CUDA graph of `graphless` is tried.

        Raises DeviceLost after `finished` has got the cell that lost it; KeyboardInterrupt and its like pass through.
        """
        with _stream(self._device):
            crowded = self._together(case, tuple(providers), finished, began, graphless)
            for provider in crowded:
                self._together(case, (provider,), finished, began, graphless)

    def judge(self, case: Case, provider: Provider) -> Record:
        """Returns the record of a cell that is checked and not timed, whatever happened in it."""
        with _stream(self._device):
            found = self._build(case, provider)
        return found.record if isinstance(found, BuiltCell) else found

    def _together(
        self,
        case: Case,
        providers: tuple[Provider, ...],
        finished: Callable[[FinishedCell], None],
        began: Callable[[str], None],
        graphless: Collection[str],
    ) -> list[Provider]:
        """Measures as `measure` does; returns the providers that found no memory, unless there was only one."""
        crowded: list[Provider] = []

        def ended(provider: Provider, record: Record, result: timing.Timing | None = None) -> None:
            trace = self._traces.pop(provider.name, "")
            self._accuse(record)
            if record.status == "oom" and len(providers) > 1:
                crowded.append(provider)
            elif result is None:
                finished(FinishedCell(record, trace=trace))
            else:
                spoiled = result.poisoned or provider.name in self._replaced
                finished(FinishedCell(record, result.series, spoiled, trace))

        turn = ""

        def begins(name: str) -> None:
            nonlocal turn
            if name != turn:
                self._blame(turn)
                turn = name
            began(name)

        built: dict[str, BuiltCell] = {}
        for provider in providers:
            begins(provider.name)
            found = self._build(case, provider)
            self._blame(provider.name)
            if isinstance(found, BuiltCell):
                built[provider.name] = found
            else:
                ended(provider, found)
                if found.status in ("oom", "crash"):
                    # Only now, with the exception and the frames that it held gone, can memory be given back.
                    _free(self._device)
                    check_device_alive(self._device)
        witnesses = {name: looks.witness(one, self._truth) for name, one in built.items()}
        measured = timing.measure_together(
            {name: one.cell.run for name, one in built.items()},
            self._device,
            interpreted=[name for name, one in built.items() if one.record.backend == INTERPRETER],
            graphless=graphless,
            seed=self._settings.seed,
            began=begins,
            witnesses=witnesses,
            energies=self._settings.energies,
        )
        failed = len(measured) < len(built)
        for name, result in measured.items():
            one = built.pop(name)
            begins(name)
            if isinstance(result, Exception):
                self._fail(one.record, result)
                failed = True
                ended(one.provider, one.record)
                continue
            fill(one.record, result)
            if one.record.status == "ok":
                one.record.reason = "; ".join(filter(None, (one.record.reason, *result.remarks)))
                self._accept(one.record, partial(looks.at_timed_calls, one, self._truth, witnesses[name], result.doubt))
                failed |= one.record.status in ("oom", "crash")
            self._blame(name)
            ended(one.provider, one.record, result)
        if failed:
            _free(self._device)
            check_device_alive(self._device)
        return crowded

    def _accept(self, record: Record, look: Callable[[], None]) -> None:
        """Has the judge look at a cell; what it refuses, or what is raised, becomes the cell's status."""
        try:
            with exits_raised():
                look()
        except Refused as refusal:
            record.status, record.reason = refusal.status, str(refusal)
        except Exception as error:
            self._fail(record, error)

    def _fail(self, record: Record, error: Exception) -> None:
        record.status, record.reason = ending(error)
        self._traces[record.provider] = trace_of(error)

    def _blame(self, name: str) -> None:
        """Notes what has been replaced of the instrument since the last time: it was in this provider's turn."""
        if found := self._kept.replaced():
            self._replaced[name] = ", ".join(found)

    def _accuse(self, record: Record) -> None:
        if replaced := self._replaced.get(record.provider):
            record.status, record.reason = "impossible", f"it has replaced {replaced}, so that nothing of it counts"

    def release(self) -> None:
        """Drops all tensors."""
        self._truth.release()
        if self._device.type == "cuda":
            _free(self._device)

    def _build(self, case: Case, provider: Provider) -> BuiltCell | Record:
        """Builds and checks the cell; returns only its record where that is the end of it."""
        missing = provider.unavailable(self._device)
        if missing:
            return self._settings.record(case, provider.name, "unsupported", missing)
        record = self._settings.record(case, provider.name, "ok")
        shared = "inputs and reference: "
        try:
            self._truth.reference(case)
            shared = ""
            with exits_raised():
                built = self._checked(record, case, provider)
        except Unsupported as error:
            record.status, record.reason = "unsupported", one_line(text_of(error))
        except Exception as error:
            self._fail(record, error)
            record.reason = shared + record.reason
        else:
            if case.inputs == "normal" and provider.timed:
                return built
            if record.status == "ok":
                again = partial(looks.on_new_inputs, built, self._truth, self._truth.seed + 1, "on new inputs")
                self._accept(record, again)
        return record

    def _checked(self, record: Record, case: Case, provider: Provider) -> BuiltCell:
        device, truth = self._device, self._truth
        without = truth.yardstick(case)[1]
        inputs, memories = looks.guarded(truth.inputs())
        record.backend, record.plan = provider.backend(case, inputs), provider.plan(case, inputs)
        _synchronize(device)
        allocated = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0

        began = time.perf_counter()
        cell = provider.build(case, inputs)
        cell.run()
        _synchronize(device)
        record.compile_ms = 1e3 * (time.perf_counter() - began)

        built = BuiltCell(record, case, cell, inputs, provider, memories)
        original = truth.inputs()
        changed = built.differing(original)
        built.refill(original)
        record.errors = truth.errors(cell.outputs(), case)
        record.status, record.reason = accuracy.verdict(record.errors)
        if changed or (changed := built.differing(original)):
            record.status, record.reason = "wrong", f"writes into its input {', '.join(changed)}"
        if overwritten := truth.overwritten():
            self._replaced[provider.name] = f"the judge's {', '.join(overwritten)}"
        if record.status == "ok":
            record.reason = without
            self._accept(record, partial(looks.at_one_call, built, truth))
        built.refill(truth.inputs())
        if device.type == "cuda":
            # While it is the only one with results in memory: side by side, the peaks of all would mix.
            torch.cuda.reset_peak_memory_stats(device)
            cell.run()
            _synchronize(device)
            record.peak_bytes = torch.cuda.max_memory_allocated(device) - allocated
        if record.status == "ok" and case.inputs == "normal":
            record.batch_invariant = looks.batch_invariant(built, truth)
        return built


def _stream(device: torch.device) -> AbstractContextManager[object]:
    """Enters our own stream: backward runs where its forward ran, and the default stream cannot be captured."""
    return torch.cuda.stream(_own_stream(device)) if device.type == "cuda" else nullcontext()


@cache
def _own_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_device_alive(device: torch.device) -> None:
    """Raises DeviceLost where the device does not answer."""
    try:
        _synchronize(device)
    except RuntimeError as error:
        raise DeviceLost(one_line(str(error))) from error


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        # A device that was lost says so here again; `check_device_alive` raises it.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()
