"""Measures the cells of one case: builds each, checks every output, times them side by side, checks on new inputs."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache

import torch

from bench.cases.case import Case
from bench.cases.operators import Inputs, Operator, Reference
from bench.measure import accuracy, timing
from bench.measure.providers import Outputs, Provider, Runnable, Unsupported
from bench.results.records import INTERPRETER, Record, TensorError, fill

# Recognized by name, so that a CPU run need not import Triton's OutOfResources (shared memory, registers).
_OOM_TYPES = ("OutOfMemoryError", "OutOfResources", "MemoryError")
_OOM_TEXT = "can't allocate memory"  # how PyTorch's CPU allocator says it, in a plain RuntimeError
# One line of a table; what a compiler prints behind that is found by running the cell by itself.
_REASON_LENGTH = 300


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


class DeviceLost(Exception):
    """The device no longer answers, as after an illegal access: this process can measure nothing more."""


@dataclass(frozen=True)
class _BuiltCell:
    """A cell that is ready to be timed."""

    record: Record
    cell: Runnable
    inputs: Inputs
    provider: Provider


class Problem:
    """The inputs, float64 references and PyTorch's own errors that the cases of one problem share.

    They are made when the first cell needs them. Every cell works on its own copy of the inputs, so that no gradient,
    running buffer or stray write of one reaches the next.
    """

    def __init__(self, case: Case, settings: RunSettings) -> None:
        self.case, self._operator, self._settings = case, settings.operators[case.op], settings
        self._device = settings.device
        self._inputs: Inputs | None = None
        self._reference: Reference | None = None
        self._amplification: dict[str, float] = {}
        self._yardsticks: dict[str, tuple[dict[str, float] | None, str]] = {}
        self._fresh: tuple[Case, Inputs, Reference, dict[str, float]] | None = None

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
        return found.record if isinstance(found, _BuiltCell) else found

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

        def ended(provider: Provider, cell: FinishedCell) -> None:
            if cell.record.status == "oom" and len(providers) > 1:
                crowded.append(provider)
            else:
                finished(cell)

        built: dict[str, _BuiltCell] = {}
        for provider in providers:
            began(provider.name)
            found = self._build(case, provider)
            if isinstance(found, _BuiltCell):
                built[provider.name] = found
            else:
                ended(provider, FinishedCell(found))
                if found.status in ("oom", "crash"):
                    # Only now, with the exception and the frames that it held gone, can memory be given back.
                    _free(self._device)
                    check_device_alive(self._device)
        measured = timing.measure_together(
            {name: one.cell.run for name, one in built.items()},
            self._device,
            interpreted=[name for name, one in built.items() if one.record.backend == INTERPRETER],
            graphless=graphless,
            seed=self._settings.seed,
            began=began,
        )
        failed = len(measured) < len(built)
        for name, result in measured.items():
            one = built.pop(name)
            began(name)
            if isinstance(result, Exception):
                one.record.status, one.record.reason = _ending(result)
                failed = True
                ended(one.provider, FinishedCell(one.record))
                continue
            try:
                fill(one.record, result)
                if one.record.status == "ok":
                    one.record.reason = "; ".join(filter(None, (one.record.reason, *result.remarks)))
                self._judge_again(one, case)
            except Exception as error:
                one.record.status, one.record.reason = _ending(error)
                failed = True
            ended(one.provider, FinishedCell(one.record, result.series, result.poisoned))
        if failed:
            _free(self._device)
            check_device_alive(self._device)
        return crowded

    def release(self) -> None:
        """Drops all tensors."""
        if self._inputs is not None:
            self._inputs = self._reference = self._fresh = None
            if self._device.type == "cuda":
                _free(self._device)

    def _build(self, case: Case, provider: Provider) -> _BuiltCell | Record:
        """Builds and checks the cell; returns only its record where that is the end of it."""
        missing = provider.unavailable(self._device)
        if missing:
            return self._settings.record(case, provider.name, "unsupported", missing)
        record = self._settings.record(case, provider.name, "ok")
        shared = "inputs and reference: "
        try:
            self._truth(case)
            shared = ""
            built = self._checked(record, case, provider)
        except Unsupported as error:
            record.status, record.reason = "unsupported", _one_line(str(error))
        except Exception as error:
            record.status, reason = _ending(error)
            record.reason = shared + reason
        else:
            if case.inputs == "normal" and provider.timed:
                return built
        return record

    def _checked(self, record: Record, case: Case, provider: Provider) -> _BuiltCell:
        device = self._device
        original, _ = self._truth(case)
        yardstick, without = self._yardstick(case)
        inputs = _copy(original)
        record.backend, record.plan = provider.backend(case, inputs), provider.plan(case, inputs)
        _synchronize(device)
        allocated = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0

        began = time.perf_counter()
        cell = provider.build(case, inputs)
        cell.run()
        _synchronize(device)
        record.compile_ms = 1e3 * (time.perf_counter() - began)

        changed = [n for n, t in inputs.items() if not n.startswith("running_") and not _same(t, original[n])]
        for name, tensor in inputs.items():
            tensor.detach().copy_(original[name])
        record.errors = self._check(cell.outputs(), case, yardstick)
        record.status, record.reason = accuracy.verdict(record.errors)
        if changed:
            record.status, record.reason = "wrong", f"writes into its input {', '.join(changed)}"
        elif record.status == "ok":
            record.reason = without
        if device.type == "cuda":
            # While it is the only one with results in memory: side by side, the peaks of all would mix.
            torch.cuda.reset_peak_memory_stats(device)
            cell.run()
            _synchronize(device)
            record.peak_bytes = torch.cuda.max_memory_allocated(device) - allocated
        return _BuiltCell(record, cell, inputs, provider)

    def _judge_again(self, built: _BuiltCell, case: Case) -> None:
        """Runs what was timed on new inputs, its last results overwritten, so that a cached or unwritten one shows."""
        if self._fresh is None or self._fresh[0] != case:
            self._fresh = case, *self._fresh_truth(case)
        _, fresh, reference, amplification = self._fresh
        for name, result in built.cell.run().items():
            # A buffer that a run updates begins anew, as the inputs do.
            stale = result.detach()
            stale.copy_(fresh[name].view(stale.shape)) if name in fresh else stale.fill_(torch.nan)
        for name, tensor in built.inputs.items():
            tensor.detach().copy_(fresh[name])
        found = {n: t.view(reference[n].shape) for n, t in built.cell.run().items() if n in reference}
        dtypes, dim = self._operator.dtypes(fresh), self._operator.statistics_dim
        status, reason = accuracy.verdict(accuracy.check(found, reference, dtypes, None, dim, amplification))
        if built.record.status == "ok" and status != "ok":
            built.record.status, built.record.reason = status, f"on new inputs after timing: {reason}"

    def _fresh_truth(self, case: Case) -> tuple[Inputs, Reference, dict[str, float]]:
        """Returns inputs of another seed, except what a cell of this mode read when built, and their reference."""
        original, _ = self._truth(case)
        new = self._operator.inputs(case, self._device, self._settings.seed + 1)
        # Backward's graph holds what forward saved; evaluation's buffers are the cell's own, and no result of it.
        changed = {"bwd": ("dy",), "eval": [n for n in new if not n.startswith("running_")]}.get(case.mode, new)
        inputs = {name: new[name] if name in changed else tensor for name, tensor in original.items()}
        reference = self._operator.reference(case, inputs)
        amplification = self._operator.amplification(inputs, reference)
        return inputs, {name: reference[name] for name in self._operator.outputs(case.mode)}, amplification

    def _truth(self, case: Case) -> tuple[Inputs, Reference]:
        """Returns the inputs as they were drawn, and the reference of what the case's mode produces."""
        if self._inputs is None or self._reference is None:
            self._inputs = self._operator.inputs(self.case, self._device, self._settings.seed)
            self._reference = self._operator.reference(self.case, self._inputs)
            self._amplification = self._operator.amplification(self._inputs, self._reference)
        return self._inputs, {name: self._reference[name] for name in self._operator.outputs(case.mode)}

    def _check(self, outputs: Outputs, case: Case, yardstick: Mapping[str, float] | None) -> list[TensorError]:
        inputs, reference = self._truth(case)
        dtypes = self._operator.dtypes(inputs)
        assert self._reference is not None
        for name in (n for n in self._operator.saved if n in outputs):  # given by few, in the dtype that each likes
            dtype = getattr(outputs[name], "dtype", None)
            dtypes[name] = dtype if dtype in accuracy.DTYPE_NAMES else torch.float32
            reference[name] = self._reference[name]
        return accuracy.check(outputs, reference, dtypes, yardstick, self._operator.statistics_dim, self._amplification)

    def _yardstick(self, case: Case) -> tuple[dict[str, float] | None, str]:
        """Returns PyTorch's errors in this mode, or None and why there are none."""
        if case.mode not in self._yardsticks:
            provider = self._settings.yardstick
            try:
                outputs = provider.build(case, _copy(self._truth(case)[0])).outputs()
                self._yardsticks[case.mode] = accuracy.yardstick(self._check(outputs, case, None)), ""
            except Exception as error:
                self._yardsticks[case.mode] = None, f"not compared with {provider.name}: {': '.join(_ending(error))}"
        return self._yardsticks[case.mode]


def _copy(inputs: Inputs) -> Inputs:
    """Returns tensors of the same values and strides that share nothing with the originals."""
    return {name: tensor.detach().clone() for name, tensor in inputs.items()}


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Returns whether two tensors are equal, NaN in the same places included."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _ending(error: BaseException) -> tuple[str, str]:
    """Returns the status that an exception stands for, and its type and first line as the reason."""
    seen: BaseException | None = error
    while seen is not None:
        # Compilers wrap what went wrong, so that the cause is looked for as well.
        if any(t.__name__ in _OOM_TYPES for t in type(seen).__mro__) or _OOM_TEXT in str(seen):
            return "oom", _named(seen)
        seen = seen.__cause__ or seen.__context__
    return "crash", _named(error)


def _named(error: BaseException) -> str:
    return ": ".join(part for part in (type(error).__name__, _one_line(str(error))) if part)


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:_REASON_LENGTH] if lines else ""


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
        raise DeviceLost(_one_line(str(error))) from error


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        # A device that was lost says so here again; `check_device_alive` raises it.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()
