"""Measures the cells of one case: builds each, checks every output, times them side by side, checks on new inputs."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from math import prod

import torch

from bench.cases.case import Case
from bench.cases.operators import Inputs, Operator, Reference
from bench.measure import accuracy, contract, timing
from bench.measure.kept import KeptReferences
from bench.measure.observed import GuardedMemory, between_guards, observing
from bench.measure.providers import Outputs, Provider, Runnable, Unsupported
from bench.measure.witness import LEAST_ELEMENTS, Witness
from bench.results.records import INTERPRETER, Record, TensorError, fill

# Recognized by name, so that a CPU run need not import Triton's OutOfResources (shared memory, registers).
_OOM_TYPES = ("OutOfMemoryError", "OutOfResources", "MemoryError")
_OOM_TEXT = "can't allocate memory"  # how PyTorch's CPU allocator says it, in a plain RuntimeError
# One line of a table; what a compiler prints behind that is found by running the cell by itself.
_REASON_LENGTH = 300
# The folders of an absolute path.
_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[/\\][^/\\\s:'\"]+)+[/\\](?=[^/\\\s])")


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
    memories: Mapping[str, GuardedMemory]


class _Refused(Exception):
    """What the judge has seen makes the cell wrong, or impossible; the text says what it was."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Problem:
    """The inputs, float64 references and PyTorch's own errors that the cases of one problem share.

    They are made when the first cell needs them. Every cell works on its own copy of the inputs, so that no gradient,
    running buffer or stray write of one reaches the next.
    """

    def __init__(self, case: Case, settings: RunSettings, kept: KeptReferences | None = None) -> None:
        self.case, self._operator, self._settings = case, settings.operators[case.op], settings
        self._device, self._kept = settings.device, kept or KeptReferences()
        self._replaced: dict[str, str] = {}  # by provider, what it has replaced of the instrument
        self._inputs: Inputs | None = None
        self._reference: Reference | None = None
        self._amplification: dict[str, float] = {}
        self._sums: dict[str, int] = {}
        self._yardsticks: dict[str, tuple[dict[str, float] | None, str]] = {}

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

        turn = ""

        def begins(name: str) -> None:
            nonlocal turn
            self._blame(turn)
            turn = name
            began(name)

        built: dict[str, _BuiltCell] = {}
        for provider in providers:
            begins(provider.name)
            found = self._build(case, provider)
            self._blame(provider.name)
            if isinstance(found, _BuiltCell):
                built[provider.name] = found
            else:
                self._accuse(found)
                ended(provider, FinishedCell(found))
                if found.status in ("oom", "crash"):
                    # Only now, with the exception and the frames that it held gone, can memory be given back.
                    _free(self._device)
                    check_device_alive(self._device)
        witnesses = {name: self._witness(one, case) for name, one in built.items()}
        measured = timing.measure_together(
            {name: one.cell.run for name, one in built.items()},
            self._device,
            interpreted=[name for name, one in built.items() if one.record.backend == INTERPRETER],
            graphless=graphless,
            seed=self._settings.seed,
            began=begins,
            witnesses=witnesses,
        )
        failed = len(measured) < len(built)
        for name, result in measured.items():
            one = built.pop(name)
            begins(name)
            if isinstance(result, Exception):
                one.record.status, one.record.reason = _ending(result)
                failed = True
                self._accuse(one.record)
                ended(one.provider, FinishedCell(one.record))
                continue
            fill(one.record, result)
            if one.record.status == "ok":
                one.record.reason = "; ".join(filter(None, (one.record.reason, *result.remarks)))
                self._accept(one.record, partial(self._judge_again, one, case, witnesses[name], result.doubt))
                failed |= one.record.status in ("oom", "crash")
            self._blame(name)
            self._accuse(one.record)
            spoiled = result.poisoned or name in self._replaced
            ended(one.provider, FinishedCell(one.record, result.series, spoiled))
        if failed:
            _free(self._device)
            check_device_alive(self._device)
        return crowded

    def _blame(self, name: str) -> None:
        """Notes what has been replaced of the instrument since the last time: it was in this provider's turn."""
        if found := self._kept.replaced():
            self._replaced[name] = ", ".join(found)

    def _accuse(self, record: Record) -> None:
        if replaced := self._replaced.get(record.provider):
            record.status, record.reason = "impossible", f"it has replaced {replaced}, so that nothing of it counts"

    def release(self) -> None:
        """Drops all tensors."""
        if self._inputs is not None:
            self._inputs = self._reference = None
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
            record.status, record.reason = "unsupported", _one_line(_text(error))
        except Exception as error:
            record.status, reason = _ending(error)
            record.reason = shared + reason
        else:
            if case.inputs == "normal" and provider.timed:
                return built
            if record.status == "ok":
                self._accept(record, lambda: self._look_again(built, case, self._settings.seed + 1, "on new inputs"))
        return record

    def _accept(self, record: Record, look: Callable[[], None]) -> None:
        """Has the judge look at a cell; what it refuses, or what is raised, becomes the cell's status."""
        try:
            look()
        except _Refused as refusal:
            record.status, record.reason = refusal.status, str(refusal)
        except Exception as error:
            record.status, record.reason = _ending(error)

    def _checked(self, record: Record, case: Case, provider: Provider) -> _BuiltCell:
        device = self._device
        yardstick, without = self._yardstick(case)
        inputs, memories = _guarded(self._drawn())
        record.backend, record.plan = provider.backend(case, inputs), provider.plan(case, inputs)
        _synchronize(device)
        allocated = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0

        began = time.perf_counter()
        cell = provider.build(case, inputs)
        cell.run()
        _synchronize(device)
        record.compile_ms = 1e3 * (time.perf_counter() - began)

        built = _BuiltCell(record, cell, inputs, provider, memories)
        original, _ = self._truth(case)
        changed = _differing(inputs, original)
        _refill(inputs, original)
        record.errors = self._check(cell.outputs(), case, yardstick)
        record.status, record.reason = accuracy.verdict(record.errors)
        if changed or (changed := _differing(inputs, original)):
            record.status, record.reason = "wrong", f"writes into its input {', '.join(changed)}"
        if overwritten := self._overwritten():
            self._replaced[provider.name] = f"the judge's {', '.join(overwritten)}"
            original, _ = self._truth(case)
        if record.status == "ok":
            record.reason = without
            self._accept(record, lambda: self._observe(built, case))
        _refill(inputs, original)
        if device.type == "cuda":
            # While it is the only one with results in memory: side by side, the peaks of all would mix.
            torch.cuda.reset_peak_memory_stats(device)
            cell.run()
            _synchronize(device)
            record.peak_bytes = torch.cuda.max_memory_allocated(device) - allocated
        return built

    def _observe(self, built: _BuiltCell, case: Case) -> None:
        """Runs the call once on new inputs and notes what it does, then as a ghost; raises _Refused."""
        fresh = self._drawn_anew(case, self._settings.seed + 1)
        _refill(built.inputs, fresh)
        with observing() as (log, overrun):
            results = built.cell.run()
        built.record.ran = log.words
        beyond = overrun() + [name for name, memory in built.memories.items() if not memory.intact]
        if beyond:
            raise _Refused("wrong", f"writes past the memory of {', '.join(beyond)}")
        deviations = contract.deviations(case, built.inputs, results, log)
        if broken := contract.broken(case, built.record.backend, built.inputs, results, log):
            raise _Refused("wrong", broken)
        built.record.deviations = "; ".join(deviations)
        before = {name: tensor.detach().clone() for name, tensor in results.items() if not name.startswith("running_")}
        for name, tensor in results.items():
            if name.startswith("running_"):
                tensor.detach().copy_(fresh[name])
        saved = {n: t.detach().clone() for n, t in results.items() if n.startswith("running_")}
        with observing() as (again, _):
            repeated = built.cell.run()
        if len(again.work) < len(log.work):
            raise _Refused(
                "wrong", f"does less for inputs that it has seen: {again.words or 'nothing'}, not {log.words}"
            )
        # What a cell writes into memory of its own, call after call, must not be there already.
        for name in before:
            repeated[name].detach().fill_(torch.nan)
        after: Outputs = {}
        with observing(ghost=True) as (ghost, _), suppress(Exception):  # of what cannot go on with such numbers
            after = built.cell.run()
        alike = [n for n, t in after.items() if n in before and before[n].numel()]
        unchanged = [n for n in alike if _same(after[n].reshape(before[n].shape), before[n])]
        if unchanged and unchanged == [*before] and ghost.kernels:
            did = ", ".join(dict.fromkeys(log.work))
            raise _Refused("wrong", f"gives the same {', '.join(unchanged)} with its work ({did}) left out")
        for name, tensor in results.items():
            if name in saved:
                tensor.detach().copy_(saved[name])

    def _witness(self, built: _BuiltCell, case: Case) -> Witness:
        """Returns what watches the timed calls of a cell."""
        changed = self._changing(case, built.inputs)
        few = prod(case.shape) < LEAST_ELEMENTS * max(self._operator.saved_values(case), 1)
        draw: Callable[[int], Inputs] = lambda seed: self._drawn_anew(case, seed)
        return Witness(built.inputs, changed, draw, self._settings.seed, few)

    def _judge_again(self, built: _BuiltCell, case: Case, witness: Witness, doubt_of_time: str) -> None:
        """Judges a call that was timed, and one more on new inputs; raises _Refused."""
        if witness.kept is not None:
            self._compare(witness.kept, case, witness.seed, "in a timed call", partly=True)
        if doubt := witness.doubt():
            raise _Refused("wrong", doubt)
        self._look_again(built, case, witness.seed + 1, "on new inputs after timing")
        if doubt_of_time:
            raise _Refused("impossible", doubt_of_time)

    def _look_again(self, built: _BuiltCell, case: Case, seed: int, when: str) -> None:
        """Judges one call on inputs of a seed, the call's last results overwritten; raises _Refused."""
        fresh = self._drawn_anew(case, seed)
        for name, result in built.cell.run().items():
            # A buffer that a run updates begins anew, as the inputs do.
            stale = result.detach()
            stale.copy_(fresh[name].view(stale.shape)) if name in fresh else stale.fill_(torch.nan)
        _refill(built.inputs, fresh)
        found = built.cell.run()
        if changed := _differing(built.inputs, fresh):
            raise _Refused("wrong", f"{when}: writes into its input {', '.join(changed)}")
        if beyond := [name for name, memory in built.memories.items() if not memory.intact]:
            raise _Refused("wrong", f"writes past the memory of {', '.join(beyond)}")
        self._compare(found, case, seed, when)

    def _compare(self, results: Outputs, case: Case, seed: int, when: str, partly: bool = False) -> None:
        """Compares results with the reference of another seed's inputs; raises _Refused.

        `partly`: running statistics may be missing.
        """
        inputs = self._drawn_anew(case, seed)
        reference = self._operator.reference(case, inputs)
        amplification = self._operator.amplification(inputs, reference)
        wanted = {name: reference[name] for name in self._operator.outputs(case.mode)}
        if partly:
            wanted = {n: t for n, t in wanted.items() if n in results or not n.startswith("running_")}
        found = {n: t.view(wanted[n].shape) for n, t in results.items() if n in wanted}
        dtypes, dim = self._operator.dtypes(inputs), self._operator.statistics_dim
        status, reason = accuracy.verdict(accuracy.check(found, wanted, dtypes, None, dim, amplification))
        if status != "ok":
            raise _Refused(status, f"{when}: {reason}")

    def _changing(self, case: Case, inputs: Inputs) -> list[str]:
        """Returns the inputs that may change between the calls of a cell."""
        if case.mode == "bwd":  # its graph holds what forward saved
            return ["dy"]
        return [n for n in inputs if not (case.mode == "eval" and n.startswith("running_"))]

    def _drawn_anew(self, case: Case, seed: int) -> Inputs:
        """Returns inputs of another seed, except what a cell of this mode read when it was built."""
        original, new = self._drawn(), self._operator.inputs(case, self._device, seed)
        changing = self._changing(case, new)
        return {name: new[name] if name in changing else tensor for name, tensor in original.items()}

    def _drawn(self) -> Inputs:
        """Returns the inputs as they were drawn."""
        if self._inputs is None:
            self._inputs = self._operator.inputs(self.case, self._device, self._settings.seed)
        return self._inputs

    def _truth(self, case: Case) -> tuple[Inputs, Reference]:
        """Returns the inputs as they were drawn, and the reference of what the case's mode produces."""
        inputs = self._drawn()
        if self._reference is None:
            self._reference = self._operator.reference(self.case, inputs)
            self._amplification = self._operator.amplification(inputs, self._reference)
            self._sums = _sums({**inputs, **{f"reference {n}": t for n, t in self._reference.items()}})
        return inputs, {name: self._reference[name] for name in self._operator.outputs(case.mode)}

    def _overwritten(self) -> list[str]:
        """Returns the shared inputs and references that are not what they were, and has them made anew."""
        assert self._inputs is not None and self._reference is not None
        now = _sums({**self._inputs, **{f"reference {n}": t for n, t in self._reference.items()}})
        found = [name for name, total in now.items() if total != self._sums[name]]
        if found:
            self._inputs = self._reference = None
        return found

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


def _guarded(inputs: Inputs) -> tuple[Inputs, dict[str, GuardedMemory]]:
    """Returns such a copy with a guard before and behind each tensor, and the memories by name."""
    guarded = {name: between_guards(tensor) for name, tensor in inputs.items()}
    copies = {name: tensor for name, (tensor, _) in guarded.items()}
    _refill(copies, inputs)
    return copies, {name: memory for name, (_, memory) in guarded.items()}


def _refill(inputs: Inputs, values: Inputs) -> None:
    for name, tensor in inputs.items():
        tensor.detach().copy_(values[name])


def _differing(inputs: Inputs, values: Inputs) -> list[str]:
    """Returns the inputs that are no longer equal to these values; running statistics may have moved on."""
    return [n for n, t in inputs.items() if not n.startswith("running_") and not _same(t, values[n])]


def _sums(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Returns the sum of each tensor's bits, taken as integers."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {n: int(t.view(integers.get(t.element_size(), torch.uint8)).sum()) for n, t in tensors.items()}


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Returns whether two tensors are equal, NaN in the same places included."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _ending(error: BaseException) -> tuple[str, str]:
    """Returns the status that an exception stands for, and its type and first line as the reason."""
    seen: BaseException | None = error
    while seen is not None:
        # Compilers wrap what went wrong, so that the cause is looked for as well.
        if any(t.__name__ in _OOM_TYPES for t in type(seen).__mro__) or _OOM_TEXT in _text(seen):
            return "oom", _named(seen)
        seen = seen.__cause__ or seen.__context__
    return "crash", _named(error)


def _named(error: BaseException) -> str:
    return ": ".join(part for part in (type(error).__name__, _one_line(_text(error))) if part)


def _text(error: BaseException) -> str:
    """Returns an exception's text; that it has none where its own __str__ fails."""
    try:
        return str(error)
    except Exception as broken:
        return f"its text cannot be had: {type(broken).__name__}"


def _one_line(text: str) -> str:
    """Returns the first line, of a path only the last part: a reason is published, and folders are personal."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _PATH.sub("", lines[0])[:_REASON_LENGTH] if lines else ""


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
